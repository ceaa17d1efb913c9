"""The CUDA membrane kernel, the engine around it and a training step on a GPU, against the CPU.

Skipped, with the reason, without a device. `benchmarks/gpu/` asks more, of larger networks.
"""

import functools
import os
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import images, randomized
from membrane_cases import EVERY, FLOATS, Case, launches, make, plain, run, same
from torch import library as operators

import s_resnet
from s_resnet import kernels
from s_resnet.errors import BackendUnavailable
from s_resnet.graph import StreamSettings
from s_resnet.kernels import Update
from s_resnet.kernels.build import nvrtc
from s_resnet.kernels.membrane import cuda, reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
GB = 2**30


def on_cpu(results):
    return tuple(None if x is None else x.cpu() for x in results)


def both(case, shape, steps, seed=0, device="cuda", dyadic=True):
    """The kernel on the device and the reference on the CPU, from the same numbers."""
    here, there = (make(case, shape, steps, seed, where, dyadic) for where in ("cpu", device))
    return on_cpu(run(cuda.integrate_and_fire, *there)), run(reference.integrate_and_fire, *here)


def test_the_device_runs_the_cuda_kernel():
    assert kernels.fastest(torch.device("cuda")) == "cuda"
    major, minor = torch.cuda.get_device_capability()
    assert cuda.path(torch.device("cuda")).endswith(f"sm_{major}{minor})")
    assert "cuda (NVRTC" in kernels.describe() and "by cuda-bindings" in kernels.describe()


@pytest.mark.parametrize("case", EVERY, ids=str)
def test_it_equals_the_reference_bit_for_bit(case):
    for seed, (shape, steps) in enumerate(launches(case)):
        assert same(*both(case, shape, steps, seed)), (shape, steps)
    assert same(*both(case, (2, 24, 7, 9), 33, dyadic=False)), "rounding is the reference's too"


@pytest.mark.parametrize(
    "shape", [(2, 64, 56, 56), (2, 2048, 7, 7), (3, 512, 28, 28), (2, 33, 31, 29), (4, 1000)], ids=str
)
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("steps", [1, 5])
def test_layers_of_real_size(shape, last, steps):
    for dtype in FLOATS:
        assert same(*both(Case(dtype, dtype, dtype, last=last), shape, steps))
    for schedule in ("lagged", "phased"):
        case = Case(torch.float16, torch.float16, torch.float16, bias="rows", last=last, schedule=schedule)
        assert same(*both(replace(case, results="in place"), shape, steps))


@pytest.mark.parametrize("dtype", FLOATS[1:], ids=str)
def test_every_16_bit_number_is_read_as_torch_reads_it(dtype):
    current = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).view(1, 1, -1)
    v, theta = torch.zeros(current.shape[1:]), torch.tensor(torch.finfo(torch.float32).max)
    got = cuda.integrate_and_fire(current.cuda(), v.cuda(), Update(threshold=theta.cuda()))
    for a, b in zip(on_cpu(got), reference.integrate_and_fire(current, v, Update(threshold=theta)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("case", [Case(), Case(levels=3, signed=True)], ids=str)
def test_results_do_not_depend_on_the_chunk(case):
    current, v, o = make(case, (3, 64, 14, 14), 21, device="cuda")
    want = run(cuda.integrate_and_fire, current, v, o)
    for chunk in (1, 7, 20):
        parts, membrane, counts, emitted = [], v, o["counts"].clone(), o["emitted"]
        for at in range(0, 21, chunk):
            part = slice(at, at + chunk)
            given = {**o, "shortcut": o["shortcut"][part], "counts": counts[part], "emitted": emitted}
            spikes, membrane = cuda.integrate_and_fire(current[part], membrane, Update(**given))
            emitted = None if emitted is None else emitted + spikes.sum(0)
            parts.append(spikes)
        assert same((torch.cat(parts), membrane, counts), want)


def test_offsets_pass_32_bits():
    """2.2 * 10^9 spikes: the last step lies beyond 2^31."""
    steps, batch, neurons = 34, 64, 2**20
    if torch.cuda.mem_get_info()[0] < 8 * GB:
        pytest.skip("less than 8 GB free")
    v = torch.zeros(batch, neurons, device="cuda")
    current = (torch.arange(neurons, device="cuda") % 7 / 4).half().expand(steps, batch, neurons)
    counts = torch.zeros(steps, batch, dtype=torch.int32, device="cuda")
    one = torch.tensor(1.0, device="cuda")
    spikes, after = cuda.integrate_and_fire(current, v, Update(threshold=one, spike_dtype=torch.int8, counts=counts))
    want, want_after = reference.integrate_and_fire(current[:, :1, :7], v[:1, :7], Update(threshold=one))
    for image in (0, batch - 1):
        assert torch.equal(spikes[:, image, -7 - neurons % 7 : neurons - neurons % 7].float(), want[:, 0])
        assert torch.equal(after[image, :7], want_after[0])
    assert torch.equal(counts[-1], spikes[-1].sum(1, dtype=torch.int32))


# ---- streams, graphs, devices ----


def test_it_runs_on_the_current_stream():
    current, v, o = make(Case(), (2, 64, 14, 14), 8, device="cuda")
    want = run(cuda.integrate_and_fire, current, v, o)
    late = torch.zeros_like(current)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)  # on another stream the kernel would read zeros
        late.copy_(current)
        got = cuda.integrate_and_fire(late, v, Update(**{**o, "counts": None}))
    torch.cuda.current_stream().wait_stream(stream)
    assert same(got, want[:2])


def test_a_captured_graph_replays_with_new_inputs():
    current, v, o = make(Case(), (2, 64, 14, 14), 8, seed=1, device="cuda")
    other = make(Case(), (2, 64, 14, 14), 8, seed=2, device="cuda")[0]
    want = [run(cuda.integrate_and_fire, x, v, o) for x in (current, other)]
    cuda.warm_up(current, v, Update(**o))
    counts = o["counts"].clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        spikes, after = cuda.integrate_and_fire(current, v, Update(**{**o, "counts": counts}))
    for values, expected in zip((current.clone(), other), want, strict=True):
        current.copy_(values)
        counts.fill_(3)
        graph.replay()
        assert same((spikes, after, counts), expected)


def test_a_first_use_while_a_graph_is_captured_says_what_to_do(monkeypatch):
    current, v, o = make(
        Case(torch.bfloat16, torch.uint8, torch.int32, decay=0.5, reset="zero"), (2, 8, 3, 5), 8, device="cuda"
    )
    torch.cuda.synchronize()
    monkeypatch.setattr(nvrtc, "_loaded", {})
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream), pytest.raises(BackendUnavailable, match="warm_up"):
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin()
        current.add_(0)  # an empty graph is warned of
        try:
            cuda.integrate_and_fire(current, v, Update(**o))
        finally:
            graph.capture_end()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
def test_each_device_runs_its_own():
    """The current device is the first; the tensors say where the work is done."""
    for device in ("cuda:1", "cuda:0", "cuda:1"):
        with torch.cuda.device(0):
            assert same(*both(Case(torch.float16), (2, 64, 14, 14), 8, device=device))


# ---- the operator ----


@pytest.mark.parametrize(
    "case",
    [
        Case(),
        Case(torch.float16, torch.int8, torch.float16, last=False, levels=2, signed=True),
        Case(torch.float16, torch.int8, bias="rows", schedule="lagged", signed=True, results="in place"),
    ],
    ids=str,
)
def test_the_operator_keeps_its_word(case):
    current, v, o = make(case, (2, 8, 3, 5), 4, device="cuda")
    o["after"] = torch.empty_like(v) if o["after"] is None else o["after"]
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_static")
    operators.opcheck(torch.ops.s_resnet.integrate_and_fire.default, (current, v, *plain(o)), test_utils=checks)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_it_gives_the_same(backend):
    current, v, o = make(Case(constant=True), (2, 16, 8, 8), 4, device="cuda")

    def layer(current, v, counts):
        spikes, after = cuda.integrate_and_fire(current * 1.0, v, Update(**{**o, "counts": counts}))
        return spikes.float() + 1, after, counts * 2

    want = layer(current, v, counts := o["counts"].clone())
    got = torch.compile(layer, backend=backend, fullgraph=True)(current, v, kept := o["counts"].clone())
    assert same(got, want) and torch.equal(kept, counts) and not torch.equal(counts, o["counts"])


# ---- threads ----


def test_a_thread_that_is_new_to_cuda_launches():
    """Its memory comes from torch's cache, so that nothing has made the context current before the launch."""
    current, v, o = make(Case(), (2, 64, 14, 14), 8, device="cuda")
    given, found = {**o, "counts": None}, []
    want = cuda.integrate_and_fire(current, v, Update(**given))
    cuda.integrate_and_fire(current, v, Update(**given))  # and leaves its results to the cache
    torch.cuda.synchronize()
    thread = threading.Thread(target=lambda: found.append(cuda.integrate_and_fire(current, v, Update(**given))))
    thread.start()
    thread.join()
    torch.cuda.synchronize()
    assert same(found[0], want)


def test_threads_may_come_first_at_the_same_time():
    """In a process of its own, where nothing is imported, compiled or loaded yet."""
    program = (
        "import threading, test_gpu\n"
        "cases, found = test_gpu.EVERY[:4] * 2, []\n"
        "def one(case): found.append(test_gpu.same(*test_gpu.both(case, (2, 8, 3, 5), 9)))\n"
        "threads = [threading.Thread(target=one, args=(case,)) for case in cases]\n"
        "[thread.start() for thread in threads]; [thread.join() for thread in threads]\n"
        "assert found == [True] * 8, found"
    )
    here = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}  # it imports this file as pytest did
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600, env=here)
    assert done.returncode == 0, done.stderr


# ---- the engine ----

WEIGHTS = {
    "int8": ("s-resnet", "int8"),
    "calibrated-int8": ("calibrated-lagged", "int8"),
    "dyadic": ("s-resnet", "dyadic"),
}
STEPS = 12


@functools.cache
def converted(name):
    """A ResNet-8 and the CPU's simulation of it."""
    recipe, weights = WEIGHTS.get(name, (name, "float32"))
    model = randomized(s_resnet.models.CifarResNet(8, num_classes=5, width=8))
    snn = s_resnet.convert(
        model, [images(16, 16, seed=i) for i in range(4)], s_resnet.RECIPES[recipe].at(STEPS).with_weights(weights)
    )
    return snn, s_resnet.simulate(snn, images(8, 16), STEPS)


def apart(got, want):
    """Spikes that differ, counted by layer and image, of all."""
    total = sum(float(counts.sum()) for counts in want.spikes.values())
    return sum(float((got.spikes[name].cpu() - want.spikes[name]).abs().sum()) for name in want.spikes) / total


@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize("name", [*s_resnet.RECIPES, *WEIGHTS])
def test_a_network_fires_as_on_the_cpu(name, precision):
    snn, want = converted(name)
    got = s_resnet.simulate(
        snn.to("cuda"), images(8, 16).cuda(), STEPS, s_resnet.simulation.SimulationSettings(precision=precision)
    )
    whole = "int8" in name or (name, precision) == ("dyadic", "exact")
    # Sums of whole numbers are exact in any order; others move a spike now and then, in 16 bits more of them.
    assert apart(got, want) <= (0 if whole else {"exact": 0.005, "fast": 0.02}[precision])
    assert got.outputs.shape == want.outputs.shape and got.outputs.device.type == "cuda"


@pytest.mark.parametrize(
    ("name", "precision"),
    [("dyadic", "exact"), ("s-resnet", "fast"), ("int8", "exact"), ("calibrated-lagged", "exact")],
)
def test_a_replayed_graph_gives_what_the_eager_run_does(name, precision, monkeypatch):
    replays = []
    replay = torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: replays.append(1) or replay(graph))
    snn, batches = converted(name)[0].to("cuda"), [images(8, 16, seed=seed).cuda() for seed in (1, 2)]
    chunk, eager = None if snn.windowed else 4, []
    with torch.no_grad():
        for x in batches:  # who watches sees every chunk, and no graph is replayed
            chunks = list(
                snn.stream(
                    x, STEPS, chunk, settings=StreamSettings(precision=precision, observe=lambda name, value: None)
                )
            )
            eager.append((chunks[-1].outputs[-1], chunks[-1].state.memory))
    assert not replays
    runs = [
        s_resnet.simulate(
            snn, batches[i % 2], STEPS, s_resnet.simulation.SimulationSettings(chunk=chunk, precision=precision)
        )
        for i in range(4)
    ]
    assert replays
    for got, (outputs, memory) in zip(runs, 2 * eager, strict=True):
        assert torch.equal(got.outputs[-1], outputs)  # of the first run too: no later replay writes over its results
        for layer, kept in memory.items():
            assert all(map(torch.equal, got.state.memory[layer], kept)), layer


@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_evaluate_reports_what_the_cpu_does(precision):
    batches = [(images(8, 16, seed=seed), torch.arange(8) % 5) for seed in (3, 4)]
    got, want = (
        s_resnet.evaluate(
            converted("int8")[0],
            batches,
            STEPS,
            s_resnet.analysis.EvaluationSettings(precision=precision),
            device=device,
        )
        for device in ("cuda", "cpu")
    )
    assert got.kernel == "cuda" and got.device != want.device
    for a, b in zip(got.snn, want.snn, strict=True):
        assert (a.top1, a.agreement, a.spikes_per_neuron) == (b.top1, b.agreement, b.spikes_per_neuron)


# ---- training: the surrogate kernels alone are in test_surrogate_cuda ----


# In 16 bits the gradients of the other two turn with the last bit of an image, on one device as well.
@pytest.mark.parametrize(
    ("arch", "amp"), [("ms_resnet20", False), ("ms_resnet20", True), ("ds_resnet20", False), ("sew_resnet20", False)]
)
def test_a_training_step_is_the_cpus(arch, amp):
    found = {}
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        model = s_resnet.models.build(arch, 5, timesteps=2, input_shape=(3, 16, 16), width=4).to(device).train()
        with torch.autocast(device, torch.bfloat16, enabled=amp):
            loss = F.cross_entropy(model(images(8, 16).to(device)).float(), torch.arange(8, device=device) % 5)
        loss.backward()
        grads = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        found[device] = loss.item(), grads.double().cpu()
    (got, grads), (want, wanted) = found["cuda"], found["cpu"]
    assert grads.isfinite().all() and abs(got - want) <= 0.01 * want
    # Where a membrane is near its threshold one device fires and the other does not, and behind it all differs.
    assert float(grads @ wanted / grads.norm() / wanted.norm()) >= 0.95
