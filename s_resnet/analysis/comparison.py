"""A comparison: candidates on the same images, one row each, and which differences the images can tell.

Accuracies have Wilson's 95 % interval, differences the paired one of the same images (Newcombe's). A difference whose
interval holds 0 is none: at each latency the best network and all that cannot be told from it are marked alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..data.arguments import check_kind
from ..data.intervals import paired_difference, wilson
from ..errors import InvalidData, message
from ..runtime.display import Displayed, Figures, Table, percent, plain
from .candidates import ANN, FLOAT_BITS, QUANTIZED, SNN, Candidate, Measured

SCHEMA = 1
MILLION = 1e6
BEST = "*"
FOOT = (
    "Brackets: 95 % intervals. drop: the ANN's accuracy minus this one's, in points, on the same images.",
    "over equal bits: the accuracy minus that of the ANN quantized to the same bits per activation, in points.",
    f"{BEST} the best of its network at this latency, or not told from it: the interval of the difference holds 0.",
)
COLUMNS = (
    "latency",
    "E",
    "recipe",
    "T",
    "bits/spike",
    "bits/activation",
    "top-1 (%)",
    "drop",
    "over equal bits",
    "SynOps (M)",
    "MAC (M)",
    "ms/image",
)
NAME = "recipe"  # the column of names


@dataclass(frozen=True, repr=False)
class ComparisonRow(Displayed):
    """One candidate beside the others; accuracies and differences are shares of the images.

    Attributes:
        network: the trained network that it stands for.
        name: a recipe, a file, or what kind of ANN it is.
        kind: ``"snn"``, ``"ann"`` or ``"quantized"``, the ANN with quantized activations.
        latency: the most end-to-end steps that were asked for; None if none were.
        timesteps: T; None of an ANN.
        end_to_end_steps: steps from the first input to the answer; None of an ANN.
        alphabet: what neurons send.
        bits_per_spike: log2 of the number of values that a neuron can send in a step; None of an ANN.
        activation_bits: log2 of the number of values that an activation can have: of an SNN the counts of T steps.
        fitted: whether the recipe was fitted to this T; None for one that is not fitted to a T.
        top1: accuracy; None if there are no answers.
        top1_interval: its 95 % interval.
        drop: the ANN's accuracy minus this one's; None without an ANN.
        drop_interval: the 95 % interval of the drop.
        over_quantized: the accuracy minus that of the ANN quantized to equal bits; None without one.
        over_quantized_interval: the 95 % interval of that.
        synops: accumulations that spikes cause, per image.
        macs: multiply-accumulates per image.
        spikes_per_neuron: per image.
        seconds: per image, as measured.
        run_on: device, kernel and threads of that measurement.
        best: whether it is the best of its network at this latency, or cannot be told from the best; None of an ANN.
        reason: why a figure is missing, in words.
    """

    network: str
    name: str
    kind: str
    latency: int | None = None
    timesteps: int | None = None
    end_to_end_steps: int | None = None
    alphabet: str | None = None
    bits_per_spike: float | None = None
    activation_bits: float | None = None
    fitted: bool | None = None
    top1: float | None = None
    top1_interval: tuple[float, float] | None = None
    drop: float | None = None
    drop_interval: tuple[float, float] | None = None
    over_quantized: float | None = None
    over_quantized_interval: tuple[float, float] | None = None
    synops: float | None = None
    macs: float | None = None
    spikes_per_neuron: float | None = None
    seconds: float | None = None
    run_on: str | None = None
    best: bool | None = None
    reason: str | None = None


@dataclass(frozen=True, repr=False)
class Comparison(Figures):
    """Networks, their ANNs and quantized ANNs on the same images.

    Attributes:
        images: how many.
        data: which ones, in words.
        rows: network by network: the ANN, the spiking networks by latency, the quantized ANNs by levels.
        notes: what about the images or networks is probably not as intended.
        references: where published methods among the rows are from.
    """

    images: int
    data: str
    rows: tuple[ComparisonRow, ...]
    notes: tuple[str, ...] = ()
    references: tuple[str, ...] = ()

    @property
    def networks(self) -> tuple[str, ...]:
        """The trained networks, in their order."""
        return tuple(dict.fromkeys(row.network for row in self.rows))

    @property
    def run_on(self) -> tuple[str, ...]:
        """What the times were measured with; they compare only if that is one thing."""
        return tuple(dict.fromkeys(row.run_on for row in self.rows if row.run_on is not None and row.kind == SNN))

    def of(self, network: str) -> tuple[ComparisonRow, ...]:
        """The rows of one trained network."""
        return tuple(row for row in self.rows if row.network == network)

    def to_dict(self) -> dict[str, Any]:
        """The documented JSON object, schema 1."""
        return {
            "schema": SCHEMA,
            "images": self.images,
            "data": self.data,
            "rows": [plain(asdict(row)) for row in self.rows],
            "notes": list(self.notes),
            "references": list(self.references),
        }

    def _lines(self) -> Iterator[str]:
        said = f"{len(self.rows)} rows" if len(self.networks) == 1 else f"{len(self.networks)} networks"
        yield f"Comparison of {said} on {self.images:,} images: {self.data}"
        for network in self.networks[:2]:
            best = [row for row in self.of(network) if row.best and row.top1 is not None]
            if best:
                row = max(best, key=lambda one: one.top1 or 0.0)
                yield f"{network}: best {row.name} at T = {row.timesteps}, top-1 {percent(row.top1)}"
        yield "print(_.table()) shows every row, _.to_dict() holds all figures"

    def _parts(self) -> Iterator[str | Table]:
        yield "\n".join(self.head())
        for network in self.networks:
            if len(self.networks) > 1:
                yield network
            yield self.table_of(network)
        yield "\n".join(self.foot())

    def head(self) -> Iterator[str]:
        """What was compared, on what."""
        yield f"{', '.join(self.networks)}: {self.images:,} images. Times: {'; '.join(self.run_on) or 'not measured'}."
        yield f"Data: {self.data}."
        if len(self.run_on) > 1:
            yield "Note: times were measured with several settings, so they do not compare."
        yield from (f"Note: {note}" for note in self.notes)

    def foot(self) -> Iterator[str]:
        """What columns and marks mean, and why figures are missing."""
        yield from FOOT
        if any(row.fitted is False for row in self.rows):
            yield "! The network was fitted to another T."
        yield from reasons(self.rows)
        yield from self.references

    def table_of(self, network: str, best: str = f"{{}}{BEST}") -> Table:
        """The rows of one network as cells; columns that say nothing are left out.

        Args:
            network: its name.
            best: how an accuracy that is marked as the best is written.
        """
        rows = self.of(network)
        cells = [cells_of(row, best) for row in rows]
        same = all(row.latency in (None, row.end_to_end_steps) for row in rows)  # E says it already
        wanted = [at for at in range(int(same), len(COLUMNS)) if any(line[at] for line in cells)]
        table = tuple(tuple(line[at] for at in wanted) for line in cells)
        return Table(tuple(COLUMNS[at] for at in wanted), table, texts=1 + wanted.index(COLUMNS.index(NAME)), gap=3)


def reasons(rows: Iterable[ComparisonRow]) -> Iterator[str]:
    """Why figures are missing, once for all rows that share the reason."""
    known: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.reason is not None:
            places = known.setdefault((row.reason, row.name), [])
            places += [] if row.latency is None else [str(row.latency)]
    names: dict[tuple[str, str], list[str]] = {}
    for (reason, name), places in known.items():
        names.setdefault((reason, ", ".join(places)), []).append(name)
    for (reason, latencies), who in names.items():
        yield f"{', '.join(who)}{f' at E = {latencies}' if latencies else ''}: {reason}."


def cells_of(row: ComparisonRow, best: str) -> tuple[str, ...]:
    """The figures of a row under COLUMNS: accuracies in percent, differences in points."""
    top1 = "" if row.top1 is None else best.format(f"{100 * row.top1:.2f}") if row.best else f"{100 * row.top1:.2f}"
    return (
        _number(row.latency),
        _number(row.end_to_end_steps),
        row.name,
        "-" if row.kind == SNN and row.top1 is None else f"{_number(row.timesteps)}{'!' * (row.fitted is False)}",
        "" if row.bits_per_spike is None else f"{row.bits_per_spike:.3g}",
        "" if row.activation_bits is None else f"{row.activation_bits:.3g}",
        _with_span(top1, row.top1_interval, "{:.1f}"),
        _with_span(_points(row.drop), row.drop_interval, "{:+.1f}"),
        _with_span(_points(row.over_quantized), row.over_quantized_interval, "{:+.1f}"),
        _millions(row.synops),
        _millions(row.macs),
        "" if row.seconds is None else f"{1e3 * row.seconds:.3g}",
    )


def _number(value: int | None) -> str:
    return "" if value is None else str(value)


def _points(share: float | None) -> str:
    return "" if share is None else f"{100 * share:+.2f}"


def _with_span(figure: str, ends: tuple[float, float] | None, form: str) -> str:
    """A figure and its interval in brackets, of one width whatever the digits."""
    return figure if ends is None else f"{figure} [{', '.join(form.format(100 * end) for end in ends)}]"


def _millions(number: float | None) -> str:
    return "" if number is None else f"{number / MILLION:,.4g}"


def compare(measured: Iterable[Measured], missing: Sequence[Candidate] = ()) -> Comparison:
    """Compare candidates that answered the same images.

    A drop is against the ANN of the same network, and the quantized ANN of a row is the one with as many levels.

    Args:
        measured: from :func:`s_resnet.analysis.measure_candidates` and :func:`s_resnet.analysis.measure_ann`.
        missing: candidates without answers, each with its reason; they get a row as well.

    Raises:
        InvalidData: there is nothing to compare, the images differ, or two candidates have one name.
    """
    parts = list(measured)
    for part in parts:
        check_kind(part, Measured, "compare", "measured", "Call s_resnet.analysis.measure_candidates first")
    candidates = [candidate for part in parts for candidate in part.candidates]
    if not any(candidate.kind == SNN for candidate in candidates):
        remedy = "Name a recipe that can answer by a latency that you ask for, or a network"
        raise InvalidData(message("compare", "", "nothing to compare", "at least one spiking network", remedy))
    _check_images(parts)
    _check_names([*candidates, *missing])
    judge = _Judge(parts)
    networks = dict.fromkeys(candidate.network for candidate in (*candidates, *missing))
    rows = [row for network in networks for row in judge.rows(network, [*candidates, *missing])]
    data = next((part.data for part in parts if part.data is not None), "not said")
    notes = dict.fromkeys(note for part in parts for note in part.notes or ())
    return Comparison(len(parts[0].labels), data, tuple(rows), tuple(notes))


def _check_images(parts: Sequence[Measured]) -> None:
    """Check that all answered as many images, and those of one network the same ones.

    Classes may have other numbers in another network, so that labels differ between networks.
    """
    known: dict[str, tuple[int, ...]] = {}
    for part in parts:
        for one in part.candidates:
            labels = known.setdefault(one.network, part.labels)
            if labels != part.labels or len(labels) != len(parts[0].labels):
                got, remedy = (
                    "candidates measured on different images",
                    "Measure all on the same ones, in the same order",
                )
                raise InvalidData(message("compare", "", got, "the same labels everywhere", remedy))
            if len(one.answers or ()) != len(labels):
                got = f"{len(one.answers or ())} answers of {one.name} to {len(labels)} images"
                raise InvalidData(message("compare", "", got, "one to each", "Measure it again"))


def _check_names(candidates: Sequence[Candidate]) -> None:
    """Check that no two candidates of a network have the same name, latency and T."""
    seen = set[tuple[object, ...]]()
    for one in candidates:
        key = (one.network, one.name, one.kind, one.latency, one.timesteps, one.levels if one.kind == QUANTIZED else 0)
        if key in seen:
            got, remedy = f"two candidates named {one.name} of {one.network}", "Give each a name of its own"
            raise InvalidData(message("compare", "names", got, "no name twice", remedy))
        seen.add(key)


class _Judge:
    """Compares candidates image by image."""

    def __init__(self, parts: Sequence[Measured]) -> None:
        self.images = len(parts[0].labels)
        self.hits: Mapping[int, list[bool]] = {
            id(one): [given == right for given, right in zip(one.answers or (), part.labels, strict=True)]
            for part in parts
            for one in part.candidates
        }
        candidates = [one for part in parts for one in part.candidates]
        self.ann = {one.network: one for one in candidates if one.kind == ANN}
        self.quantized = {(one.network, one.levels): one for one in candidates if one.kind == QUANTIZED}
        self.ann_macs = {one.network: one.ann_macs for one in candidates if one.ann_macs is not None}

    def rows(self, network: str, candidates: Sequence[Candidate]) -> list[ComparisonRow]:
        """The rows of one network, in the order of a table."""
        own = [one for one in candidates if one.network == network]
        groups: dict[int, list[Candidate]] = {}
        for one in own:
            if one.kind == SNN:
                groups.setdefault(_group(one), []).append(one)
        best = {id(one) for group in groups.values() for one in self._best(group)}
        order = {ANN: 0, SNN: 1, QUANTIZED: 2}
        own.sort(key=lambda one: (order[one.kind], _group(one) if one.kind == SNN else one.levels or 0))
        return [self._row(one, id(one) in best if one.kind == SNN and id(one) in self.hits else None) for one in own]

    def _best(self, group: Sequence[Candidate]) -> list[Candidate]:
        """The best of those that answered, and all that cannot be told from it."""
        there = [one for one in group if id(one) in self.hits]
        if not there:
            return []
        first = max(there, key=lambda one: sum(self.hits[id(one)]))
        return [one for one in there if one is first or self._difference(first, one)[1][0] <= 0]

    def _difference(self, one: Candidate, other: Candidate) -> tuple[float, tuple[float, float]]:
        """The first accuracy minus the second, and its 95 % interval."""
        pairs = list(zip(self.hits[id(one)], self.hits[id(other)], strict=True))
        kinds = ((True, True), (True, False), (False, True), (False, False))
        both, first, second, neither = (pairs.count(kind) for kind in kinds)
        return (first - second) / self.images, paired_difference(both, first, second, neither)

    def _row(self, one: Candidate, best: bool | None) -> ComparisonRow:
        ann = None if one.kind == ANN else self.ann.get(one.network)
        rival = self.quantized.get((one.network, one.levels)) if one.kind == SNN else None
        answered = id(one) in self.hits
        drop = self._difference(ann, one) if answered and ann is not None else (None, None)
        over = self._difference(one, rival) if answered and rival is not None else (None, None)
        right = sum(self.hits[id(one)]) if answered else 0
        levels = None if one.levels is None else math.log2(one.levels + 1)
        return ComparisonRow(
            network=one.network,
            name=one.name,
            kind=one.kind,
            latency=one.latency,
            timesteps=one.timesteps,
            end_to_end_steps=one.end_to_end_steps,
            alphabet=one.alphabet,
            bits_per_spike=one.bits if one.kind == SNN else None,
            activation_bits=float(FLOAT_BITS) if one.kind == ANN else levels,
            fitted=one.fitted,
            top1=right / self.images if answered else None,
            top1_interval=wilson(right, self.images) if answered else None,
            drop=drop[0],
            drop_interval=drop[1],
            over_quantized=over[0],
            over_quantized_interval=over[1],
            synops=one.synops,
            macs=one.macs if one.kind == SNN else self.ann_macs.get(one.network),
            spikes_per_neuron=one.spikes_per_neuron,
            seconds=one.seconds,
            run_on=one.run_on,
            best=best,
            reason=one.reason or one.uncounted,
        )


def _group(one: Candidate) -> int:
    """The latency that a spiking network is compared at: the one asked for, else its own."""
    return one.latency or one.end_to_end_steps or 0
