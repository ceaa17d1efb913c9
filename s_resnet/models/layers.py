"""The layers of directly trained spiking networks: neurons with a surrogate gradient, tdBN, and time in the batch.

Between :class:`Repeat` and :class:`TimeMean` activations are ``[T * B, ...]``, time outermost. Convolutions and batch
normalization see one large batch, as they do in the simulator; only neurons know the time.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from ..errors import InvalidData, message
from ..kernels.surrogate.fire import fire
from ..kernels.surrogate.normalize import Normalization, normalize, normalize_and_fire
from ..kernels.surrogate.reference import Firing

LIF = Firing((0.5,), decay=0.25, reset="zero", surrogate="rectangle", width=1.0)
"""Leaky integrate-and-fire as in MS-ResNet (arXiv:2112.08954, released code): hard reset, detached."""


class SpikingNeuron(nn.Module):
    """A layer of neurons over T steps, ``[T * B, *] -> [T * B, *]``, trainable by a surrogate gradient.

    The equation is that of :func:`s_resnet.kernels.surrogate.fire.fire`. There is one membrane for each of K
    thresholds, and the layer sends the sum of their spikes, 0 ... K. The state is fresh in every call.

    Args:
        timesteps: T.
        firing: thresholds, decay, reset and surrogate; by default :data:`LIF`.

    Raises:
        InvalidData: ``timesteps`` is below 1, or neurons do not start at potential 0.
    """

    def __init__(self, timesteps: int, firing: Firing = LIF) -> None:
        super().__init__()
        self.timesteps = _steps(timesteps)
        if not isinstance(firing, Firing):
            remedy = "Change the usual one: dataclasses.replace(s_resnet.models.LIF, decay=0.5)"
            raise InvalidData(message("spiking layer", "firing", repr(firing), "a Firing", remedy))
        if firing.initial:
            raise InvalidData(message("spiking layer", "initial", firing.initial, "0", "Leave it out"))
        # Thresholds rounded to float32, so that they are the same in every precision.
        thresholds = torch.tensor(firing.thresholds, dtype=torch.float32, device="cpu").tolist()
        self.firing = replace(firing, thresholds=tuple(thresholds))

    def forward(self, current: Tensor) -> Tensor:
        return fire(in_time(current, self.timesteps), self.firing).flatten(0, 1)

    def extra_repr(self) -> str:
        firing = self.firing
        return (
            f"timesteps={self.timesteps}, thresholds={[round(theta, 6) for theta in firing.thresholds]}, "
            f"decay={firing.decay}, reset={firing.reset!r}, surrogate={firing.surrogate!r}, width={firing.width}"
        )


def lif(timesteps: int) -> SpikingNeuron:
    """The neurons of MS-ResNet, :data:`LIF`."""
    return SpikingNeuron(timesteps, LIF)


def mlf(timesteps: int, levels: int = 3) -> SpikingNeuron:
    """Multi-level firing: thresholds 0.6, 1.6, 2.6, whose surrogate windows of width 1 lie side by side.

    The gradient flows through the reset. Source: Feng et al., "Multi-Level Firing with Spiking DS-ResNet"
    (arXiv:2210.06386), released code.
    """
    thresholds = tuple(0.6 + level for level in range(levels))
    return SpikingNeuron(timesteps, Firing(thresholds, 0.25, "zero", "rectangle", 1.0, detach_reset=False))


class TDBatchNorm2d(nn.BatchNorm2d):
    """Threshold-dependent batch normalization of ``[T * B, C, H, W]``: statistics over time, batch and space.

    The equation is::

        y = weight * threshold * (x - mean) / sqrt(var + eps) + bias
        y = weight * threshold * (x - mean) / (sqrt(var) + eps) + bias      (with eps_outside)

    The second form is that of the released code of multi-level firing (arXiv:2210.06386). MS-ResNet's code has the
    threshold in the initial weight: there ``threshold`` is 1 and ``start`` 0.5, or 0 for the last normalization of a
    residual branch.

    Args:
        channels: C.
        start: initial weight.
        threshold: factor of the weight.
        eps_outside: add eps to the root, not under it.
        eps: as in ``nn.BatchNorm2d``.

    Source: Zheng et al., "Going Deeper With Directly-Trained Larger Spiking Neural Networks" (arXiv:2011.05280).
    """

    def __init__(
        self, channels: int, start: float = 1.0, threshold: float = 1.0, eps_outside: bool = False, eps: float = 1e-5
    ) -> None:
        super().__init__(channels, eps)
        nn.init.constant_(self.weight, start)
        self.threshold, self.eps_outside = threshold, eps_outside
        self.group: distributed.ProcessGroup | None = None

    def sync(self, group: distributed.ProcessGroup | None) -> None:
        """Share the statistics of training with all processes of a group, on any device; None shares with nobody."""
        self.group = group

    def root(self) -> tuple[Tensor, float]:
        """Variance and eps for evaluation, both under the root; ``sqrt(var) + eps`` is the root of its square."""
        assert self.running_var is not None
        outside = self.eps_outside
        var, eps = ((self.running_var.sqrt() + self.eps) ** 2, 0.0) if outside else (self.running_var, self.eps)
        return var, eps or sys.float_info.min  # torch 2.11 refuses 0; this changes no bit of a variance

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight if self.threshold == 1.0 else self.weight * self.threshold
        assert self.running_mean is not None and self.running_var is not None
        if not self.training:
            var, eps = self.root()
            return F.batch_norm(x, self.running_mean, var, weight, self.bias, False, 0.0, eps)
        assert self.num_batches_tracked is not None and self.momentum is not None
        self.num_batches_tracked.add_(1)
        if not self.eps_outside and self.group is None:
            mean, var = self.running_mean, self.running_var
            return F.batch_norm(x, mean, var, weight, self.bias, True, self.momentum, self.eps)
        how = Normalization(self.eps, self.eps_outside, self.group)
        current, statistics = normalize(x, weight, self.bias, how)
        _observe(self, *statistics)
        return current


def fired(norm: nn.Module, neuron: nn.Module, x: Tensor) -> Tensor:
    """``neuron(norm(x))``; in training one fused operation, which keeps only ``x`` for the backward pass."""
    plain = type(norm) in (nn.BatchNorm2d, TDBatchNorm2d) and isinstance(neuron, SpikingNeuron)
    if not (plain and norm.training):
        spikes: Tensor = neuron(norm(x))
        return spikes
    assert isinstance(norm, nn.BatchNorm2d) and isinstance(neuron, SpikingNeuron)
    weight: Tensor = norm.weight
    how = Normalization(norm.eps)
    if isinstance(norm, TDBatchNorm2d):
        weight = weight if norm.threshold == 1.0 else weight * norm.threshold
        how = Normalization(norm.eps, norm.eps_outside, norm.group)
    spikes, statistics = normalize_and_fire(x, weight, norm.bias, neuron.firing, neuron.timesteps, how)
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    _observe(norm, *statistics)
    return spikes


def _observe(norm: nn.BatchNorm2d, mean: Tensor, var: Tensor, count: Tensor) -> None:
    """Move the running statistics toward those of a batch, with its unbiased variance."""
    assert norm.running_mean is not None and norm.running_var is not None and norm.momentum is not None
    with torch.no_grad():
        norm.running_mean.lerp_(mean.to(norm.running_mean), norm.momentum)
        unbiased = var * (count / (count - 1).clamp_min(1))
        norm.running_var.lerp_(unbiased.to(norm.running_var), norm.momentum)


class Encode(nn.Module):
    """Images ``[B, C, H, W]`` unchanged, events ``[T, B, C, H, W]`` as ``[T * B, C, H, W]``; both in channels_last."""

    def __init__(self, timesteps: int) -> None:
        super().__init__()
        self.timesteps = _steps(timesteps)

    def forward(self, images: Tensor) -> Tensor:
        if images.ndim == 4:
            return images.contiguous(memory_format=torch.channels_last)
        if images.ndim != 5 or len(images) != self.timesteps:
            expected = f"images [B, C, H, W] or events [{self.timesteps}, B, C, H, W]"
            remedy = "Bin the events into as many steps as the network has"
            raise InvalidData(message("spiking network", "input", list(images.shape), expected, remedy))
        return images.flatten(0, 1).contiguous(memory_format=torch.channels_last)


class Repeat(nn.Module):
    """The same current at each step, ``[B, *] -> [T * B, *]``; currents of events already are ``[T * B, *]``."""

    def __init__(self, timesteps: int) -> None:
        super().__init__()
        self.timesteps = _steps(timesteps)

    def forward(self, current: Tensor, images: Tensor) -> Tensor:
        if images.ndim == 5:
            return current
        return torch.cat([current] * self.timesteps)  # unlike Tensor.repeat it keeps channels_last


class TimeMean(nn.Module):
    """The mean over time, ``[T * B, N] -> [B, N]``."""

    def __init__(self, timesteps: int) -> None:
        super().__init__()
        self.timesteps = _steps(timesteps)

    def forward(self, values: Tensor) -> Tensor:
        return in_time(values, self.timesteps).mean(0)


def _steps(timesteps: int) -> int:
    if not isinstance(timesteps, int) or timesteps < 1:
        raise InvalidData(
            message("spiking layer", "timesteps", f"{timesteps!r}", "a whole number >= 1", "Pass such a T")
        )
    return timesteps


def in_time(values: Tensor, timesteps: int) -> Tensor:
    """``[T * B, *]`` as ``[T, B, *]``.

    Raises:
        InvalidData: T does not divide the batch.
    """
    if len(values) % timesteps:
        expected = f"a multiple of {timesteps} time steps"
        remedy = "Put the layer between Repeat and TimeMean of the same number of steps"
        raise InvalidData(message("spiking layer", "batch", len(values), expected, remedy))
    return values.view(timesteps, len(values) // timesteps, *values.shape[1:])


def convolution(channels: int, to: int, kernel: int = 3, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    """A convolution that keeps the size at stride 1, initialized as in He et al. (arXiv:1502.01852)."""
    layer = nn.Conv2d(channels, to, kernel, stride, kernel // 2, bias=bias)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer.to(memory_format=torch.channels_last)
