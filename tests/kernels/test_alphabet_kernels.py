"""The alphabets of the fast kernels against the specification, bit for bit: types, layouts, tails, rounding."""

import itertools

import cuda_on_cpu
import pytest
import test_cuda
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from membrane_cases import Case, make, run, same
from test_alphabets import ALPHABETS, COMPILED, MEMBRANES, memory, numbers, parameters, seeded

from s_resnet import kernels
from s_resnet.kernels import Update, events
from s_resnet.kernels.membrane import cpp, cuda, eager, reference

FAST = pytest.mark.parametrize("kernel", [eager, pytest.param(cpp, marks=COMPILED)], ids=["cpu", "host"])
TYPES = (torch.float32, torch.bfloat16, torch.uint8, torch.int8, torch.int32)


def holds(dtype, levels, signed):
    """Whether spikes of a type can be an alphabet's."""
    return not ((signed and dtype == torch.uint8) or (levels == 8 and dtype == torch.int8))


def agree(kernel, current, v, levels, signed, **arguments):
    """Run a kernel and the specification, hold one to the other, and give back the spikes."""
    emitted = memory(v, signed)
    given = [tensor for tensor in (current, v, emitted, *arguments.values()) if isinstance(tensor, torch.Tensor)]
    kept = [tensor.clone() for tensor in given]
    counts = [torch.full((len(current), len(v)), 5, dtype=torch.int32) for _ in range(2)]
    results = []
    for each, counted in zip((kernel, reference), counts, strict=True):
        results.append(
            each.integrate_and_fire(current, v, Update(levels=levels, emitted=emitted, counts=counted, **arguments))
        )
    for got, want in zip(*results, strict=True):
        assert got.dtype == want.dtype and got.shape == want.shape and torch.equal(got, want)
    assert torch.equal(*counts)
    assert not results[1][0].any() or (counts[0] > 5).any()
    assert all(map(torch.equal, given, kept)), "an argument was changed"
    return results[1][0].double()


# ---- the fast kernels against the specification ----


@FAST
@pytest.mark.parametrize("membrane", MEMBRANES, ids=str)
@pytest.mark.parametrize("current_type", TYPES, ids=str)
def test_every_type_of_current_shortcut_and_spike(kernel, membrane, current_type):
    shape = (2, 5, 3, 3)
    v, current = numbers(4, membrane, *shape), numbers(5, current_type, 4, *shape)
    for (levels, signed), shortcut_type in itertools.product(ALPHABETS, (None, *TYPES)):
        made = parameters(v)
        if shortcut_type is None:
            made.pop("shortcut_scale")
        else:
            made["shortcut"] = numbers(6, shortcut_type, 4, *shape)
        for spike_type in (None, *(each for each in TYPES if holds(each, levels, signed))):
            spikes = agree(kernel, current, v, levels, signed, spike_dtype=spike_type, **made)
            assert spikes.max() > 0 and spikes.min() >= -signed * 2**levels


def channels_last(x):
    return x.flatten(0, x.ndim - 4).contiguous(memory_format=torch.channels_last).view(x.shape)


def sliced(x):
    """Every second element of a larger tensor."""
    wide = x.new_full((*x.shape[:-1], 2 * x.shape[-1]), 99)
    wide[..., ::2] = x
    return wide[..., ::2]


VIEWS = {
    "as it is": lambda x: x,
    "channels last": channels_last,
    "sliced": sliced,
    "constant": lambda x: x[:1].expand_as(x),
    "one image for all": lambda x: x[..., :1, :, :, :].expand_as(x),
}
SHAPES = [(1, 1, 1, 1), (2, 3, 4, 5), (3, 17, 1, 1), (2, 64, 3, 5), (1, 3, 33, 33), (1, 1030, 1, 3)]


@FAST
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("levels,signed", [(1, True), (3, False), (3, True)])
def test_every_shape_and_layout(kernel, shape, levels, signed):
    for membrane, last, view, branch in itertools.product(MEMBRANES, (False, True), VIEWS, VIEWS):
        v = numbers(7, membrane, *shape)
        v = channels_last(v) if last else v
        shortcut = VIEWS[branch](numbers(9, torch.int8, 3, *shape))
        current = VIEWS[view](numbers(8, membrane, 3, *shape))
        agree(kernel, current, v, levels, signed, shortcut=shortcut, **parameters(v))


@FAST
@pytest.mark.parametrize("view", ["channels last", "sliced", "expanded"])
def test_the_memory_may_lie_anywhere(kernel, view):
    current, v = numbers(10, torch.float32, 4, 2, 3, 4, 5), numbers(11, torch.float32, 2, 3, 4, 5)
    emitted = memory(v, True)
    emitted = emitted[:, :1].expand_as(v) if view == "expanded" else VIEWS[view](emitted)
    settings = {"threshold": torch.tensor(0.75), "levels": 2}
    got = kernel.integrate_and_fire(current, v, Update(emitted=emitted, **settings))
    want = reference.integrate_and_fire(current, v, Update(emitted=emitted.contiguous(), **settings))
    assert all(map(torch.equal, got, want)) and got[0].min() < 0


@FAST
@pytest.mark.parametrize("shape", [(3, 1), (2, 17), (2, 1000), (2, 7, 5), (1, 5, 2, 3, 2)], ids=str)
def test_vectors_and_volumes(kernel, shape):
    v, current = numbers(12, torch.float32, *shape), numbers(13, torch.float32, 5, *shape)
    for levels, signed in ALPHABETS:
        agree(kernel, current, v, levels, signed, **parameters(v), shortcut=numbers(14, torch.uint8, 5, *shape))


@FAST
@pytest.mark.parametrize("levels,signed", ALPHABETS)
def test_rounding_is_the_references_too(kernel, levels, signed):
    """Not dyadic: quotient, product and difference round, and leave the same bits."""
    shape = (3, 5, 6, 7)
    current, v = torch.randn(30, *shape, generator=seeded(15)) * 2 + 0.3, torch.rand(shape, generator=seeded(16))
    theta, bias = (torch.rand(5, 1, 1, generator=seeded(seed)) + 0.01 for seed in (17, 18))
    agree(kernel, current, v, levels, signed, threshold=theta, bias=bias, decay=0.9)
    agree(kernel, current, v, levels, signed, threshold=torch.tensor(0.1), bias=bias)


@FAST
@pytest.mark.parametrize("signed", [False, True])
def test_quotients_next_to_whole_numbers(kernel, signed):
    """u one unit in the last place around k * threshold: what the division makes of it is what counts."""
    theta = torch.rand(1, 400, generator=seeded(19)) + 0.25
    near = torch.arange(1.0, 256.0).view(-1, 1, 1) * theta
    for current in (near, near.nextafter(torch.tensor(0.0)), near.nextafter(torch.tensor(torch.inf))):
        current = torch.cat((current, -current))[:, 0].unsqueeze(0)
        v = torch.zeros(current.shape[1:])
        agree(kernel, current, v, 8, signed, threshold=theta.flatten())


@FAST
@pytest.mark.parametrize("levels,signed", ALPHABETS)
def test_the_largest_whole_numbers(kernel, levels, signed):
    edges = [2**31 - 1, 2**31 - 2, -(2**31), 1 - 2**31, 2**24 + 1, -1 - 2**24]
    current = torch.tensor(edges, dtype=torch.int32).view(1, 1, -1)
    for theta in (1, 3, 7919, 2**23, 8421505):
        v = torch.zeros(1, 6, dtype=torch.int32)
        agree(kernel, current, v, levels, signed, threshold=torch.tensor(theta, dtype=torch.int32))


@FAST
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_spikes_and_membrane_keep_the_layout_of_the_membrane(kernel, layout):
    v = numbers(20, torch.float32, 2, 3, 4, 5).contiguous(memory_format=layout)
    for levels, signed in ALPHABETS:
        spikes, after = kernel.integrate_and_fire(
            numbers(21, torch.float32, 3, 2, 3, 4, 5),
            v,
            Update(threshold=torch.tensor(0.5), levels=levels, emitted=memory(v, signed), spike_dtype=torch.bfloat16),
        )
        assert all(step.is_contiguous(memory_format=layout) for step in spikes)
        assert after.is_contiguous(memory_format=layout) and after.data_ptr() != v.data_ptr()


@COMPILED
def test_the_threads_change_nothing():
    before, results = torch.get_num_threads(), []
    current, v = torch.randn(5, 3, 17, 9, 9, generator=seeded(22)), torch.rand(3, 17, 9, 9, generator=seeded(23))
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            counts = torch.zeros(5, 3, dtype=torch.int32)
            out = cpp.integrate_and_fire(
                current, v, Update(counts=counts, threshold=torch.tensor(0.3), levels=3, emitted=torch.ones_like(v))
            )
            results.append((*out, counts))
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, *results)) and results[0][2].any()


@COMPILED
@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_any_layer(data):
    """Any shape, any types, any alphabet and any mixture of terms, as the specification has it."""

    def pick(*choices):
        return data.draw(st.sampled_from(choices))

    shape = tuple(data.draw(st.lists(st.integers(1, 7), min_size=2, max_size=5)))
    steps, membrane, (levels, signed) = data.draw(st.integers(1, 8)), pick(*MEMBRANES), pick(*ALPHABETS)
    v = numbers(24, membrane, *shape)
    made = parameters(v)
    made["decay"] = pick(1.0, 0.5) if membrane == torch.float32 else 1.0
    made["spike_dtype"] = pick(None, *(each for each in TYPES if holds(each, levels, signed)))
    for name in ("bias", "shortcut_scale"):
        if pick(False, True):
            made[name] = None
    if pick(False, True):
        made["shortcut"] = numbers(25, pick(*TYPES), steps, *shape)
    current = numbers(26, pick(*TYPES), steps, *shape)
    results = []
    for kernel in (cpp, eager, reference):
        counts = torch.zeros(steps, shape[0], dtype=torch.int32)
        out = kernel.integrate_and_fire(
            current, v, Update(levels=levels, emitted=memory(v, signed), counts=counts, **made)
        )
        results.append((*out, counts))
    for got in results[:2]:
        assert all(map(torch.equal, got, results[2]))


@COMPILED
@pytest.mark.parametrize("levels,signed", [(1, True), (2, False), (3, True)])
@pytest.mark.parametrize("integer", [False, True])
def test_the_neurons_of_an_event_driven_convolution(levels, signed, integer):
    spikes = (torch.rand(6, 5, 4, 8, generator=seeded(27)) < 0.4).to(torch.uint8)
    weight = torch.randint(-9, 12, (7, 5, 3, 3), generator=seeded(28))
    packed = events.pack(weight.to(torch.int8) if integer else weight / 8, (1, 1), (1, 1), (4, 8))
    currents = events.Currents(events.find(spikes), packed, 3)
    v = torch.zeros_like(currents.empty())
    given = {"threshold": torch.ones((), dtype=v.dtype), "levels": levels, "emitted": memory(v, signed)}
    for kind in ({}, {"spike_dtype": torch.int8}):
        got = kernels.integrate_and_fire(currents, v, Update(**given, **kind))
        want = reference.integrate_and_fire(currents.tensor(), v, Update(**given, **kind))
        assert all(map(torch.equal, got, want)) and (want[0].min() < 0) == signed and want[0].max() > 0


@FAST
@pytest.mark.parametrize("membrane", MEMBRANES, ids=str)
@pytest.mark.parametrize("reset", ["subtract", "zero"])
def test_binary_neurons_take_signed_bytes_and_give_them(kernel, membrane, reset):
    v = numbers(29, membrane, 2, 5, 3, 4)
    made = parameters(v)
    for current_type, shortcut_type in itertools.product((torch.int8, membrane), (torch.int8, torch.uint8)):
        current = numbers(30, current_type, 4, 2, 5, 3, 4)
        shortcut = numbers(31, shortcut_type, 4, 2, 5, 3, 4)
        spikes = agree(kernel, current, v, 1, False, shortcut=shortcut, spike_dtype=torch.int8, reset=reset, **made)
        assert set(spikes.unique().tolist()) == {0, 1}


# ---- the CUDA source, on the CPU: what its own tests do not see ----

MUTANTS = {
    "the memory of another image": ("emitted) + at * 4", "emitted) + first * 4"),
    "a memory for all": ("memory[RULE == SIGNED ? k : 0]", "memory[0]"),
    "a quotient for all": ("quotient(v[k], theta.get(k))", "quotient(v[0], theta.get(k))"),
    "signs are lost": ("(wide >> 16 & 0x8000u) |", ""),
    "what is taken back is not counted": ("__popc(n < 0 ? -n : n)", "__popc(n < 0 ? 0 : n)"),
    "one level": ("(V)most)", "V(1))"),
}


@test_cuda.needs_compiler
@pytest.mark.parametrize("name", MUTANTS)
def test_the_comparison_sees_a_broken_kernel(name, tmp_path):
    case = Case(torch.float16, torch.float16, torch.int8, threshold="each", levels=2, signed=True)
    assert test_cuda.differs(case, *MUTANTS[name], tmp_path)


@test_cuda.needs_compiler
def test_whole_numbers_are_rounded_down(tmp_path):
    case = Case(torch.int32, torch.int8, torch.int8, threshold="each", integer=True, levels=2, signed=True)
    assert test_cuda.differs(case, "return cut - (cut * threshold > v);", "return cut;", tmp_path)


@test_cuda.needs_compiler
def test_the_memory_of_the_cuda_kernel_may_lie_anyhow():
    current, v, options = make(Case(levels=2, signed=True), (2, 8, 3, 5), 7)
    for emitted in (options["emitted"].contiguous(), options["emitted"][:1].expand_as(v)):
        given = {**options, "emitted": emitted}
        got = run(cuda_on_cpu.integrate_and_fire, current, v, given)
        assert same(got, run(reference.integrate_and_fire, current, v, given)) and got[0].min() < 0


def test_eight_halves_are_read_two_steps_ahead():
    for dtype, ahead in ((torch.float16, cuda.AHEAD // 2), (torch.float32, cuda.AHEAD)):
        current, v, options = make(Case(dtype, shortcut="none", levels=2), (2, 8, 3, 5), 8)
        assert cuda_on_cpu.prepare(current, v, Update(**options))[0].instance.endswith(f", {ahead}>")
