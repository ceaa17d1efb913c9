"""Neurons that are trained: values by hand, the reference's gradients against what they stand for, the fused ones
against the reference's. The CUDA source: test_surrogate_cuda.py."""

import itertools
import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from s_resnet.errors import InvalidData
from s_resnet.kernels.build import compiler
from s_resnet.kernels.surrogate import cpp, reference
from s_resnet.kernels.surrogate.fire import fire
from s_resnet.kernels.surrogate.reference import Firing, fire_reference, slope

SURROGATES = ("rectangle", "triangle", "arctan", "sigmoid")
THRESHOLDS = (0.5, 1.25, 2.0)
MS_RESNET = {"thresholds": (0.5,), "decay": 0.25, "reset": "zero"}
MLF = {"thresholds": (0.6, 1.6, 2.6), "decay": 0.25, "reset": "zero", "detach_reset": False}
needs_compiler = pytest.mark.skipif(compiler.compiled()[0] is None, reason=compiler.compiled()[1])


@pytest.fixture(params=["compiled", "torch"])
def path(request, monkeypatch):
    """Both ways that fire goes on the CPU."""
    if request.param == "torch":
        monkeypatch.setattr(compiler, "compiled", lambda: (None, "no compiler, for a test"))
    elif compiler.compiled()[0] is None:
        pytest.skip(compiler.compiled()[1])
    return request.param


def make(shape, dtype=torch.float64, seed=0, dyadic=False):
    """Currents that reach all three thresholds now and then, and gradients of their spikes."""
    generator = torch.Generator().manual_seed(seed)
    current, grad = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    current = current * 1.2 + 0.3
    current = (current * 256).round() / 256 if dyadic else current
    return current.to(dtype), grad.to(dtype)


def gradient(function, current, grad, **neuron):
    leaf = current.clone(memory_format=torch.preserve_format).requires_grad_()
    (found,) = torch.autograd.grad(function(leaf, Firing(**neuron)), leaf, grad)
    return found


def cases():
    return itertools.product(SURROGATES, ("subtract", "zero"), (True, False), (1, 3), (1, 4, 7))


# ---- by hand ----


def test_a_trace_of_ms_resnet_by_hand(path):
    """u = 0.25 w + I: 0.5 fires at equality; 0.25 is kept; 0.0625 + 0.4375 fires again; -1; 0.5 - 0.25; 1 fires."""
    current = torch.tensor([0.5, 0.25, 0.4375, -1.0, 0.5, 0.9375])[:, None].requires_grad_()
    spikes = fire(current, Firing(**MS_RESNET))
    assert spikes.flatten().tolist() == [1, 0, 1, 0, 0, 1]
    # The rectangle is 1 for 0 < u < 1: not for -1, nor for 1. Back: d[t] = g + 0.25 d[t+1] where none fired.
    (grad,) = torch.autograd.grad(spikes.sum(), current)
    assert grad.flatten().tolist() == [1, 1.25, 1, 0.25, 1, 0]


def test_a_trace_of_reset_by_subtraction_by_hand(path):
    """Charge stays: u = 1.5, 1.5 - 1 + 0.25 = 0.75, 1 which fires. Undetached, each reset takes a gradient back."""
    current = torch.tensor([1.5, 0.25, 0.25])[:, None].requires_grad_()
    detached, through = (
        fire(current, Firing(thresholds=(1.0,), surrogate="triangle", detach_reset=detach)) for detach in (True, False)
    )
    assert detached.flatten().tolist() == through.flatten().tolist() == [1, 0, 1]
    # The triangle's heights are 0.5, 0.75 and 1.
    assert torch.autograd.grad(detached.sum(), current)[0].flatten().tolist() == [2.25, 1.75, 1]
    # d[3] = 1; d[2] = (1 - 1) * 0.75 + 1; d[1] = (1 - 1) * 0.5 + 1.
    assert torch.autograd.grad(through.sum(), current)[0].flatten().tolist() == [1, 1, 1]


def test_levels_have_membranes_of_their_own(path):
    """1.7 is two spikes; the third level keeps a quarter of it, 0.425, and so it alone needs more than 2.2 to fire."""
    current = torch.tensor([1.7, 2.2])[:, None].double().requires_grad_()
    spikes = fire(current, Firing(**MLF))
    assert spikes.flatten().tolist() == [2, 3]
    # Step 2: u = 2.2, 2.2, 2.625, and of the windows around 0.6, 1.6 and 2.6 only the last has its own: 1.
    # Step 1: u = 1.7 lies in the second window: 1. The third level did not fire and hands a quarter of step 2 on.
    (grad,) = torch.autograd.grad(spikes.sum(), current)
    assert torch.allclose(grad.flatten(), torch.tensor([1.25, 1.0], dtype=torch.float64))


def test_the_membrane_begins_where_it_is_told_to(path):
    assert fire(torch.tensor([[0.25]]), Firing(thresholds=(0.5,), initial=0.25)).item() == 1
    assert fire(torch.tensor([[0.25]]), Firing(thresholds=(0.5,), initial=0.25, decay=0.5)).item() == 0


# ---- the reference: its slopes are derivatives of what they stand for ----


ANTIDERIVATIVES = {
    "rectangle": lambda x, a: (x / a).clamp(-0.5, 0.5),
    "triangle": lambda x, a: (x / a).clamp(-1, 1) - (x / a).clamp(-1, 1).abs() * (x / a).clamp(-1, 1) / 2,
    "arctan": lambda x, a: torch.atan(math.pi / 2 * a * x) / math.pi,
    "sigmoid": lambda x, a: torch.sigmoid(a * x),
}


@pytest.mark.parametrize("kind", SURROGATES)
@pytest.mark.parametrize("width", [0.5, 1.0, 4.0])
def test_a_slope_is_the_derivative_of_a_smooth_step(kind, width):
    h, step = 1e-5, ANTIDERIVATIVES[kind]
    # No multiple of a half or a quarter, where the first two have their corners.
    x = torch.arange(-30, 30, dtype=torch.float64) / 7 + 0.01
    numeric = (step(x + h, width) - step(x - h, width)) / (2 * h)
    assert torch.allclose(slope(x, Firing((1.0,), surrogate=kind, width=width)), numeric, atol=1e-8)
    ends = step(torch.tensor([1e9, -1e9], dtype=torch.float64), width)
    assert (ends[0] - ends[1] - 1).abs() < 1e-8  # the area under it


@pytest.mark.parametrize("kind", SURROGATES)
def test_the_reference_of_one_step_has_the_slope_as_its_gradient(kind):
    current, _ = make((1, 500))
    found = gradient(fire_reference, current, torch.ones_like(current), thresholds=(0.75,), surrogate=kind, width=1.5)
    assert torch.equal(found, slope(current - 0.75, Firing((0.75,), surrogate=kind, width=1.5)))


def test_detached_resets_are_what_makes_the_difference():
    current, grad = make((4, 50))
    for reset in ("subtract", "zero"):
        neuron = {"thresholds": (0.5,), "reset": reset}
        same = [torch.equal(
            gradient(fire_reference, current[:t], grad[:t], **neuron),
            gradient(fire_reference, current[:t], grad[:t], **neuron, detach_reset=False)) for t in (1, 4)]  # fmt: skip
        assert same == [True, False]


# ---- fused against the reference ----


def test_fused_gradients_are_those_of_autograd_through_the_reference(path):
    for i, (kind, reset, detach, levels, steps) in enumerate(cases()):
        neuron = {"thresholds": THRESHOLDS[:levels], "decay": (0.25, 1.0)[i % 2], "reset": reset, "surrogate": kind,
                  "width": (1.0, 1.7)[i % 2], "detach_reset": detach, "initial": (0.0, 0.3)[i % 2]}  # fmt: skip
        current, grad = make((steps, 2, 3, 5, 7), seed=i)
        want, got = (gradient(function, current, grad, **neuron) for function in (fire_reference, fire))
        assert want.norm() > 0 and (got - want).norm() <= 1e-10 * want.norm(), neuron
        assert ((got - want).abs() <= 1e-10 * want.abs().clamp(min=1e-3)).all(), neuron
        assert torch.equal(fire(current, Firing(**neuron)), fire_reference(current, Firing(**neuron)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_dyadic_spikes_are_equal_bit_for_bit(path, dtype):
    for i, (kind, reset, detach, levels, steps) in enumerate(cases()):
        if kind == "rectangle":
            neuron = {"thresholds": THRESHOLDS[:levels], "decay": 0.5, "reset": reset, "detach_reset": detach}
            current, _ = make((steps, 3, 70), dtype, seed=i, dyadic=True)
            got, want = fire(current, Firing(**neuron)), fire_reference(current, Firing(**neuron))
            assert torch.equal(got, want) and got.dtype == dtype
            assert set(want.unique().tolist()) == set(range(levels + 1)) or steps == 1


@pytest.mark.parametrize("kind", SURROGATES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_narrow_gradients_are_as_near_as_plain_torch(path, kind, dtype):
    """Currents and gradients of spikes are the same numbers in every type; the oracle is in float64."""
    current, grad = (x.to(dtype) for x in make((6, 4000), torch.float32, dyadic=True))
    for neuron in (MS_RESNET, MLF):
        neuron = {**neuron, "thresholds": tuple(round(t * 4) / 4 for t in neuron["thresholds"]), "surrogate": kind}
        oracle = gradient(fire_reference, current.double(), grad.double(), **neuron)
        errors = [(gradient(f, current, grad, **neuron).double() - oracle).norm() for f in (fire, fire_reference)]
        assert errors[0] <= 2 * errors[1] + 1e-7 * oracle.norm()
        assert gradient(fire, current, grad, **neuron).dtype == dtype


@needs_compiler
@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    st.sampled_from(SURROGATES), st.sampled_from(["subtract", "zero"]), st.booleans(),
    st.lists(st.floats(0.1, 3), min_size=1, max_size=8), st.integers(1, 40), st.integers(1, 300),
    st.floats(0, 1), st.floats(0.2, 5), st.floats(-1, 1),
)  # fmt: skip
def test_any_neuron(kind, reset, detach, thresholds, steps, neurons, decay, width, initial):
    current, grad = make((steps, 1, neurons), seed=neurons)
    neuron = {"thresholds": tuple(thresholds), "decay": decay, "reset": reset, "surrogate": kind, "width": width,
              "detach_reset": detach, "initial": initial}  # fmt: skip
    assert torch.equal(fire(current, Firing(**neuron)), fire_reference(current, Firing(**neuron)))
    want, got = (gradient(function, current, grad, **neuron) for function in (fire_reference, fire))
    assert (got - want).norm() <= 1e-10 * want.norm()


@needs_compiler
def test_the_exponential_is_right_where_it_is_small_and_0_beyond():
    """Steepness 100: from heights down to denormals, against float64's own exponential."""
    current, exact = (torch.linspace(-9, 10, 20001, dtype=dtype)[None] for dtype in (torch.float32, torch.float64))
    neuron = {"thresholds": (0.5,), "surrogate": "sigmoid", "width": 100.0}
    for x, tolerance in ((exact, 1e-12), (current, 1e-5)):
        got = gradient(fire, x, torch.ones_like(x), **neuron).double()
        want = slope(x.double() - 0.5, Firing((0.5,), surrogate="sigmoid", width=100.0))
        assert ((got - want).abs() <= tolerance * want + 2e-36).all()


@needs_compiler
def test_what_is_not_a_number_is_not_hidden():
    """A training run that diverges is seen by its gradients."""
    current, grad = make((3, 40))
    current[1, 7] = math.nan
    for kind in ("triangle", "arctan", "sigmoid"):
        neuron = {"thresholds": (0.5,), "surrogate": kind, "reset": "subtract", "detach_reset": False}
        found = gradient(fire, current, grad, **neuron)
        assert found[:2, 7].isnan().all()
        assert found[:, torch.arange(40) != 7].isfinite().all()
    assert torch.equal(fire(current, Firing(thresholds=(0.5,))), fire_reference(current, Firing(thresholds=(0.5,))))


# ---- memory ----


def saved_bytes(function, current):
    """What autograd keeps between forward and backward, every tensor once."""
    found = {}

    def pack(tensor):
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        kept.append(tensor)
        return tensor

    kept, leaf = [], current.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function(leaf)
    return sum(found.values())


def test_the_current_is_all_that_is_kept(path):
    for steps, neuron in itertools.product((1, 4, 16), (MS_RESNET, MLF)):
        current, _ = make((steps, 2, 8), torch.float32)
        assert saved_bytes(partial(fire, firing=Firing(**neuron)), current) == current.numel() * 4
    assert (
        saved_bytes(partial(fire_reference, firing=Firing(**MLF)), current) > 4 * current.numel() * 4
    )  # the count sees what there is
    narrow = current.bfloat16()
    assert saved_bytes(partial(fire, firing=Firing(**MLF)), narrow) == narrow.numel() * 2


def test_without_gradients_nothing_is_kept(path):
    current, _ = make((3, 2, 8))
    assert not fire(current, Firing(**MLF)).requires_grad
    with torch.no_grad():
        assert not fire(current.requires_grad_(), Firing(**MLF)).requires_grad


# ---- layouts ----


def layouts():
    current, grad = make((4, 2, 6, 5, 3))
    last = (x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3) for x in (current, grad))
    yield "contiguous", current, grad
    yield "channels_last", *last
    yield "channels_last current, contiguous gradient", last_of(current), grad
    yield "the same current at every step", current[:1].expand(4, 2, 6, 5, 3), grad
    yield "every other image", make((4, 4, 6, 5, 3))[0][:, ::2], grad
    yield "every other step", make((8, 2, 6, 5, 3))[0][::2], grad
    yield "steps backwards in memory", current.transpose(0, 1).contiguous().transpose(0, 1), grad
    yield "one gradient for all", current, torch.ones(()).double().expand_as(current)
    yield "one gradient for all steps", current, grad[:1].expand_as(current)
    yield "no space", *(x[:, :, 0, 0, 0] for x in (current, grad))


def last_of(x):
    return x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)


@pytest.mark.parametrize(("name", "current", "grad"), list(layouts()), ids=[name for name, *_ in layouts()])
def test_any_layout(name, current, grad):
    leaf, plain = current.detach().requires_grad_(), current.detach().contiguous().requires_grad_()
    spikes, want = fire(leaf, Firing(**MLF)), fire_reference(plain, Firing(**MLF))
    assert torch.equal(spikes, want)
    got = torch.autograd.grad(spikes, leaf, grad)[0]
    assert torch.allclose(got, torch.autograd.grad(want, plain, grad)[0], rtol=1e-10, atol=1e-12)
    if "channels_last" in name and compiler.compiled()[0] is not None:
        assert all(x.flatten(0, 1).is_contiguous(memory_format=torch.channels_last) for x in (spikes, got))


def test_no_images_are_no_error(path):
    leaf = torch.zeros(4, 0, 3).requires_grad_()
    spikes = fire(leaf, Firing(**MS_RESNET))
    spikes.sum().backward()
    assert spikes.shape == leaf.grad.shape == (4, 0, 3)


@needs_compiler
def test_threads_share_the_blocks(monkeypatch):
    current, grad = make((4, 3, 5000), torch.float32)
    want = gradient(fire, current, grad, **MLF)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(gradient(fire, current, grad, **MLF), want)


def test_the_current_must_stay_as_it_was(path):
    leaf = torch.ones(2, 3, requires_grad=True)
    current = leaf * 2
    spikes = fire(current, Firing(**MS_RESNET))
    current.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        spikes.sum().backward()


def test_a_gradient_of_the_gradient_is_refused(path):
    leaf = torch.ones(2, 3, requires_grad=True)
    (grad,) = torch.autograd.grad(fire(leaf * 0.5, Firing(**MS_RESNET)).sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError):
        grad.sum().backward()


@needs_compiler
def test_the_layer_is_laid_out_as_in_the_source():
    text = (compiler.HERE / "surrogate.cpp").read_text()
    body = text[text.index("struct Firing {") : text.index("};", text.index("struct Firing {"))]
    fields = [line.split("//")[0].strip() for line in body.splitlines()[1:]]
    names = [n.strip(" *;") for line in fields for n in line.replace("const ", "").partition(" ")[2].split(",")]
    assert [name.partition("[")[0] for name in names] == [name for name, _ in cpp.Layer._fields_]
    header = (compiler.HERE / "surrogate.h").read_text()
    assert f"enum Surrogate {{ {', '.join(reference.SURROGATES).upper()} }};" in header


# ---- bad input ----


@pytest.mark.parametrize("function", [fire, fire_reference])
@pytest.mark.parametrize(
    ("current", "wrong", "match"),
    [
        (torch.ones(2, 3, dtype=torch.int64), {}, "current, got torch.int64"),
        (torch.ones(2, 3, dtype=torch.complex64), {}, "current, got torch.complex64"),
        (torch.ones(3), {}, r"current, got \[3\]; expected \[T, B, \*\]"),
        (torch.ones(0, 2, 3), {}, r"current, got \[0, 2, 3\]"),
        (torch.ones(2, 3), {"thresholds": ()}, r"thresholds, got \(\)"),
        (torch.ones(2, 3), {"thresholds": (0.5,) * 9}, "thresholds"),
        (torch.ones(2, 3), {"thresholds": (0.5, 0.0)}, r"thresholds, got \(0.5, 0.0\)"),
        (torch.ones(2, 3), {"thresholds": (-0.5,)}, "thresholds"),
        (torch.ones(2, 3), {"thresholds": (math.nan,)}, "thresholds"),
        (torch.ones(2, 3), {"thresholds": (math.inf,)}, "thresholds"),
        (torch.ones(2, 3), {"surrogate": "rect"}, "surrogate, got 'rect'; expected one of rectangle, triangle"),
        (torch.ones(2, 3), {"reset": "hard"}, "reset, got 'hard'"),
        (torch.ones(2, 3), {"width": 0.0}, "width, got 0.0"),
        (torch.ones(2, 3), {"decay": 1.5}, "decay, got 1.5"),
        (torch.ones(2, 3), {"decay": math.nan}, "decay"),
        (torch.ones(2, 3), {"initial": math.inf}, "initial, got inf"),
    ],
)
def test_bad_input(function, current, wrong, match):
    with pytest.raises(InvalidData, match=match) as error:
        function(current, Firing(**{"thresholds": (0.5,), **wrong}))
    assert "\n" not in str(error.value) and str(error.value).startswith("fire: ")
