"""The networks of `speed.py` in other people's toolkits: SpikingJelly by its own converter, snnTorch and Norse by hand.

The copies for snnTorch and Norse are made of `torch.nn` modules with the weights of our normalized network (threshold
1, shortcut synapses explicit), so that only the neurons are the toolkit's:

* snnTorch: `Leaky(beta=1, reset_mechanism="subtract")`. It fires above the threshold, ours at it; it subtracts at the
  next step what ours subtracts at once, which gives the same spikes.
* Norse: `LIFBoxCell` with `reset_subtract`. It has no neuron without a leak, so its leak is 2^-20 per step and its
  synapses are 2^20 times ours. It fires above the threshold, and the leak moves a spike now and then.
* SpikingJelly: `RateCodingRecipe`, thresholds at the 99.9th percentile like ours, one scale per layer, on the same
  calibration images. It keeps activation units: its spikes are {0, scale}, its max-pool reads them.

All three compute the stem at every step, as their users' loops do.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import s_resnet
from s_resnet.graph import Neuron, Readout, ops

LEAK = 2.0**-20  # of Norse's neuron, per step
AT_ONCE = 32  # steps that a multi-step network takes on a CPU
Fire = Callable[[Tensor, Any], tuple[Tensor, Any]]


class Function(nn.Module):
    """A function as a module, so that every node of a copy has one."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


def plain(op: ops.Op, strength: float) -> nn.Module:
    """One operation without memory as a module of `torch.nn`; ``strength`` multiplies what goes into a neuron."""
    match op:
        case ops.Conv2d():
            shape = op.weight.shape
            where = {"stride": op.stride, "padding": op.padding, "dilation": op.dilation, "groups": op.groups}
            conv = nn.Conv2d(shape[1] * op.groups, shape[0], shape[2:], bias=op.bias is not None, **where)
            return filled(conv, op.weight * strength, None if op.bias is None else op.bias * strength)
        case ops.Linear():
            linear = nn.Linear(op.weight.shape[1], op.weight.shape[0], bias=op.bias is not None)
            return filled(linear, op.weight, op.bias)
        case ops.BatchNorm2d():
            norm = nn.BatchNorm2d(len(op.weight), op.eps)
            norm.running_mean, norm.running_var = op.mean.clone(), op.var.clone()
            return filled(norm, op.weight, op.bias)
        case ops.Scale():
            factor = op.weight * strength
            return Function(lambda x: x * (factor if factor.ndim == 0 else factor.view(-1, 1, 1)))
        case ops.ReLU():
            return nn.ReLU()
        case ops.Add() | Neuron():
            return Function(lambda first, *others: sum(others, start=first))
        case ops.MaxPool2d():
            return nn.MaxPool2d(op.kernel, op.stride, op.padding, op.dilation, ceil_mode=op.ceil_mode)
        case ops.AvgPool2d():
            return nn.AvgPool2d(op.kernel, op.stride, op.padding, op.ceil_mode, op.count_include_pad)
        case ops.AdaptiveAvgPool2d():
            return nn.AdaptiveAvgPool2d(op.output_size)
        case ops.Flatten():
            return nn.Flatten()
        case ops.Slice():
            index = (slice(None), *(slice(*part) for part in op.slices))
            return Function(lambda x: x[index])
        case ops.Pad():
            return Function(lambda x: padded(x, op.padding))
        case Readout(mode="current"):
            return Function(lambda x: x * op.scale)
    raise SystemExit(f"peers: got {op}; expected an operation of a converted ResNet. Add it to plain().")


def filled(module: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """The module with these weights."""
    module.load_state_dict({"weight": weight} if bias is None else {"weight": weight, "bias": bias}, strict=False)
    return module


def padded(x: Tensor, padding: tuple[int, ...]) -> Tensor:
    """Zero channels before and after, as a concatenation: SpikingJelly's converter refuses F.pad."""
    if len(padding) != 6 or any(padding[:4]):
        return F.pad(x, padding)
    before, after = padding[4:]
    return torch.cat((x[:, :before] * 0, x, x[:, :after] * 0), 1)


class Copy(nn.Module):
    """A Graph as plain modules; a call is one step. ``memory`` is all that it remembers, by neuron."""

    def __init__(self, graph: s_resnet.Graph, fire: Fire | None = None, strength: float = 1.0) -> None:
        super().__init__()
        self.order = [(node.name.replace(".", "_"), node.inputs, node.name) for node in graph.nodes[1:]]
        self.first = graph.nodes[0].name
        self.parts = nn.ModuleDict({n.name.replace(".", "_"): plain(n.op, strength) for n in graph.nodes[1:]})
        self.neurons = {node.name for node in graph.neurons}
        self.fire = fire
        self.memory: dict[str, Any] = {}
        self.spikes: Tensor | None = None  # counted where it is a number

    def forward(self, x: Tensor) -> Tensor:
        values = {self.first: x}
        for key, inputs, name in self.order:
            x = self.parts[key](*(values[source] for source in inputs))
            if name in self.neurons:
                x, self.memory[name] = self.fire(x, self.memory.get(name))
                if self.spikes is not None:
                    self.spikes += x.sum(dtype=torch.float64)
            values[name] = x
        return x


def snntorch_copy(graph: s_resnet.Graph) -> Copy:
    """Our network with snnTorch's neurons."""
    import snntorch

    neuron = snntorch.Leaky(beta=1.0, reset_mechanism="subtract")

    def fire(current: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor]:
        return neuron(current, torch.zeros_like(current) if memory is None else memory)

    return Copy(graph, fire).eval()


def norse_copy(graph: s_resnet.Graph) -> Copy:
    """Our network with Norse's neurons."""
    from norse.torch import LIFBoxCell
    from norse.torch.functional.lif_box import LIFBoxFeedForwardState, LIFBoxParameters
    from norse.torch.functional.reset import reset_subtract

    settings = LIFBoxParameters(tau_mem_inv=torch.tensor(LEAK), reset_method=reset_subtract)
    neuron = LIFBoxCell(settings, dt=1.0)

    def fire(current: Tensor, memory: Any) -> tuple[Tensor, Any]:
        return neuron(current, LIFBoxFeedForwardState(torch.zeros_like(current)) if memory is None else memory)

    return Copy(graph, fire, 1 / LEAK).eval()


def spikingjelly_network(model: nn.Module, batches: Iterable[Tensor], images: Tensor) -> nn.Module:
    """The model as SpikingJelly converts it; one that calls F.relu, which it passes over, as a copy with nn.ReLU."""
    from spikingjelly.activation_based import ann2snn

    implementations()
    if any(isinstance(module, nn.ReLU) for module in model.modules()):
        model = copy.deepcopy(model)
    else:
        model = Copy(s_resnet.trace(model, images[:2])).eval()
    recipe = ann2snn.RateCodingRecipe(dataloader=batches, mode="99.9%")
    return ann2snn.Converter(recipe).convert(model).eval()


def spikingjelly_neurons(network: nn.Module) -> list[nn.Module]:
    """Its neuron modules, whose ``v`` is all that it remembers."""
    from spikingjelly.activation_based.neuron import IFNode

    return [module for module in network.modules() if isinstance(module, IFNode)]


def spikingjelly_multistep(network: nn.Module, images: Tensor, half: bool) -> Tensor:
    """Let it take many steps at once, and give the images so often, ``[T, B, C, H, W]``.

    On a GPU its Triton kernels choose themselves. half: in float16 and channels_last, which is its fastest way there.
    Of half input they are chosen only where the membranes are asked for in float32, by an attribute of its neurons.
    """
    from spikingjelly.activation_based import functional

    functional.set_step_mode(network, "m")
    if half:
        network.half().to(memory_format=torch.channels_last)
        images = images.to(torch.float16, memory_format=torch.channels_last)
        for neuron in spikingjelly_neurons(network):
            neuron._neuron_precision = (torch.float32, "fp32", "fp32")  # type: ignore[assignment]
    steps = largest_that_fits(network, images) if images.is_cuda else AT_ONCE
    return repeated(images, steps)


def repeated(images: Tensor, steps: int) -> Tensor:
    """``[B, C, H, W]`` as ``[steps, B, C, H, W]``, each step laid out as the images are."""
    return images.repeat(steps, 1, 1, 1).to(memory_format=layout(images)).unflatten(0, (steps, len(images)))


def layout(images: Tensor) -> torch.memory_format:
    last = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def largest_that_fits(network: nn.Module, images: Tensor, most: int = 1024) -> int:
    """The largest power of two of steps that a multi-step network can take at once on this GPU.

    most: images times steps, which keep a GPU busy; all contenders share its memory.
    """
    from spikingjelly.activation_based import functional

    steps = 2 ** max(0, (most // len(images)).bit_length() - 1)
    while True:
        functional.reset_net(network)
        try:
            network(repeated(images, steps))
            break
        except torch.cuda.OutOfMemoryError:
            if steps == 1:
                raise
            steps //= 2
        torch.cuda.empty_cache()
    functional.reset_net(network)
    return steps


@cache
def implementations() -> set[str]:
    """Who computes SpikingJelly's neurons, as it tells its log once in a process; filled from the first call on."""
    from loguru import logger

    told: set[str] = set()

    def note(message: str) -> None:
        told.update(f"{name}: {who}" for name, who in re.findall(r"operator=(\S+).*? implementation=(\S+)", message))

    logger.remove()  # or it would print them as well
    logger.add(note, format="{message}")
    return told


@contextmanager
def counting(modules: Iterable[nn.Module]) -> Iterator[dict[str, float]]:
    """Count what these modules give: outputs that are not zero, and all."""
    counts = {"spikes": 0.0, "outputs": 0.0}

    def count(_: nn.Module, __: Any, output: Tensor) -> None:
        counts["spikes"] += float(output.count_nonzero())
        counts["outputs"] += output.numel()

    hooks = [module.register_forward_hook(count) for module in modules]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()
