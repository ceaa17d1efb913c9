// One CUDA block at a time on one CPU thread: what membrane.cu needs of CUDA, for a host compiler.
//
// Every CUDA thread is a coroutine with its own stack. A collective waits until all threads that it names have come to
// it; when no thread can go on, some came and others never will: that hangs a GPU, and is reported here.
#include <setjmp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#define __global__
#define __launch_bounds__(...)
#define __shared__ static

struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline float __uint_as_float(unsigned bits) { float value; memcpy(&value, &bits, 4); return value; }
inline unsigned __float_as_uint(float value) { unsigned bits; memcpy(&bits, &value, 4); return bits; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

struct Index { unsigned x; };
static Index threadIdx, blockIdx;

namespace on_cpu {

const int THREADS = SRESNET_BLOCK, WARP = 32, STACK = 128 * 1024;

struct Barrier { int arrived; unsigned passed; };
static Barrier block_barrier, warp_barrier[THREADS / WARP];
static int slot[THREADS];
static jmp_buf scheduler, thread[THREADS];
static bool begun[THREADS], done[THREADS];
static bool moved;  // since the scheduler last looked
static void (*body)(void*);
static void* argument;
static char* stacks;

// By setjmp and not by swapcontext, which asks the operating system at every switch.
__attribute__((noinline)) static void leave() {
    if (!_setjmp(thread[threadIdx.x])) _longjmp(scheduler, 1);
}

inline void wait(Barrier& barrier, int all) {
    const unsigned before = barrier.passed;
    if (++barrier.arrived == all) {
        barrier.arrived = 0, barrier.passed++, moved = true;
    } else {
        while (barrier.passed == before) leave();
    }
}

// A coroutine does one block after another.
static void enter() {
    for (;;) {
        body(argument);
        done[threadIdx.x] = moved = true;
        leave();
    }
}

__attribute__((noinline)) static void go_on(int i) {
    threadIdx.x = i;
    if (_setjmp(scheduler)) return;
    if (begun[i]) _longjmp(thread[i], 1);
    begun[i] = true;
    ucontext_t start;
    getcontext(&start);
    start.uc_stack.ss_sp = stacks + (size_t)STACK * i;
    start.uc_stack.ss_size = STACK;
    start.uc_link = nullptr;
    makecontext(&start, enter, 0);
    setcontext(&start);
}

// 0, or 1 when threads wait for others that have gone another way.
inline int run_block() {
    if (!stacks) stacks = (char*)malloc((size_t)STACK * THREADS);
    block_barrier = {};
    memset(warp_barrier, 0, sizeof warp_barrier);
    memset(done, 0, sizeof done);
    for (int left = THREADS; left > 0;) {
        moved = false;
        left = 0;
        // Backwards in every other block, so that code which hopes for an order of its threads is found out.
        for (int turn = 0; turn < THREADS; turn++) {
            const int i = blockIdx.x % 2 ? turn : THREADS - 1 - turn;
            if (done[i]) continue;
            go_on(i);
            left += !done[i];
        }
        if (left > 0 && !moved) {
            memset(begun, 0, sizeof begun);
            return 1;
        }
    }
    return 0;
}

template <typename Call>
int run(int blocks, Call call) {
    body = [](void* given) { (*(Call*)given)(); };
    argument = &call;
    for (int i = 0; i < blocks; i++) {
        blockIdx.x = i;
        if (run_block()) return 1;
    }
    return 0;
}

}  // namespace on_cpu

inline void __syncthreads() { on_cpu::wait(on_cpu::block_barrier, on_cpu::THREADS); }

inline int __shfl_xor_sync(unsigned mask, int value, int distance) {
    if (mask != 0xffffffffu) abort();
    on_cpu::Barrier& barrier = on_cpu::warp_barrier[threadIdx.x / on_cpu::WARP];
    on_cpu::slot[threadIdx.x] = value;
    on_cpu::wait(barrier, on_cpu::WARP);
    const int other = on_cpu::slot[threadIdx.x ^ distance];
    on_cpu::wait(barrier, on_cpu::WARP);
    return other;
}

inline int __reduce_add_sync(unsigned mask, int value) {
    for (int distance = on_cpu::WARP / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(mask, value, distance);
    return value;
}

inline int atomicAdd(int* to, int value) { return *to += value, *to - value; }
