"""Programs of torch.export: read as data, they have the answers of the exported program and the Graph of its module."""

import json
import zipfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from conftest import Net, images, load_program, randomized
from torch import nn

import s_resnet
from s_resnet.errors import InvalidCheckpoint, SResNetError, UnsupportedModel
from s_resnet.frontend import load_checkpoint, trace
from s_resnet.graph import artifact
from s_resnet.models.resnet import CifarResNet

AUTO = torch.export.Dim.AUTO


def saved(path, model, x=None, decomposed=False, **options):
    """The path of the program of a module."""
    program = torch.export.export(model, (images() if x is None else x,), **options)
    torch.export.save(program.run_decompositions() if decomposed else program, path)
    return path


def settled(model, size):
    """A network with random weights whose BatchNorm statistics are those of images."""
    randomized(model).train()
    with torch.no_grad():
        for seed in range(3):
            model(images(8, size, seed=seed))
    return model.eval()


def nodes(graph):
    """Everything that a Graph is, to compare."""
    return [(node.name, type(node.op), node.inputs) for node in graph.nodes]


def assert_same(path, model, x):
    """The answers of the program to 1e-5 of the largest logit, and the Graph of the module, bit for bit."""
    loaded = load_checkpoint(path)
    with torch.no_grad():
        expected = load_program(path).module()(x)
        assert (loaded.model(x) - expected).abs().max() <= 1e-5 * expected.abs().max()
    graph, own = trace(loaded.model, x), trace(model, x)
    assert nodes(graph) == nodes(own)
    assert torch.equal(graph.run(x), own.run(x))
    return loaded
