"""Energy per image, estimated from operation counts and a table of energies per operation; nothing here is measured.

With A accumulations, M MACs, U neuron updates and additions (:mod:`s_resnet.analysis.cost.layers`), e_add and e_mul of
the arithmetic::

    spiking  synapses = A e_add + M (e_mul + e_add)         neurons = U e_add, an update being one addition
    ANN      synapses = M (e_mul + e_add)                   neurons = (additions) e_add

A directly trained network has no ANN: it is compared with one dense pass through its own layers, as an ANN of that
architecture would make it, and tables say ``dense``. Convolutions that read sums of currents multiply at every step
and are counted as MACs; ``4.6 pJ * MAC of the first convolution + 0.9 pJ * AC of the rest`` (arXiv:2112.08954) counts
them as accumulations.

* float32: 32-bit floating point on both sides, the usual comparison.
* 8-bit: the spiking network with 8-bit weights and 32-bit integer membranes, against the *equal-bit* ANN, which makes
  the comparison fair: 8-bit weights, and activations of ``bits = ceil(log2(T max_emission + 1))``, as many as a neuron
  can express in T steps (Yan, Bai and Wong, arXiv:2409.08290, compare with the same ANN). Both accumulate in 32-bit
  integers. A multiplier's energy is assumed to grow with the product of its operands' widths:
  ``e_mul(bits) = multiply_int8 * bits / 8``; images, and the means that the spiking network's classifier reads, have 8
  bits. These are assumptions: the table has no such figures.
* Memory: everything that is moved, without reuse on either side. A spiking network moves its :class:`Traffic`; an ANN
  reads one weight and one value for each MAC, and writes each value once. Both form sums in registers. A layer's
  weights, state and values lie in the smallest of three on-chip memories that holds them (larger ones in several of
  the largest); spikes wait in the smallest; an image is read from DRAM once. Energy is proportional to bytes; a 64-bit
  access moves 8.
* Scatter: the additional cost of forming the spiking network's sums in memory, with one read and one write for each
  synaptic event, as event-driven chips do (Lemaire et al., 2022, count so). It is not in ``total``.
* A Loihi-like chip: a synaptic operation for each A and M, an update for each neuron and step. It has no multipliers,
  so the stem's MACs are 8-bit ones off the chip. Only figures for Loihi 1 are known to us.

Static power, clocks, routing, instruction fetch and the host are left out. The energy of a GPU that runs the simulation
is a different matter.
"""

from __future__ import annotations

import json
import math
import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ...errors import InvalidData, message
from ...files import read
from ...runtime.display import Displayed, Figures, Table, plain
from .layers import LayerOperations
from .operations import Operations

SCHEMA = 1
LONGEST, MOST = 2**20, 1e15  # bytes of a table, and pJ of an entry
PICO = 1e-12
WEIGHT_BITS = PIXEL_BITS = 8  # in the quantized networks


@dataclass(frozen=True, repr=False)
class Constants(Displayed):
    """Energies in pJ; the defaults are published estimates for 45 nm at 0.9 V, and for Loihi in 14 nm.

    Attributes:
        name: a title for these constants.
        add_float32: one addition.
        multiply_float32: one multiplication.
        add_int32: one addition.
        multiply_int8: one multiplication.
        cache_8kb: an access of 64 bits.
        cache_32kb: an access of 64 bits.
        cache_1mb: an access of 64 bits.
        dram: an access of 64 bits; the lower end of 1300 to 2600.
        synaptic_event: the minimum for one synaptic event on Loihi.
        neuron_update: one update of an active neuron on Loihi.

    Source: Horowitz, "Computing's energy problem", ISSCC 2014, doi:10.1109/ISSCC.2014.6757323; the last two: Davies et
    al., "Loihi", IEEE Micro 2018, doi:10.1109/MM.2018.112130359.
    """

    name: str = "45 nm (Horowitz 2014), Loihi (Davies 2018)"
    add_float32: float = 0.9
    multiply_float32: float = 3.7
    add_int32: float = 0.1
    multiply_int8: float = 0.2
    cache_8kb: float = 10.0
    cache_32kb: float = 20.0
    cache_1mb: float = 100.0
    dram: float = 1300.0
    synaptic_event: float = 23.6
    neuron_update: float = 81.0

    def to_toml(self) -> str:
        """The constants as a file that :func:`load_constants` reads: a starting point for your own."""
        lines = [f"{name} = {json.dumps(value)}" for name, value in asdict(self).items()]
        return "\n".join(["# Energies in pJ; of memories for an access of 64 bits.", *lines, ""])


CONSTANTS = Constants()


def load_constants(path: str | os.PathLike[str]) -> Constants:
    """Read constants from a TOML file with a number for each field of :class:`Constants`; ``name`` may be left out.

    Raises:
        InvalidData: the file cannot be read, is not TOML, or has unknown, missing or impossible entries.
    """
    entries = _read(Path(path))
    title = entries.pop("name", Path(path).stem)
    if not isinstance(title, str):
        raise InvalidData(message(str(path), "name", repr(title), "a text", "Quote it"))
    known = [f.name for f in fields(Constants) if f.name != "name"]
    unknown, missing = [name for name in entries if name not in known], [name for name in known if name not in entries]
    if unknown or missing:
        got = f"unknown {', '.join(map(repr, unknown))}" if unknown else f"no {', '.join(missing)}"
        expected = f"a number for each of {', '.join(known)}"
        remedy = "Start from s_resnet.analysis.Constants().to_toml()"
        raise InvalidData(message(str(path), "constants", got, expected, remedy))
    for name, value in entries.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 <= value <= MOST:
            expected = f"a number of pJ from 0 to {MOST:g}"
            raise InvalidData(message(str(path), name, repr(value), expected, "Write the energy in picojoules"))
    return Constants(title, **{name: float(value) for name, value in entries.items()})


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(tomllib.loads(read(path, LONGEST).decode()))
    except (OSError, ValueError, RecursionError) as error:  # TOML and UTF-8 errors are ValueErrors
        reason = " ".join(str(error).split())
        remedy = "Start from s_resnet.analysis.Constants().to_toml()"
        raise InvalidData(message(str(path), "cannot be read", reason, "a TOML file", remedy)) from error


@dataclass(frozen=True, repr=False)
class Cost(Displayed):
    """Joules per image.

    Attributes:
        synapses: accumulations and MACs.
        neurons: updates and additions.
        memory: everything that is moved.
        scatter: the additional cost if sums are formed in memory; not part of the total.
    """

    synapses: float
    neurons: float
    memory: float
    scatter: float = 0.0

    @property
    def arithmetic(self) -> float:
        """Everything but memory."""
        return self.synapses + self.neurons

    @property
    def total(self) -> float:
        """With memory, when sums are formed in registers."""
        return self.arithmetic + self.memory

    @property
    def scattered(self) -> float:
        """With memory, when sums are formed there as well."""
        return self.total + self.scatter


@dataclass(frozen=True, repr=False)
class Energy(Figures):
    """Estimated joules per image of a spiking network and of the ANNs it is compared with; the module has the model.

    Attributes:
        timesteps: T.
        activation_bits: bits of the quantized ANN's activations, as many as a neuron can express in T steps.
        constants: energies per operation.
        snn_float32: in 32-bit floating point.
        ann_float32: in 32-bit floating point.
        snn_int8: with 8-bit weights.
        ann_int8: with 8-bit weights and activations of ``activation_bits``.
        snn_loihi: on a Loihi-like chip, whose figures include its memory.
        trained: whether the comparison is with dense passes, as there is no ANN.
    """

    timesteps: int
    activation_bits: int
    constants: Constants
    snn_float32: Cost
    ann_float32: Cost
    snn_int8: Cost
    ann_int8: Cost
    snn_loihi: Cost
    trained: bool = False

    @property
    def ratios(self) -> dict[str, float]:
        """SNN over ANN in equal arithmetic, without memory, with it, and scattered; below 1 the SNN saves energy."""
        pairs = {"float32": (self.snn_float32, self.ann_float32), "int8": (self.snn_int8, self.ann_int8)}
        found = {}
        for name, (snn, ann) in pairs.items():
            found[f"{name}_arithmetic"] = _ratio(snn.arithmetic, ann.arithmetic)
            found[f"{name}_total"] = _ratio(snn.total, ann.total)
            found[f"{name}_scattered"] = _ratio(snn.scattered, ann.scattered)
        return found

    def to_dict(self) -> dict[str, Any]:
        """The documented JSON object, schema 1; a ratio to nothing is null."""
        return dict(plain({"schema": SCHEMA, "estimate": True, **asdict(self), "ratios": self.ratios}))

    def _lines(self) -> Iterator[str]:
        yield f"Energy per image, an estimate, T = {self.timesteps}, {self.constants.name}"
        told = {"float32": (self.snn_float32, self.ann_float32), "8 bits": (self.snn_int8, self.ann_int8)}
        for bits, (snn, rival) in told.items():
            ann = "dense" if self.trained else "ANN"
            yield f"{bits}: SNN {1e6 * snn.total:.4g} uJ, {ann} {1e6 * rival.total:.4g} uJ, with memory"
        yield "print(_.table()) shows the parts, _.to_dict() holds all figures"

    def _parts(self) -> Iterator[str | Table]:
        ann = "dense" if self.trained else "ANN"
        named = {
            "SNN, float32": self.snn_float32,
            f"{ann}, float32": self.ann_float32,
            "SNN, 8-bit weights": self.snn_int8,
            f"{ann}, 8-bit weights, {self.activation_bits}-bit activations": self.ann_int8,
            "SNN, Loihi-like": self.snn_loihi,
        }
        rows = tuple(
            (name, *(f"{1e6 * joules:.4g}" for joules in (c.synapses, c.neurons, c.memory, c.total, c.scatter)))
            for name, c in named.items()
        )
        yield f"energy per image in uJ, estimate   T = {self.timesteps}   {self.constants.name}"
        yield Table(("", "synapses", "neurons", "memory", "total", "scatter"), rows, width=10)
        ratios = (f"{name.replace('_', ' ')} {ratio:.3g}" for name, ratio in self.ratios.items())
        yield f"SNN / {ann}: " + "   ".join(ratios)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.inf


def energy(operations: Operations, constants: Constants = CONSTANTS) -> Energy:
    """Estimate the energy per image of counted operations, and that of the same ANN; the module has the model.

    Args:
        operations: from :func:`s_resnet.analysis.count_operations`.
        constants: energies per operation; :func:`load_constants` reads others.
    """
    c, total, layers = constants, operations.total, operations.layers
    bits = max(1, math.ceil(math.log2(operations.timesteps * operations.most + 1)))
    multiply = {bits: c.multiply_int8 * bits / 8, PIXEL_BITS: c.multiply_int8 * PIXEL_BITS / 8}
    updates, additions = total.updates + total.additions, total.ann.additions
    image = _image_bytes(operations)

    def width(layer: LayerOperations) -> int:
        return PIXEL_BITS if layer.ann.from_image else bits

    float_mac, int8_mac = c.multiply_float32 + c.add_float32, c.multiply_int8 + c.add_int32
    stem = sum(layer.macs for layer in layers if layer.ann.from_image) if operations.coding == "direct" else 0.0
    quantized = sum(layer.ann.macs * (multiply[width(layer)] + c.add_int32) for layer in layers)
    memory = {
        "snn_float32": sum(_spiking_memory(layer, 4.0, 4.0, c) for layer in layers),
        "ann_float32": sum(_source_memory(layer, 4.0, 4.0, c) for layer in layers),
        "snn_int8": sum(_spiking_memory(layer, WEIGHT_BITS / 8, PIXEL_BITS / 8, c) for layer in layers),
        "ann_int8": sum(_source_memory(layer, WEIGHT_BITS / 8, width(layer) / 8, c) for layer in layers),
    }
    spent = {name: moved + image[name] * c.dram / 8 for name, moved in memory.items()}
    events = total.acs + total.macs - stem
    scatter = sum((layer.traffic.sum_reads + layer.traffic.sum_writes) * _sum_access(layer, c) for layer in layers)

    def cost(arithmetic: tuple[float, float], memory: float = 0.0, scatter: float = 0.0) -> Cost:
        return Cost(arithmetic[0] * PICO, arithmetic[1] * PICO, memory * PICO, scatter * PICO)

    snn_float32 = (total.acs * c.add_float32 + total.macs * float_mac, updates * c.add_float32)
    snn_int8 = (total.acs * c.add_int32 + total.macs * int8_mac, updates * c.add_int32)
    ann_float32 = (total.ann.macs * float_mac, additions * c.add_float32)
    loihi = (events * c.synaptic_event + stem * int8_mac, total.updates * c.neuron_update)
    return Energy(
        timesteps=operations.timesteps,
        activation_bits=bits,
        constants=constants,
        snn_float32=cost(snn_float32, spent["snn_float32"], scatter),
        ann_float32=cost(ann_float32, spent["ann_float32"]),
        snn_int8=cost(snn_int8, spent["snn_int8"], scatter),
        ann_int8=cost((quantized, additions * c.add_int32), spent["ann_int8"]),
        snn_loihi=cost(loihi),
        trained=operations.trained,
    )


def _sum_access(layer: LayerOperations, c: Constants) -> float:
    """pJ to read or write a sum of 4 bytes, of which each copy of a neuron has its own."""
    return 4 * _per_byte(layer.outputs * layer.copies * 4, c)


def _image_bytes(operations: Operations) -> Mapping[str, float]:
    small = operations.pixels * PIXEL_BITS / 8
    plain = 4.0 * operations.pixels
    return {"snn_float32": plain, "ann_float32": plain, "snn_int8": small, "ann_int8": small}


def _per_byte(size: float, c: Constants) -> float:
    """pJ to move one byte, from the smallest memory that holds ``size`` bytes."""
    access = c.cache_8kb if size <= 2**13 else c.cache_32kb if size <= 2**15 else c.cache_1mb
    return access / 8


def _spiking_memory(layer: LayerOperations, weight: float, value: float, c: Constants) -> float:
    """pJ of a layer's traffic: ``weight`` bytes for a weight, ``value`` for its operand, 4 for currents and state."""
    moved = layer.traffic
    read = value if layer.op in ("Conv2d", "Linear", "Scale") else 4.0
    return (
        moved.weight_reads * weight * _per_byte(layer.parameters * weight, c)
        + moved.value_reads * read * _per_byte(layer.inputs * read, c)
        + moved.value_writes * 4 * _per_byte(layer.outputs * 4, c)
        + (moved.state_reads + moved.state_writes) * 4 * _per_byte(layer.state * 4, c)
        + (moved.spike_bits_read + moved.spike_bits_written) / 8 * _per_byte(0, c)
    )


def _source_memory(layer: LayerOperations, weight: float, value: float, c: Constants) -> float:
    moved = layer.ann
    return (
        moved.macs * weight * _per_byte(layer.parameters * weight, c)
        + moved.value_reads * value * _per_byte(layer.inputs * value, c)
        + moved.value_writes * value * _per_byte(layer.outputs * value, c)
    )
