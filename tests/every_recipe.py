"""A tiny network of every recipe, and trained ones: each converted once for a process."""

import sys
from functools import cache

from conftest import images, randomized
from trained_networks import trained

import s_resnet

SIZE, BATCH, STEPS, CHUNK = 8, 3, 6, 2
ROUNDED = {
    "s-resnet int8": ("s-resnet", "int8"),
    "calibrated-lagged int8": ("calibrated-lagged", "int8"),
    "s-resnet dyadic": ("s-resnet", "dyadic"),
}
TRAINED = ("ms_resnet8", "ds_resnet8")  # the second fires at several levels
NETWORKS = (*s_resnet.RECIPES, *ROUNDED, *TRAINED)


@cache
def network(name):
    """Identity shortcuts and projections, and channels that fill vectors."""
    if name in TRAINED:
        return trained(name, 2, size=SIZE)[1]
    recipe, weights = ROUNDED.get(name, (name, "float32"))
    model = randomized(s_resnet.models.CifarResNet(8, width=8, shortcut="B"))
    calibration = [images(16, SIZE, seed=seed) for seed in (2, 3)]
    return s_resnet.convert(model, calibration, s_resnet.RECIPES[recipe].at(STEPS).with_weights(weights))


def chunk(graph):
    """Steps at a time: all of them where a layer waits for its window."""
    return None if graph.windowed else CHUNK


def chunks(graph):
    return 1 if graph.windowed else STEPS // CHUNK


def everywhere(monkeypatch, name, value):
    """Replace a function of s_resnet in every module that has imported it."""
    places = [module for at, module in sys.modules.items() if at.split(".")[0] == "s_resnet" and name in vars(module)]
    assert places, f"nothing is called {name} any more"
    for module in places:
        monkeypatch.setattr(module, name, value)
