"""Who is measured by `speed.py`: the networks, and each contender made ready to run so many steps."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest import mock

import peers
import torch
import torch.nn.functional as F
import torchvision
from conversion import CASES, place
from torch import Tensor, nn

import s_resnet
from s_resnet.graph.ops import Conv2d

WARM = 32  # steps before the clock starts
CALIBRATION = 256  # images
QUANTILE = 2**24  # numbers that torch.quantile takes
NETWORKS: dict[str, tuple[str, int, Callable[[], nn.Module]]] = {  # case of conversion.py, size, without fixtures
    "resnet18": ("resnet18", 64, torchvision.models.resnet18),
    "cifar_resnet20": ("resnet20", 32, lambda: s_resnet.models.CifarResNet(20)),
    "resnet50": ("resnet50", 64, torchvision.models.resnet50),
}


@dataclass(frozen=True)
class Setting:
    """What is measured, but for the contender."""

    network: str
    size: int
    batch: int
    device: str
    layout: str  # of the peers and the ANN: "contiguous" as they come, or "channels_last"
    fixtures: Path | None
    work: Path
    tf32: bool = False  # whether a GPU multiplies float32 in TF32

    @cached_property
    def model(self) -> nn.Module:
        case, _, fresh = NETWORKS[self.network]
        if self.fixtures is None:
            torch.manual_seed(0)
            return self.placed(fresh().eval())
        return self.placed(s_resnet.load_checkpoint(self.fixtures / "checkpoints" / CASES[case].checkpoint).model)

    @cached_property
    def images(self) -> Tensor:
        if self.fixtures is None:
            images = torch.randn(self.batch, 3, self.size, self.size, generator=torch.Generator().manual_seed(0))
        else:
            (images,) = self.read(CASES[NETWORKS[self.network][0]].data[0][0], "evaluation", self.batch, self.batch)
        return images.to(self.device)

    @cached_property
    def calibration(self) -> list[Tensor] | None:
        if self.fixtures is None:
            return None
        return self.read(CASES[NETWORKS[self.network][0]].calibration or "", "calibration", CALIBRATION, 64)

    @property
    def peer_calibration(self) -> list[Tensor]:
        """Batches as small as torch.quantile asks, which SpikingJelly gives a whole batch of a layer's activations."""
        most = QUANTILE // max(shape.numel() for shape in self.shapes.values())
        return [images[:most] for images in self.calibration or [self.images.cpu()]]

    @property
    def peer_images(self) -> Tensor:
        return self.placed(self.images)

    def placed(self, what: Any) -> Any:
        """A model or images of a peer, on the device and in the layout asked for."""
        layout = torch.channels_last if self.layout == "channels_last" else torch.contiguous_format
        return what.to(self.device, memory_format=layout)

    def read(self, name: str, split: str, number: int, batch: int) -> list[Tensor]:
        """Preprocessed images of the fixtures, a seeded choice over all classes."""
        assert self.fixtures is not None
        data = s_resnet.data.open_data(str(place(name, self.fixtures, self.work)), split)
        preprocessing = s_resnet.data.preprocessing_for(
            self.size, s_resnet.data.IMAGENET_MEAN, s_resnet.data.IMAGENET_STD
        )
        if self.size != NETWORKS[self.network][1]:  # a crop of an image of 32 pixels would be another image
            preprocessing = replace(preprocessing, resize=self.size)
        loader = s_resnet.data.ImageLoader(data, s_resnet.data.choose(data, number), preprocessing, batch, workers=0)
        return [images for images, _ in loader]

    def converted(self, weights: str = "float32") -> s_resnet.Graph:
        """Our network; converted once for all runs that find it in the work folder."""
        kind = () if weights == "float32" else (weights,)
        named = "-".join(str(value) for value in (self.network, self.size, s_resnet.__version__, *kind))
        file = self.work / f"speed-{named}{'' if self.fixtures else '-random'}.snn"
        if not file.exists():
            model = self.model.cpu()
            recipe = s_resnet.RECIPES["s-resnet"].at(256).with_weights(weights)
            snn = s_resnet.convert(model, self.calibration or (3, self.size, self.size), recipe)
            s_resnet.save(snn, file)
            self.placed(model)
        return s_resnet.load(file).to(self.device)

    @cached_property
    def snn(self) -> s_resnet.Graph:
        return self.converted()

    @cached_property
    def begun(self) -> s_resnet.Simulation:
        """Our exact simulation of the first steps."""
        return s_resnet.simulate(self.snn, self.images, WARM)

    @cached_property
    def shapes(self) -> dict[str, torch.Size]:
        """Each node's value for one image."""
        return {name: value.shape[1:] for name, value in self.snn.activations(self.images[:1])}

    def rates(self, spikes: Any) -> dict[str, float]:
        """Spikes per neuron and step of each layer, from the counts of WARM steps."""
        return {
            name: float(counts[-1].sum()) / (self.batch * self.shapes[name].numel() * WARM)
            for name, counts in spikes.items()
        }

    def mean_rate(self, rates: dict[str, float]) -> float:
        """Of all neurons."""
        sizes = {name: self.shapes[name].numel() for name in rates}
        return sum(rates[name] * size for name, size in sizes.items()) / sum(sizes.values())


@dataclass
class Runner:
    """A contender, ready: ``run(T)`` is timed; ``rewind`` goes back to the warm state and is not."""

    run: Callable[[int], object]
    rewind: Callable[[], None] = lambda: None
    rate: float | None = None
    notes: dict[str, object] = field(default_factory=dict)


def floor(dtype: torch.dtype = torch.float32) -> Callable[[Setting], Runner]:
    """The convolutions alone; see `speed.py`."""

    def build(setting: Setting) -> Runner:
        snn = setting.snn
        after = s_resnet.simulate(snn, setting.images, WARM, state=setting.begun.state)
        rates = setting.rates(after.spikes)
        layers, spikes, neurons = [], 0.0, 0
        for node in snn.spiking().nodes:
            if not isinstance(node.op, Conv2d) or node.name in snn.static:
                continue
            source = node.inputs[0]
            while source not in rates:  # pooled or cut spikes
                source = snn[source].inputs[0]
            x = torch.empty(setting.batch, *setting.shapes[node.inputs[0]], device=setting.device)
            x = x.bernoulli_(rates[source]).to(dtype, memory_format=torch.channels_last)
            spikes, neurons = spikes + float(x.sum(dtype=torch.float64)), neurons + x.numel()
            op = node.op
            weight = op.weight.to(dtype, memory_format=torch.channels_last)
            bias = None if op.bias is None else op.bias.to(dtype)
            layers.append((x, weight, bias, op.stride, op.padding, op.dilation, op.groups))

        def run(steps: int) -> None:
            for _ in range(steps):
                for layer in layers:
                    F.conv2d(*layer)

        return Runner(run, rate=spikes / neurons)

    return build


def ann(setting: Setting) -> Runner:
    def run(steps: int) -> None:
        for _ in range(steps):
            model(images)

    model, images = setting.model, setting.peer_images
    return Runner(run)


def ours(compiler: bool = True, weights: str = "float32", precision: str = "exact") -> Callable[[Setting], Runner]:
    """Our simulator; ``precision`` goes to `s_resnet.simulate`."""
    settings = s_resnet.simulation.SimulationSettings(precision=precision)

    def build(setting: Setting) -> Runner:
        snn = setting.converted(weights)
        missing = mock.patch("s_resnet.kernels.build.compiler.compiled", lambda: (None, "left out"))

        def simulate(steps: int, state: s_resnet.graph.State | None) -> s_resnet.Simulation:
            if compiler:
                return s_resnet.simulate(snn, setting.images, steps, settings, state=state)
            with missing:
                return s_resnet.simulate(snn, setting.images, steps, settings, state=state)

        begun = simulate(WARM, None)
        after = simulate(WARM, begun.state)
        rate = setting.mean_rate(setting.rates(after.spikes))
        notes: dict[str, object] = {"top1_as_ann_at_64": same_top1(after.outputs[-1], setting.model(setting.images))}
        return Runner(lambda steps: simulate(steps, begun.state), rate=rate, notes=notes)

    return build


def by_hand(make: Callable[[s_resnet.Graph], peers.Copy]) -> Callable[[Setting], Runner]:
    """A copy of our network; that it gives our answers is checked before it is timed."""

    def build(setting: Setting) -> Runner:
        net, images = setting.placed(make(setting.snn)), setting.peer_images

        def run(steps: int) -> Tensor:
            total = net(images)
            for _ in range(steps - 1):
                total = total + net(images)
            return total

        def counted() -> tuple[Tensor, float]:
            net.spikes = torch.zeros((), dtype=torch.float64, device=setting.device)
            answer, spikes = run(WARM) / WARM, net.spikes
            net.spikes = None
            return answer, float(spikes)

        answer, spikes = counted()
        memory = dict(net.memory)
        expected = setting.begun.outputs[-1]
        count = sum(float(counts[-1].sum()) for counts in setting.begun.spikes.values())
        notes: dict[str, object] = {
            "top1_as_ours_at_32": same_top1(answer, expected),
            "answer_difference_at_32": round(float((answer - expected).abs().max() / expected.abs().max()), 5),
            "spike_difference_at_32": round(spikes / count - 1, 7),
        }
        if abs(spikes / count - 1) > 0.001 or same_top1(answer, expected) < 0.95:
            raise SystemExit(f"{make.__name__}: got {notes}; expected our answers. Do not time another network.")
        neurons = sum(setting.shapes[node.name].numel() for node in setting.snn.neurons)
        rate = counted()[1] / (neurons * setting.batch * WARM)
        return Runner(run, lambda: net.memory.update(memory), rate, notes)

    return build


def spikingjelly(compiled: bool = False, multistep: bool = False, half: bool = False) -> Callable[[Setting], Runner]:
    """SpikingJelly's conversion: a step at a time, or in multi-step mode as many at once as fit."""

    def build(setting: Setting) -> Runner:
        images, calibration = setting.peer_images, setting.peer_calibration
        net = peers.spikingjelly_network(setting.model, calibration, images)
        neurons = peers.spikingjelly_neurons(net)
        many = images[None]
        if multistep:
            many = peers.spikingjelly_multistep(net, images, half)
        quick = torch.compile(net) if compiled else net

        def run(steps: int, call: nn.Module = quick) -> Tensor:
            total = torch.zeros((), device=setting.device)
            if multistep:
                for done in range(0, steps, len(many)):
                    total = total + call(many[: steps - done]).sum(0)
                return total
            for _ in range(steps):
                total = total + call(images)
            return total

        answer = run(WARM, net)
        memory = [neuron.v.clone() for neuron in neurons]
        with peers.counting(neurons) as counts:
            answer = answer + run(WARM, net)

        def rewind() -> None:
            for neuron, v in zip(neurons, memory, strict=True):
                neuron.v = v.clone()

        notes: dict[str, object] = {"top1_as_ann_at_64": same_top1(answer, setting.model(images))}
        notes["calibration_images"] = sum(map(len, calibration))
        if multistep:
            notes["steps_at_once"] = len(many)
        return Runner(run, rewind, counts["spikes"] / counts["outputs"], notes)

    return build


@dataclass(frozen=True)
class Contender:
    """How it is built, what has to be there, and how it multiplies.

    needs: packages by name, "cuda" or "cpu".
    on_cpu, on_cuda: its arithmetic there; None is float32, which on a GPU is as the run says: exact or TF32.
    """

    build: Callable[[Setting], Runner]
    needs: tuple[str, ...] = ()
    on_cpu: str | None = None
    on_cuda: str | None = None

    def arithmetic(self, device: str, tf32: bool) -> str:
        """What it multiplies in; the same on a CPU whatever ``tf32``."""
        if device == "cpu":
            return self.on_cpu or "float32"
        return self.on_cuda or float32(tf32)

    def missing(self, device: str, tf32: bool = False) -> str | None:
        """Why it cannot run here, or None."""
        for need in self.needs:
            if need in ("cpu", "cuda"):
                if need != device:
                    return f"needs a {need.upper()} device"
            elif importlib.util.find_spec(need) is None:
                return f"{need} is not installed"
        # Float32 is one arithmetic for all contenders of a run; who chooses another has no place in it.
        if device == "cuda" and self.on_cuda in ("float32", "TF32") and self.on_cuda != float32(tf32):
            return f"always multiplies in {self.on_cuda}, this run in {float32(tf32)}: " + (
                "leave --tf32 out" if tf32 else "add --tf32"
            )
        return None


def float32(tf32: bool) -> str:
    """The arithmetic of float32 numbers on a GPU, in words."""
    return "TF32" if tf32 else "float32"


PEER = ("spikingjelly",)
CONTENDERS = {
    "floor": Contender(floor()),
    "floor float16": Contender(floor(torch.float16), ("cuda",), on_cuda="float16"),
    "ann": Contender(ann),
    "ours exact": Contender(ours(), on_cuda="float32 as two in TF32"),
    "ours fast": Contender(ours(precision="fast"), on_cpu="16 bits", on_cuda="float16"),
    "ours int8": Contender(ours(weights="int8"), on_cpu="int8", on_cuda="TF32"),
    "ours exact without compiler": Contender(ours(compiler=False), ("cpu",)),
    "spikingjelly eager": Contender(spikingjelly(), PEER),
    "spikingjelly compiled": Contender(spikingjelly(compiled=True), PEER),
    "spikingjelly multi-step": Contender(spikingjelly(multistep=True), PEER),
    "spikingjelly multi-step float16": Contender(
        spikingjelly(multistep=True, half=True), (*PEER, "triton", "cuda"), on_cuda="float16"
    ),
    "snntorch": Contender(by_hand(peers.snntorch_copy), ("snntorch",)),
    "norse": Contender(by_hand(peers.norse_copy), ("norse",)),
}


def same_top1(answers: Tensor, others: Tensor) -> float:
    return round(float((answers.argmax(1) == others.argmax(1)).float().mean()), 4)
