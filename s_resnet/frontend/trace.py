"""From an ``nn.Module`` to a Graph. Every call is a node, since neurons belong to call sites."""

from __future__ import annotations

import copy
import inspect
import math
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.arguments import as_maps
from ..errors import InvalidData, SResNetError, UnsupportedModel, message
from ..files import reason
from ..graph import validate
from ..graph.graph import Graph
from ..graph.provenance import AppliedRecipe, Provenance
from . import spiking_layers
from .batchnorm_check import check_answer, check_norms
from .watch import answer_of, follow

FEW = 1e-3  # of the largest logit: a larger difference makes two answers different


def trace(model: nn.Module, example_batch: Tensor) -> Graph:
    """The Graph of ``model``, analog or, for a directly trained network, spiking.

    ``graph.run(x)`` equals the model in evaluation mode. The model's forward is run on the example, and every call of
    torch is recorded, in float32, or in float64 where model and example are. Whatever it computes from its weights
    alone is a constant; so is whatever it multiplies with or adds per channel.

    Args:
        model: any module whose forward does not depend on the values of the images. It is not changed: tensors are
            copied, and its training flags are kept. ``DataParallel`` and ``torch.compile`` are unwrapped. It returns
            the logits, or an object with a field ``logits``.
        example_batch: ``[B, C, H, W]``, two images or more; or signals ``[B, C, L]``, which are images of height 1 in
            the Graph. Sizes such as ``x.size()[3]``, and branches that depend on them, are those of the example. A
            Graph that equals the model only at this size records that in its provenance as ``fixed_size`` ``[H, W]``,
            and refuses images of another.

    Raises:
        UnsupportedModel: an operation cannot be converted (the message names its node and source line), the forward
            depends on the values of its input, or the module has no weights or no forward in Python.
        InvalidData: the example does not fit the model, or its answer, weights or BatchNorm statistics are not finite.
    """
    model = checked(model)
    example = _example(example_batch)
    own = {tensor.dtype for tensor in model.parameters() if tensor.is_floating_point()}
    dtype = torch.float64 if example.dtype == torch.float64 and own == {torch.float64} else torch.float32
    example = example.to(dtype) if example.is_floating_point() else example
    copied = _copied(model).to(dtype)
    with torch.inference_mode(False), torch.no_grad():  # in inference mode changes in place cannot be seen
        images = [example, example.flip(-1) + torch.linspace(-1, 1, example.shape[-1])]
        expected = [_answer(copied, batch, example_batch) for batch in images]
        graph = same = check_norms(_graph(copied, example))
        if graph.trained:  # in float32 rounding can add or remove a spike, and so change the logits; not in float64
            images = [batch.double() for batch in images]
            copied = copied.double()
            expected = [_answer(copied, batch, example_batch) for batch in images]
            same = _graph(copied, images[0]).to(torch.float64)
    check_answer(same, images[0], expected[0], type(model).__name__)
    validate.finite(graph.nodes)  # a ReLU can hide an infinite weight
    if not _close(same.run(images[0]), expected[0]):
        got = "a graph with other outputs on the example"
        remedy = "Remove forward hooks, and whatever changes a result outside of forward"
        raise UnsupportedModel(message(f"{type(model).__name__}", "", got, "the model's own", remedy))
    if not _close(same.run(images[1]), expected[1]):
        got = "a graph with the model's outputs on the example, and others on other images"
        remedy = (
            "Keep NumPy, scripted functions and copies outside of torch out of its forward: what they compute from "
            "the images cannot be followed"
        )
        raise UnsupportedModel(message(f"{type(model).__name__}", "", got, "the same on all", remedy))
    return (
        graph
        if _free(same, copied, images[0][:2])
        else graph.with_provenance(fixed_size=tuple(as_maps(example).shape[2:]))
    )


def checked(model: nn.Module) -> nn.Module:
    """The module without its wrappers.

    Raises:
        UnsupportedModel: it is no module, has no weights yet, or has no forward in Python.
    """
    name = type(model).__name__
    if not isinstance(model, nn.Module):
        remedy = (
            "Build the network, and call its load_state_dict; of an exported program take the network that it was "
            "exported from"
        )
        raise UnsupportedModel(message(name, "", "no module", "an nn.Module in which weights are loaded", remedy))
    while (inner := _wrapped(model)) is not None:
        model = inner
    for path, part in model.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            got = "a TorchScript module, which has no forward in Python"
            expected = "the nn.Module that it was made from"
            raise UnsupportedModel(message(f"{path or name}", "", got, expected, "Pass that one"))
    for path, tensor in chain(model.named_parameters(), model.named_buffers()):
        lazy = nn.parameter.is_lazy(tensor)
        if lazy or tensor.is_meta:
            got = "a lazy layer that was never run" if lazy else "on the meta device"
            remedy = "Run the model once" if lazy else "Call to_empty(device='cpu') and load_state_dict first"
            raise UnsupportedModel(message(name, f"{path} has no weights yet", got, "numbers", remedy))
    return model


def _wrapped(model: nn.Module) -> nn.Module | None:
    """The module inside DataParallel or torch.compile; None where ``model`` is neither."""
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return model.module  # type: ignore[no-any-return]
    return getattr(model, "_orig_mod", None)


def _example(batch: Tensor) -> Tensor:
    """The example on the CPU, checked."""
    if isinstance(batch, Tensor) and batch.ndim in (3, 4):
        return batch.detach().cpu()
    shape = tuple(batch.shape) if isinstance(batch, Tensor) else type(batch).__name__
    expected = "a tensor [B, C, H, W], or signals [B, C, L]"
    raise InvalidData(message("trace", "", f"an example of {shape}", expected, "Pass a batch of images"))


def _copied(model: nn.Module) -> nn.Module:
    """A copy of the module in evaluation mode, on the CPU, without gradients."""
    # deepcopy refuses tensors that a hook computed from weights, so they are copied here.
    held = (tensor for part in model.modules() for tensor in vars(part).values() if isinstance(tensor, Tensor))
    memo = {id(tensor): tensor.detach().clone() for tensor in held if not tensor.is_leaf}
    try:
        copied = copy.deepcopy(model, memo).eval()
    except Exception as error:
        got, expected = reason(error), "a module that copy.deepcopy copies into evaluation mode"
        remedy = "Keep what cannot be copied out of it"
        raise UnsupportedModel(message(f"{type(model).__name__}", "cannot be copied", got, expected, remedy)) from error
    for part in list(copied.modules()):
        for name, child in part.named_children():
            setattr(part, name, getattr(child, "_orig_mod", child))
    return copied.cpu().requires_grad_(False)


def _answer(model: nn.Module, images: Tensor, given: Tensor) -> Tensor:
    """The answer of the module itself."""
    inputs = list(inspect.signature(model.forward).parameters.values())[1:]
    needed = [p.name for p in inputs if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if needed:
        expected, remedy = "one batch of images", "Give it a default, or pass a module around the model that does"
        raise UnsupportedModel(message(f"node {needed[0]}", "cannot be converted", "a second input", expected, remedy))
    try:
        answer = answer_of(model(images.clone()))
    except SResNetError:
        raise
    except Exception as error:
        exported = any(kind.__name__ == "GraphModule" for kind in type(model).__mro__)
        remedy = "Pass images of its size and channels"
        if exported:
            remedy = "Pass the nn.Module that it was exported from"
        elif given.ndim == 3:
            remedy = "Pass signals [B, C, L] of its channels and length, or images [B, C, H, W]; of one image x[None]"
        got, expected = f"shape {tuple(given.shape)} and {reason(error)}", "images that fit the model"
        raise InvalidData(message("trace", "the model failed on the example", got, expected, remedy)) from error
    if not isinstance(answer, Tensor):
        kind = type(answer).__name__
        got, expected = f"an output of type {kind}", "one tensor of logits, or a field logits"
        remedy = "Pass a module around the model that returns the logits alone"
        raise UnsupportedModel(message("node output", "cannot be converted", got, expected, remedy))
    if answer.is_floating_point() and answer.dtype != images.dtype:
        got = f"an answer in {_said(answer.dtype)} to images in {_said(images.dtype)}"
        remedy = "Keep torch.autocast and casts out of its forward"
        raise UnsupportedModel(message("node output", "cannot be converted", got, "one type throughout", remedy))
    return answer


def _said(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _graph(model: nn.Module, example: Tensor) -> Graph:
    timesteps = spiking_layers.timesteps(model.modules())
    recipe = AppliedRecipe() if timesteps is None else AppliedRecipe("trained", timesteps)
    return Graph(follow(model, example), Provenance(recipe)).validate()


def _free(graph: Graph, model: nn.Module, images: Tensor) -> bool:
    """Whether the graph equals the model at another size too, at which the last map is a pixel larger."""
    given = as_maps(images)
    maps = [value.shape[2:] for _, value in graph.activations(given) if value.ndim == 4]
    last = [given.shape[2:], *(size for size in maps if size.numel() > 1)][-1]
    larger = [n if n == 1 else n + math.ceil(n / small) for n, small in zip(given.shape[2:], last, strict=True)]
    other = F.interpolate(given, larger)
    other = other if images.ndim == 4 else other.squeeze(2)
    try:
        expected = _answer(model, other, other)
        return _close(graph.run(other), expected)
    except (SResNetError, RuntimeError):  # one of them refuses this size
        return False


def _close(got: Tensor, expected: Tensor) -> bool:
    return got.shape == expected.shape and torch.allclose(got, expected, FEW, FEW * float(expected.abs().max()))
