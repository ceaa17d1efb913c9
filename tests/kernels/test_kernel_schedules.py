"""Layers that wait, biases by step and results in place, in every kernel: by hand, by loops, by the reference."""

import itertools
from dataclasses import replace
from fractions import Fraction

import cuda_on_cpu
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from membrane_cases import SCHEDULED, SHAPES, STEPS, Case, make, run, same
from test_cuda import needs_compiler

from s_resnet import kernels
from s_resnet.errors import InvalidData
from s_resnet.graph import Neuron
from s_resnet.graph.alphabet import Amplitudes, Binary, Differential, MultiThreshold, Signed
from s_resnet.graph.execution import Execution
from s_resnet.kernels import Update, events
from s_resnet.kernels.build import compiler
from s_resnet.kernels.membrane import cpp, eager, reference

COMPILED = pytest.mark.skipif(compiler.compiled()[0] is None, reason=compiler.compiled()[1])
FAST = [pytest.param(eager, id="cpu"), pytest.param(cpp, id="host", marks=COMPILED)]
EVERY = [
    pytest.param(reference, id="reference"),
    *FAST,
    pytest.param(cuda_on_cpu, id="cuda", marks=needs_compiler),
]
TRACES = {
    # name: ((schedule, reset, levels, emitted before), currents, v0, threshold, emissions, membrane at the end)
    "lagged": (("lagged", "subtract", 1, None), [0.5, 0.75, 0.0, -1.0], 0.0, 1.0, [1, 0, 0, 0], -0.75),
    "lagged, one step": (("lagged", "subtract", 1, None), [1.0], 0.0, 1.0, [1], 0.0),
    "lagged, the last one too": (("lagged", "subtract", 1, None), [0.25, 0.25, 2.5], 0.0, 1.0, [0, 1, 1], 1.0),
    "lagged, hard": (("lagged", "zero", 1, None), [0.5, 1.0, 0.5, 0.5], 0.0, 1.0, [1, 0, 1, 0], 0.0),
    "lagged, signed": (("lagged", "subtract", 1, 0), [1.0, 0.5, -2.5, 0.5], 0.0, 1.0, [1, -1, 0, 0], -0.5),
    "lagged, levels": (("lagged", "subtract", 2, None), [2.0, 2.5, 0.0], 0.0, 1.0, [3, 1, 0], 0.5),
    "phased": (("phased", "subtract", 1, None), [3.0, -2.0, 1.5, 0.0], 0.0, 1.0, [1, 1, 0, 0], 0.5),
    "phased, too much": (("phased", "subtract", 1, None), [3.0, 4.0], 0.5, 1.0, [1, 1], 5.5),
    "phased, too little": (("phased", "subtract", 1, None), [3.0, -4.0], 0.5, 1.0, [0, 0], -0.5),
    "phased, hard": (("phased", "zero", 1, None), [3.0, 0.0, 0.0], 0.0, 1.0, [1, 0, 0], 0.0),
    "phased, levels": (("phased", "subtract", 2, None), [4.0, 1.5, -0.25], 0.0, 0.75, [3, 3, 1], 0.0),
    "phased, signed": (("phased", "subtract", 2, 2), [-4.0, 0.5, 0.0], 0.0, 1.0, [-2, 0, 0], -1.5),
}


# ---- by hand ----


@pytest.mark.parametrize("kernel", EVERY)
@pytest.mark.parametrize("name", TRACES)
def test_a_hand_computed_trace(kernel, name):
    (schedule, reset, levels, emitted), currents, v0, theta, emissions, rest = TRACES[name]
    v, counts = torch.full((1, 1), v0), torch.zeros(len(currents), 1, dtype=torch.int32)
    spikes, after = kernel.integrate_and_fire(
        torch.tensor(currents).view(-1, 1, 1),
        v,
        Update(
            threshold=torch.tensor(theta),
            reset=reset,
            levels=levels,
            emitted=None if emitted is None else torch.full_like(v, emitted),
            counts=counts,
            schedule=schedule,
        ),
    )
    assert spikes.flatten().tolist() == emissions and after.item() == rest and v.item() == v0
    assert counts.flatten().tolist() == [abs(k).bit_count() for k in emissions]


@pytest.mark.parametrize("kernel", EVERY)
@pytest.mark.parametrize(
    ("schedule", "fired"), [("streaming", [0, 1, 0]), ("lagged", [1, 0, 0]), ("phased", [1, 0, 0])]
)
def test_every_step_has_its_own_bias(kernel, schedule, fired):
    """Currents of 1/4; biases of 0, 1/2 and 1/4 in one channel, of the opposite in the other."""
    rows = torch.tensor([0.0, 0.5, 0.25]).view(3, 1, 1) * torch.tensor([1.0, -1.0])
    current, v, one = torch.full((3, 1, 2), 0.25), torch.zeros(1, 2), torch.tensor(1.0)
    spikes, after = kernel.integrate_and_fire(current, v, Update(threshold=one, bias=rows, schedule=schedule))
    assert spikes[:, 0].T.tolist() == [fired, [0, 0, 0]] and after.tolist() == [[0.5, 0.0]]
    bare = rows[:, :, :1]  # one number per step, for both channels
    spikes, after = kernel.integrate_and_fire(current, v, Update(threshold=one, bias=bare, schedule=schedule))
    assert spikes[:, 0].T.tolist() == [fired, fired] and after.tolist() == [[0.5, 0.5]]


# ---- the specification against a loop over single numbers ----


def loop(current, v, o):
    """The equation of the reference's docstring by fractions: spikes, membrane and memory."""
    steps, most = len(current), 2 ** o["levels"] - 1
    wait = {"streaming": 0, "lagged": 1, "phased": steps}[o["schedule"]]
    bias = 0.0 if o["bias"] is None else o["bias"]
    bias = bias if torch.is_tensor(bias) and bias.ndim > v.ndim else torch.as_tensor(bias).expand(steps, *v.shape)
    scale = torch.as_tensor(1.0 if o["shortcut_scale"] is None else o["shortcut_scale"]).expand_as(v).double()
    arriving = current.double() + bias.expand(current.shape).double()
    if o["shortcut"] is not None:
        arriving = arriving + o["shortcut"].double() * scale
    charge = [[Fraction(x) for x in step] for step in arriving.flatten(1).tolist()]
    theta = [Fraction(x) for x in o["threshold"].expand_as(v).flatten().tolist()]
    u = [Fraction(x) for x in v.flatten().tolist()]
    sent = None if o["emitted"] is None else [int(x) for x in o["emitted"].flatten().tolist()]
    spikes = torch.zeros(steps, v.numel())
    for i, j in itertools.product(range(v.numel()), range(wait)):
        u[i] += charge[j][i] if j < steps else 0
    for t, i in itertools.product(range(steps), range(v.numel())):
        u[i] = Fraction(o["decay"]) * u[i] + (charge[t + wait][i] if t + wait < steps else 0)
        if o["levels"] == 1 and sent is None:
            k = int(u[i] >= theta[i])
        else:
            k = min(max(u[i] // theta[i], 0 if sent is None else max(-most, -sent[i])), most)
        u[i] = Fraction(0) if o["reset"] == "zero" and k else u[i] - theta[i] * k
        spikes[t, i] = k
        if sent is not None:
            sent[i] += k
    membrane = torch.tensor([float(x) for x in u]).view(v.shape)
    return spikes.view(current.shape), membrane, None if sent is None else torch.tensor(sent).view(v.shape)


@pytest.mark.parametrize("case", SCHEDULED, ids=str)
def test_the_reference_equals_a_loop_over_single_numbers(case):
    for shape, steps in (((2, 5, 2, 3), 6), ((1, 3), 1)):
        current, v, options = make(case, shape, steps)
        spikes, after, counts, *memory = run(reference.integrate_and_fire, current, v, options)
        want, membrane, sent = loop(current, v, options)
        assert torch.equal(spikes.float(), want) and torch.equal(after.float(), membrane)
        assert not memory or torch.equal(memory[0].int(), sent)
        if counts is not None:
            bits = sum(want.abs().int() >> level & 1 for level in range(case.levels))
            assert torch.equal(counts - 3, bits.flatten(2).sum(2))


# ---- the fast kernels against the specification ----


@pytest.mark.parametrize("kernel", FAST)
@pytest.mark.parametrize("case", SCHEDULED, ids=str)
def test_they_equal_the_reference_bit_for_bit(kernel, case):
    if torch.float16 in (case.current, case.branch if case.shortcut != "none" else None, case.spikes):
        kernel = kernels  # the C++ takes no halves
    for (i, shape), steps in itertools.product(enumerate(SHAPES), STEPS[:-1]):
        if case.last and len(shape) in (3, 5):
            continue  # channels_last of images is what the C++ takes
        current, v, options = make(case, shape, steps, seed=i)
        got = run(kernel.integrate_and_fire, current, v, options)
        assert same(got, run(reference.integrate_and_fire, current, v, options)), (shape, steps)
        assert all(step.stride() == v.stride() for step in got[0]) and got[1].stride() == v.stride()


@COMPILED
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.sampled_from([replace(case, current=torch.bfloat16, branch=torch.int8) for case in SCHEDULED]),
    st.lists(st.integers(1, 7), min_size=2, max_size=4),
    st.integers(1, 9),
)
def test_any_size(case, shape, steps):
    current, v, options = make(replace(case, integer=False), tuple(shape), steps)
    got = run(kernels.integrate_and_fire, current, v, options)
    assert same(got, run(reference.integrate_and_fire, current, v, options))


@COMPILED
def test_blocks_that_end_within_an_image_have_the_rows_of_their_channels():
    for shape, last in itertools.product(((2, 24, 9, 9), (1, 1030, 1, 3), (1, 3, 33, 33)), (False, True)):
        current, v, options = make(Case(bias="rows", schedule="lagged", last=last), shape, 3)
        got = run(cpp.integrate_and_fire, current, v, options)
        assert same(got, run(reference.integrate_and_fire, current, v, options))


@pytest.mark.parametrize("kernel", EVERY)
@pytest.mark.parametrize("case", [Case(bias="rows"), Case(signed=True, levels=2)], ids=str)
def test_two_chunks_in_place_are_one(kernel, case):
    current, v, o = make(case, (2, 8, 3, 5), 9)
    v_after, sent = v.clone(), None if o["emitted"] is None else o["emitted"].clone()
    parts = []
    for part in (slice(0, 4), slice(4, 9)):
        of_part = {"shortcut": o["shortcut"][part], "counts": o["counts"][part]}
        if case.bias == "rows":
            of_part["bias"] = o["bias"][part]
        if sent is not None:
            of_part |= {"emitted": sent, "emitted_after": sent}
        spikes, _ = kernel.integrate_and_fire(current[part], v_after, Update(**{**o, **of_part, "after": v_after}))
        parts.append(spikes)
    want, membrane = reference.integrate_and_fire(current, v, Update(**{**o, "counts": None}))
    assert torch.equal(torch.cat(parts), want) and torch.equal(v_after, membrane)
    assert sent is None or torch.equal(sent, o["emitted"] + want.sum(0))


@pytest.mark.parametrize("kernel", [pytest.param(reference, id="reference"), *FAST])
def test_no_steps_leave_the_membrane(kernel):
    for schedule in ("streaming", "lagged", "phased"):
        current, v, o = make(Case(signed=True, schedule=schedule, results="given", counted=False), (2, 8, 3, 5), 3)
        none = {"shortcut": o["shortcut"][:0]}
        spikes, after = kernel.integrate_and_fire(current[:0], v, Update(**{**o, **none}))
        assert len(spikes) == 0 and torch.equal(after, v) and after is not v
        assert torch.equal(o["emitted_after"], o["emitted"])


@pytest.mark.parametrize("kernel", [pytest.param(reference, id="reference"), *FAST])
def test_results_may_lie_unlike_the_membrane(kernel):
    current, v, o = make(Case(schedule="lagged", signed=True), (2, 8, 3, 5), 4)
    kernel = kernels if kernel is cpp else kernel  # the C++ does not take them
    rooms = {name: torch.empty(2, 8, 3, 10)[..., ::2] for name in ("after", "emitted_after")}
    spikes, after = kernel.integrate_and_fire(current, v, Update(**{**o, **rooms}))
    want, membrane = reference.integrate_and_fire(current, v, Update(**o))
    assert after is rooms["after"] and torch.equal(after, membrane) and torch.equal(spikes, want)
    assert torch.equal(rooms["emitted_after"], o["emitted"] + want.sum(0))


@COMPILED
@pytest.mark.parametrize("schedule", ["streaming", "lagged", "phased"])
@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("in_place", [False, True])
def test_the_neurons_of_an_event_driven_convolution(schedule, rows, in_place):
    generator = torch.Generator().manual_seed(1)
    spikes = (torch.rand(6, 5, 4, 8, generator=generator) < 0.4).to(torch.uint8)
    weight = torch.randint(-9, 12, (40, 5, 3, 3), generator=generator) / 8
    currents = events.Currents(events.find(spikes), events.pack(weight, (1, 1), (1, 1), (4, 8)), 3)
    bias = torch.randint(-9, 12, (3, 1, 40, 1, 1) if rows else (40, 1, 1), generator=generator) / 8
    options = {"threshold": torch.tensor(1.5), "bias": bias, "schedule": schedule}
    v = torch.zeros_like(currents.empty()) + 0.5
    want = reference.integrate_and_fire(currents.tensor(), v, Update(**options))
    got = kernels.integrate_and_fire(currents, v, Update(**options, after=v if in_place else None))
    assert all(map(torch.equal, got, want)) and 0.1 < want[0].mean() < 0.9
    assert torch.equal(v, want[1] if in_place else torch.full_like(v, 0.5)) and (got[1] is v) == in_place


# ---- what is refused, by every kernel alike ----


@pytest.mark.parametrize("kernel", EVERY)
@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda v: {"schedule": "later"}, "schedule, got 'later'"),
        (lambda v: {"schedule": "lagged", "decay": 0.5}, "decay, got 0.5 for a lagged"),
        (lambda v: {"schedule": "phased", "decay": 2.0}, "decay, got 2.0 for a phased"),
        (lambda v: {"bias": torch.zeros(2, 1, 3, 1, 1)}, r"bias, got \[2, 1, 3, 1, 1\]"),
        (lambda v: {"bias": torch.zeros(1, 4, 1, 3, 1, 1)}, "bias, got"),
        (lambda v: {"after": v[:1]}, r"after, got torch.float32 \[1, 3"),
        (lambda v: {"after": v.double()}, "after, got torch.float64"),
        (lambda v: {"after": torch.empty_like(v, device="meta")}, "after, got .*on meta"),
        (lambda v: {"after": v[:, :1].expand_as(v)}, "after, got strides"),
        (lambda v: {"emitted_after": v.clone()}, "emitted_after, got a tensor without emitted"),
        (lambda v: {"emitted": v, "emitted_after": v[0]}, "emitted_after, got"),
    ],
)
def test_what_no_kernel_takes_is_named(kernel, change, match):
    v = torch.zeros(2, 3, 4, 4)
    with pytest.raises(InvalidData, match=f"^kernel: {match}") as caught:
        kernel.integrate_and_fire(torch.ones(4, *v.shape), v, Update(**{"threshold": torch.tensor(1.0), **change(v)}))
    assert "\n" not in str(caught.value)


# ---- the neuron ----


OPS = {
    "plain": Neuron(torch.tensor([0.5, 1.0, 2.0]), 0.5),
    "lagged": Neuron(torch.tensor([0.5, 1.0, 2.0]), 0.5, schedule="lagged"),
    "phased": Neuron(torch.tensor(0.75), 0.5, schedule="phased"),
    "signed": Neuron(torch.tensor(0.75), 0.5, schedule="lagged", spikes=Signed()),
    "levels": Neuron(torch.tensor(0.75), 0.5, spikes=Amplitudes(3, True)),
    "firing": Neuron(torch.tensor(0.5), spikes=MultiThreshold(torch.tensor([0.5, 1.0, 1.5]))),
    "differential": Neuron(torch.tensor(0.5), 0.5, spikes=Differential(3)),
}


@pytest.mark.parametrize("name", OPS)
def test_memory_is_left_alone_or_overwritten_as_one_asks(name):
    op = OPS[name]
    generator = torch.Generator().manual_seed(2)
    current = torch.randint(-40, 80, (5, 2, 3, 4, 4), generator=generator) / 32
    rows = torch.randint(-8, 9, (5, 1, 3, 1, 1), generator=generator) / 32
    spikes, memory = op.advance([current], None, bias=rows)
    kept = [part.clone() for part in memory]
    more, end = op.advance([current], memory, bias=rows)
    assert all(map(torch.equal, memory, kept)) and spikes.any() and more.any()
    assert not any(a is b for a, b in zip(memory, end, strict=True))
    again, over = op.advance([current], memory, bias=rows, how=Execution(in_place=True))
    assert torch.equal(again, more) and all(map(torch.equal, over, end))
    if name != "differential":
        assert all(a is b for a, b in zip(memory, over, strict=True))


def test_each_membrane_of_several_thresholds_fires_as_it_would_alone():
    op = OPS["firing"]
    current = torch.randint(-40, 80, (5, 2, 3, 4, 4), generator=torch.Generator().manual_seed(3)) / 32
    spikes, memory = op.advance([current], None)
    alone = [replace(op, threshold=one, spikes=Binary()).advance([current], None) for one in op.thresholds]
    assert torch.equal(spikes, sum(part for part, _ in alone))
    assert all(torch.equal(v, mine) for v, (_, (mine,)) in zip(memory, alone, strict=True))
