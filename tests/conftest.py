"""Small networks and images that several test files share."""

import contextlib
import gc
import importlib.util
import math
import os
import random
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from s_resnet.frontend.weights.architectures import choose, parse
from s_resnet.kernels.build import compiler
from s_resnet.models.planned_resnet import PlannedResNet

# Kernels that the tests compile stay out of the user's cache, and are there for the next run.
os.environ["XDG_CACHE_HOME"] = str(Path(__file__).resolve().parents[1] / ".pytest_cache" / "compiled")
os.environ["TRITON_CACHE_DIR"] = os.path.join(os.environ["XDG_CACHE_HOME"], "triton")
FIXTURES = Path(__file__).resolve().parents[2] / "shared" / "fixtures"
needs_fixtures = pytest.mark.skipif(not FIXTURES.is_dir(), reason=f"no {FIXTURES}")


SEED = 0


def pytest_configure(config):
    """The kernels are compiled before the workers start, each of which would do it."""
    if getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput"):
        compiler.compiled()


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """The modules and thousands of tests live to the end: the garbage collector need not look at them again and again.

    That takes a third of the time of collection, and a part of that of every test.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """Whatever a test and its fixtures draw without a generator is the same alone, after others and in any worker."""
    torch.manual_seed(SEED)
    random.seed(SEED)


@pytest.fixture(autouse=True)
def no_lines_in_the_log(monkeypatch):
    """What a test finds on stderr does not depend on how slow the machine is; test_progress.py has its own clock."""
    monkeypatch.setattr("s_resnet.runtime.progress.EVERY", math.inf)


@contextlib.contextmanager
def case(*what):
    """One of the cases that a test goes through; what fails there says which. Thousands of tests take seconds."""
    try:
        yield
    except Exception as error:
        error.add_note(f"case: {', '.join(map(str, what))}")
        raise


@pytest.fixture
def few_digits(monkeypatch):
    """A part of scikit-learn's digits, for those who train on them: 500 are held out, a fifth of the others is left.

    And no processes that decode them, of which two would start for every epoch.
    """
    from sklearn import datasets

    every = datasets.load_digits()
    few = SimpleNamespace(images=every.images[:760], target=every.target[:760])
    monkeypatch.setattr(datasets, "load_digits", lambda: few)
    monkeypatch.setattr("s_resnet.training.run.usual_workers", lambda device: 0)
    monkeypatch.setattr("s_resnet.data.loader.FEW", 1000)


@pytest.fixture
def unrendered(monkeypatch):
    """Charts are drawn, but neither laid out nor rendered, which takes most of a page's time; files are written."""
    if importlib.util.find_spec("matplotlib") is None:
        return
    from matplotlib.figure import Figure

    whole = Figure.savefig

    def save(self, file, **options):
        return file.write(b"<svg/>") if hasattr(file, "write") else whole(self, file, **options)

    monkeypatch.setattr(Figure, "savefig", save)


def randomized(model, seed=0):
    """The model in eval mode with seeded weights and BatchNorm statistics: no two tensors are alike."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            tensor.fill_(7)
        elif tensor.dim() > 1:
            bound = (6 / tensor[0].numel()) ** 0.5  # Kaiming; uniform, since normal takes seconds for 100 M weights
            tensor.uniform_(-bound, bound, generator=generator)
        elif name.endswith(("running_mean", "bias")):
            tensor.normal_(0, 0.2, generator=generator)
        else:
            tensor.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def network_of(arch, width=None, classes=1000):
    """The untrained network of a name with words, such as resnet18-nomaxpool; width: of other channels."""
    found = parse(arch)
    plan = choose(found.plan, found.chosen)
    return PlannedResNet(plan if width is None else replace(plan, stem=(width,), width=width), classes)


def narrow_resnet18(classes):
    """torchvision's ResNet-18 at an eighth of its width, with random weights."""
    return randomized(network_of("resnet18", 8, classes))


def load_program(path, **options):
    """torch.export.load; torch 2.9 and 2.11 warn there of a buffer of their own."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")
        return torch.export.load(path, **options)


def images(batch=2, size=16, channels=3, seed=1):
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(seed))


class Net(nn.Module):
    """Two convolutions of 8 channels with BatchNorm, a ReLU and a classifier, used as ``body(self, x)`` says."""

    def __init__(self, body, **modules):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.relu, self.fc = nn.ReLU(inplace=True), nn.Linear(8, 5)
        self.body = body
        for name, module in modules.items():
            setattr(self, name, module)
        randomized(self)

    def forward(self, x):
        return self.body(self, x)

    def head(self, x):
        return self.fc(x.mean([2, 3]))
