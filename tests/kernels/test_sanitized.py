"""The C++ kernels under AddressSanitizer and UndefinedBehaviorSanitizer: what the tests of the kernels give them, and
hostile files. In a process of their own, which ends at the first mistake."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import sanitized

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or sanitized.compiler() is None, reason="no g++ with the sanitizers' libraries"
)


# Every kernel at sizes that end within a vector, a block and a line.
CASES = """
import itertools, torch
from membrane_cases import EVERY, SHAPES, make, run, same
from s_resnet import kernels
from s_resnet.kernels import Update, events
from s_resnet.kernels.membrane import reference
from s_resnet.kernels.surrogate.fire import fire
from s_resnet.kernels.surrogate.reference import Firing
from s_resnet.kernels.surrogate.cpp import normalized_gradient, sums
torch.set_num_threads(2)
checked = 0
for index, case in enumerate(EVERY):
    for shape in SHAPES[index % 3 :: 3]:
        current, v, settings = make(case, shape, (1, 7)[index % 2])
        both = (kernels.integrate_and_fire, reference.integrate_and_fire)
        assert same(*(run(kernel, current, v, settings) for kernel in both)), (case, shape)
        checked += 1
for (c, h, w, out), kernel, stride, precision in itertools.product(
    ((1, 1, 1, 1), (3, 5, 7, 5), (16, 9, 6, 40), (2, 3, 64, 130)), (1, 3), (1, 2), ("exact", "fast")
):
    spikes = (torch.rand(4, c, h, w) < 0.6).to(torch.uint8)
    weight = torch.randint(-8, 8, (out, c, kernel, kernel)) / 8
    packed = events.pack(weight, (stride, stride), (kernel // 2, kernel // 2), (h, w), precision)
    current = events.Currents(events.find(spikes), packed, 2)
    dense = torch.conv2d(spikes.float(), weight, None, stride, kernel // 2).view(2, 2, out, *packed.out_size)
    if precision == "exact":
        assert torch.equal(current.tensor(), dense)
    v = torch.zeros(2, out, *packed.out_size).contiguous(memory_format=torch.channels_last)
    counts = torch.zeros(2, 2, dtype=torch.int32)
    update = Update(torch.ones(()), spike_dtype=torch.uint8, counts=counts)
    fired, _ = events.integrate_and_fire(current, v, update)
    assert int(counts.sum()) == int(fired.sum())
    checked += 1
names = ("rectangle", "triangle", "arctan", "sigmoid")
for shape, dtype in itertools.product(((3, 2, 5), (4, 1, 7, 3, 3)), (torch.float32, torch.float64)):
    current = torch.randn(shape, dtype=dtype, requires_grad=True)
    for name, thresholds in itertools.product(names, ((0.5,), (0.6, 1.6, 2.6))):
        fire(current, Firing(thresholds, decay=0.5, surrogate=name)).sum().backward()
        checked += 1
    p = torch.randn(shape[1:], dtype=dtype)
    sums(p, p.clone())
    normalized_gradient(p, p.clone(), torch.ones(4, p.shape[1], dtype=dtype))
print("cases:", checked, flush=True)
"""
HOSTILE = """
import random, sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
import torch, mutations
from test_hostile import converted, trained
torch.set_num_threads(1)
folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
kept = {"plain": converted(), "int8": converted("phased", weights="int8"), "ms_resnet8": trained("ms_resnet8", 3)[1]}
reader = mutations.snn(folder, kept)
ends = [mutations.tried(reader, mutations.mutated(reader, folder, random.Random(seed))) for seed in range(60)]
print("hostile files:", len(ends), ends.count("accepted") > 3, flush=True)
"""
# Spikes of two channels through a weight of one, as no check would let through: a read beyond the rows.
MISTAKE = """
import torch
from s_resnet.kernels import events
events._check_fit = lambda *_: None
found = events.find(torch.ones(2, 16, 8, 8, dtype=torch.uint8))
events.conv2d(found, events.pack(torch.ones(4, 1, 3, 3), (1, 1), (1, 1), (8, 8)))
print("unseen", flush=True)
"""


def test_the_kernels_touch_no_memory_that_is_not_theirs(tmp_path):
    """One process, since it takes seconds to begin; last it makes a mistake, which would be seen as any before it."""
    environment = {
        **os.environ,
        **sanitized.environment(),
        "PYTHONPATH": os.pathsep.join(map(str, (HERE.parents[1], HERE.parent, *HERE.parent.iterdir()))),
    }
    library = sanitized.compiled_in(Path(os.environ["XDG_CACHE_HOME"]) / "sanitized", environment["CXX"])
    words = f"import sanitized; sanitized.load({str(library)!r})\n" + CASES + HOSTILE + MISTAKE
    done = subprocess.run(
        [sys.executable, "-c", words], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert re.fullmatch(r"cases: [1-9]\d\d\nhostile files: 60 True\n", done.stdout), done.stderr[-3000:]
    assert done.returncode != 0 and "AddressSanitizer" in done.stderr
