"""Directly trained networks for tests: modules of the catalog with seeded weights, their Graphs, what they do."""

import copy

import numpy as np
import torch
from conftest import images, randomized
from torch import nn

import s_resnet
from s_resnet.data import Preprocessing
from s_resnet.graph.provenance import Source
from s_resnet.models import catalog
from s_resnet.models.layers import SpikingNeuron

FAMILIES = ("ms_resnet8", "ds_resnet8", "danet11", "sew_resnet8", "spiking_resnet8")
T, SIZE, CLASSES = 3, 8, 5


def trained(arch, timesteps=T, seed=0, size=SIZE, **settings):
    """The module and its Graph."""
    shape = (settings.pop("channels", 3), size, size)
    model = catalog.build(arch, CLASSES, timesteps=timesteps, input_shape=shape, width=4, **settings)
    model = randomized(model, seed)
    return model, s_resnet.trace(model, images(2, size))


def over(model, timesteps):
    """The same module over another number of steps."""
    other = copy.deepcopy(model)
    for module in other.modules():
        if hasattr(module, "timesteps"):
            module.timesteps = timesteps
    return other


def watched(model, x, timesteps):
    """Logits over ``timesteps`` steps, and what goes into and out of every layer of neurons, ``[T, B, *]`` by name."""
    model, seen, hooks = over(model, timesteps), {}, []
    for name, module in model.named_modules():
        if isinstance(module, SpikingNeuron):

            def keep(_, given, got, name=name):
                seen[name] = tuple(v.view(timesteps, -1, *v.shape[1:]) for v in (given[0], got))

            hooks.append(module.register_forward_hook(keep))
    with torch.no_grad():
        return model(x), seen


def fed(model, x, timesteps):
    """What goes into every convolution, pool and linear layer, by name: ``[T * B, *]``, of the stem ``[B, *]``."""
    model, seen = over(model, timesteps), {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.AvgPool2d | nn.AdaptiveAvgPool2d):

            def keep(_, given, name=name):
                seen[name] = given[0]

            module.register_forward_pre_hook(keep)
    with torch.no_grad():
        model(x)
    return seen


def dyadic_images(batch=3, size=SIZE, seed=5):
    """Multiples of 1/16 within +-2."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-32, 33, (batch, 3, size, size), generator=generator) / 16


def dyadic(arch, timesteps=T, **settings):
    """A module whose sums are exact in any order, and its Graph: weights of 1/16, biases in place of normalization."""
    generator = torch.Generator().manual_seed(6)
    model, _ = trained(arch, timesteps, **settings)
    for module in model.modules():
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.Identity())
            if isinstance(child, nn.Conv2d | nn.Linear):
                child.weight.data = (child.weight.data * 16).round() / 16
                outputs = child.weight.shape[0]
                child.bias = nn.Parameter(torch.randint(0, 9, (outputs,), generator=generator) / 16)
    return model, s_resnet.trace(model, dyadic_images()).with_provenance(input_shape=(3, SIZE, SIZE))


def put_trained(folder, arch="ms_resnet8"):
    """net.snn and data.npz, 24 images of one size, in the folder; the module, the images as it sees them, labels."""
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
    model, _ = trained(arch)
    snn = s_resnet.convert(model, [torch.zeros(1, 3, SIZE, SIZE)])
    source, preprocessing = Source(arch=arch, classes=CLASSES), Preprocessing(SIZE, SIZE, mean, std)
    s_resnet.save(snn.with_provenance(preprocessing=preprocessing, source=source), folder / "net.snn")
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (24, SIZE, SIZE, 3), dtype=np.uint8), rng.integers(0, CLASSES, 24)
    np.savez(folder / "data.npz", x=x, y=y)
    mean, std = (torch.tensor(part).view(-1, 1, 1) for part in (mean, std))
    return model, (torch.tensor(x).permute(0, 3, 1, 2) / 255 - mean) / std, torch.tensor(y)
