"""How float32 is multiplied: exactly where a simulation says so, whatever the caller has set, and will find again."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_engine import by_steps, network, node, pictures, run

from s_resnet import Graph
from s_resnet.graph import Neuron, Readout, StreamSettings
from s_resnet.graph.ops import Flatten, Input, Linear

ONE = torch.tensor(1.0)

# ---- the caller's settings ----

PROGRAM = '''
import itertools, os, sys, warnings
import torch
from types import SimpleNamespace
from s_resnet.graph.engine import arithmetic

every, cudnn, onednn = torch.backends, torch.backends.cudnn, torch.backends.mkldnn
product = torch.backends.cuda.matmul


def new(owner, value):
    return lambda: setattr(owner, "fp32_precision", value)


def old(owner, value):
    return lambda: setattr(owner, "allow_tf32", value)


ACTS = [
    *(new(owner, value) for owner in (every, cudnn, cudnn.conv, product) for value in ("tf32", "ieee", "none")),
    *(new(owner, "bf16") for owner in (every, onednn.conv, onednn.matmul)),
    *(old(owner, value) for owner in (cudnn, product) for value in (True, False)),
    *((lambda name=name: torch.set_float32_matmul_precision(name)) for name in ("high", "medium", "highest")),
]


def read():
    """All that can be seen of the settings; what raises says so."""
    seen = []
    for owner, name in (
        *((owner, "fp32_precision") for owner in (every, cudnn, cudnn.conv, cudnn.rnn, product)),
        *((owner, "fp32_precision") for owner in (onednn.conv, onednn.matmul)),
        *((owner, "allow_tf32") for owner in (cudnn, product)), (cudnn, "benchmark"), (cudnn, "enabled"),
    ):
        try:
            seen.append(getattr(owner, name))
        except RuntimeError:
            seen.append("raises")
    return seen


def story(acts, kind, tf32):
    """What is seen after the acts and, if there is a kind, a use; then after every change of what stands above."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the old flags
        for act in acts:
            try:
                act()
            except RuntimeError:
                pass
    if kind is not None:
        images = SimpleNamespace(device=torch.device(kind))
        try:
            with arithmetic(images, tf32, True):
                if kind == "cuda":
                    assert (cudnn.conv.fp32_precision == "tf32") == tf32, "convolutions"
                    assert product.fp32_precision in ("ieee", "none"), "products"
                    assert cudnn.benchmark and cudnn.enabled
                else:
                    assert {onednn.conv.fp32_precision, onednn.matmul.fp32_precision} <= {"ieee", "none"}
                1 / 0
        except ZeroDivisionError:
            pass
    found = [read()]
    for owner in (every, cudnn):
        before = torch.backends.fp32_precision
        for value in ("tf32", "ieee", "none"):
            owner.fp32_precision = value
            found.append(read())
    return repr(found)


def apart(*given):
    """In a process of its own: what was never set cannot be made so again."""
    reads, writes = os.pipe()
    if os.fork() == 0:
        os.close(reads)
        try:
            text = story(*given)
        except BaseException as error:
            text = repr(error)
        with os.fdopen(writes, "w") as file:
            file.write(text)
        os._exit(0)
    os.close(writes)
    with os.fdopen(reads) as file:
        text = file.read()
    os.wait()
    return text


warnings.simplefilter("error")
pairs = list(itertools.product(range(len(ACTS)), repeat=2))
chosen = [(), *((a,) for a in range(len(ACTS))), *pairs[:: int(sys.argv[1])]]
wrong = 0
for numbers in chosen:
    acts = [ACTS[number] for number in numbers]
    want = apart(acts, None, None)
    for given in (("cuda", False), ("cuda", True), ("cpu", False)):
        got = apart(acts, *given)
        if got != want:
            wrong += 1
            print(numbers, given, got, want)
print(len(chosen), "stories", wrong, "wrong")
'''


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_settings_made_in_any_order_do_not_matter_and_are_back_afterwards():
    """Also after an error; the flags can be set and read without a GPU. All 484 pairs were right, on torch 2.11 too."""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", PROGRAM, "97"], capture_output=True, text=True, cwd=root, timeout=600)
    assert done.stdout.splitlines()[-1:] == ["28 stories 0 wrong"], done.stdout[-2000:] + done.stderr[-2000:]


def wide():
    """A classifier of many inputs behind a layer of neurons, which torch would shorten."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(1000, 2048, generator=generator)
    ops = [Input(), Neuron(ONE, 0.5), Flatten(), Linear(weight, None), Readout(ONE)]
    snn = Graph(tuple(node(str(i), op, *([str(i - 1)] if i else [])) for i, op in enumerate(ops))).validate()
    return snn, torch.rand(64, 2, 32, 32, generator=generator)


def test_the_classifier_is_exact_whatever_the_caller_has_set():
    snn, images = wide()
    want, analog = run(snn, images, 4, 2), snn.run(images)
    assert (want.outputs.double() - by_steps(snn, images, 4)[0]).norm() <= 1e-6 * want.outputs.double().norm()
    seen, products = [], torch.backends.mkldnn.matmul
    torch.set_float32_matmul_precision("medium")
    try:
        for part in snn.stream(
            images, 4, 2, settings=StreamSettings(observe=lambda *_: seen.append(products.fp32_precision))
        ):
            assert torch.get_float32_matmul_precision() == "medium" and products.fp32_precision == "bf16"
            step = part.state.step
            assert torch.equal(part.outputs, want.outputs[step - 2 : step])
        assert torch.equal(snn.run(images), analog)
        with pytest.raises(ZeroDivisionError):
            list(snn.stream(images, 4, settings=StreamSettings(observe=lambda *_: 1 / 0)))
        assert products.fp32_precision == "bf16"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert len(seen) >= 8 and set(seen) <= {"ieee", "none"}


@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_autocast_of_the_callers_is_out_of_force(precision):
    snn, images = network("two readers"), pictures(3)
    want, analog = run(snn, images, precision=precision), snn.run(images)
    with torch.autocast("cpu", torch.bfloat16):
        got = run(snn, images, precision=precision)
        assert torch.equal(snn.run(images), analog)
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(got.outputs, want.outputs)
