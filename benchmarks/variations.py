"""Recipes that no command makes, for `imagenet.py`: fewer layers wait than in `calibrated-lagged`.

    python benchmarks/variations.py NAME CHECKPOINT DATA OUT --timesteps T --calibration-images N [--input-size N]

`calibrated-lagged` lets every layer wait a step for the one before it, so its answer comes T steps and one for each
layer after the first input. `calibrated` has no layer wait, and `calibrated-blocks` only the last neuron of each
residual block. The file OUT is as that of `sresnet convert`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import recipe_names

import s_resnet
from s_resnet import Graph, Recipe
from s_resnet.conversion import Context, Step
from s_resnet.graph import Neuron

SEED = 0  # of the choice of images, as in the command line


def lag_blocks(graph: Graph, context: Context) -> Graph:
    """Let only neurons wait that add two branches: the last of each residual block."""
    nodes = (
        replace(node, op=replace(node.op, schedule="lagged"))
        if isinstance(node.op, Neuron) and len(node.inputs) > 1
        else node
        for node in graph.nodes
    )
    return replace(graph, nodes=tuple(nodes))


def blocks(recipe: Recipe) -> Recipe:
    """The last layer of each block waits: E = T + the number of blocks."""
    steps = list(recipe.steps)
    at = next(place for place, step in enumerate(steps) if step.name == "attach_readout")
    return replace(recipe, name="calibrated-blocks", steps=(*steps[:at], Step(lag_blocks), *steps[at:]))


VARIATIONS: Mapping[str, Callable[[Recipe], Recipe]] = {"calibrated-blocks": blocks}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", type=recipe_names.current, choices=list(VARIATIONS))
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("data")
    parser.add_argument("out", type=Path)
    parser.add_argument("--timesteps", type=int, required=True)
    parser.add_argument("--calibration-images", type=int, required=True)
    parser.add_argument("--input-size", type=int)
    asked = parser.parse_args()
    loaded = s_resnet.load_checkpoint(asked.checkpoint)
    data = s_resnet.data.open_data(asked.data, "calibration")
    assert isinstance(data, s_resnet.data.ImageData)
    chosen = s_resnet.data.choose(data, asked.calibration_images, SEED)
    preprocessing = s_resnet.data.preprocessing_for(asked.input_size or loaded.input_size)
    loader = s_resnet.data.loader_for(data, chosen, preprocessing, batch_size=32)
    recipe = VARIATIONS[asked.name](s_resnet.RECIPES["calibrated"])
    s_resnet.save(s_resnet.convert(loaded.model, loader, recipe, timesteps=asked.timesteps, progress=True), asked.out)


if __name__ == "__main__":
    main()
