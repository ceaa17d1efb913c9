"""The figures of an evaluation: how good a spiking network is at every T, against its own ANN on the same images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

from ..errors import InvalidData, message
from ..runtime.display import Displayed, Figures, Table, percent, plain

SCHEMA = 1
COLUMNS = ("T", "top-1", "drop", "95% interval", "top-5", "agreement", "spikes/neuron", "end-to-end steps")
MANY_CLASSES = 20  # from which on a top-5 accuracy says something


@dataclass(frozen=True, repr=False)
class Row(Displayed):
    """The network at one T, in shares of the images.

    Attributes:
        timesteps: T.
        end_to_end_steps: steps from the first input to the answer.
        top1: accuracy.
        top5: accuracy of the first five answers; None below 20 classes.
        agreement: share of images with the answer of its source.
        spikes_per_neuron: per image, up to T.
        drop: the ANN's top-1 minus the network's, positive where the network is worse; None for a directly trained
            network.
        drop_interval: its 95 % interval.
        fitted: whether a recipe that is fitted to its T was fitted to this one; None for a recipe that is not.
    """

    timesteps: int
    end_to_end_steps: int
    top1: float
    top5: float | None
    agreement: float
    spikes_per_neuron: float
    drop: float | None = None
    drop_interval: tuple[float, float] | None = None
    fitted: bool | None = None


@dataclass(frozen=True, repr=False)
class EarlyExit(Displayed):
    """The network where each image stops once its answer is confident.

    Attributes:
        confidence: how sure an image has to be.
        timesteps: steps that an image may take at most.
        mean_timesteps: the mean of the steps that images took.
        top1: as of a :class:`Row`.
        top5: as of a :class:`Row`.
        agreement: as of a :class:`Row`.
        spikes_per_neuron: per image, up to where it stopped.
        images_per_second: of this simulation alone.
        drop: as of a :class:`Row`.
        drop_interval: as of a :class:`Row`.
    """

    confidence: float
    timesteps: int
    mean_timesteps: float
    top1: float
    top5: float | None
    agreement: float
    spikes_per_neuron: float
    images_per_second: float
    drop: float | None = None
    drop_interval: tuple[float, float] | None = None


@dataclass(frozen=True, repr=False)
class Report(Figures):
    """The figures of one evaluation, over the images of all processes where there are several.

    Attributes:
        network: its name.
        recipe: the recipe that made it.
        images: how many were evaluated.
        device: ``"cpu"`` or ``"cuda"``.
        kernel: the membrane kernel.
        ann: the source network's ``top1`` and ``top5`` (None below 20 classes) on the same images; None for a directly
            trained network.
        snn: the network at each T; empty where only the exit was asked for.
        images_per_second: of the simulation, without decoding and the ANN: all images over the time of the slowest
            process. Of the fixed T where it was simulated, else of the exit.
        seconds_per_step_per_image: that same time over all the steps of all the images.
        peak_memory_bytes: of the process with the largest: its GPU's tensors, or on the CPU the whole process.
        exit: where each image stops once it is confident; None, and absent in the JSON, unless asked for.
        precision: ``"exact"``, which the JSON leaves out, or ``"fast"``.
        alphabet: what the neurons send, as :attr:`Graph.alphabet`; the JSON leaves ``"binary"`` out.
        calibrated_on: how many of the images the network was calibrated on; the JSON leaves 0 out.
        trained_for: the T that a directly trained network was trained for, whose answers the agreement is with; the
            JSON leaves None out.
        data: which images these are: ``path``, ``split``, how many there are (``of``), and what was ``left_out``:
            ``calibrated_on``, ``unreadable``, files that are ``no_images``, the share ``events_outside`` the bins. For
            a loader of one's own what it is, as ``loader``.
        notes: what about the images or answers is most probably not as it was meant.
        repeated: how many of the images had been counted before; the JSON leaves 0 out.
        fitted_for: the T that the recipe was fitted to; the JSON leaves None out, as of a recipe that is not fitted.

    Raises:
        InvalidData: a share is not within 0 and 1, since then something was counted wrong.
    """

    network: str
    recipe: str
    images: int
    device: str
    kernel: str
    ann: dict[str, Any] | None
    snn: tuple[Row, ...]
    images_per_second: float
    seconds_per_step_per_image: float
    peak_memory_bytes: int
    exit: EarlyExit | None = None
    precision: str = "exact"
    alphabet: str = "binary"
    calibrated_on: int = 0
    trained_for: int | None = None
    data: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()
    repeated: int = 0
    fitted_for: int | None = None

    def __post_init__(self) -> None:
        for what, share in self._shares():
            if share is not None and not 0 <= share <= 1:
                got = f"a share of {share} as {what}"
                remedy = "Check that the network gives one score for each class, [B, N]"
                raise InvalidData(message("report", "", got, "0 to 1", remedy))

    def _shares(self) -> Iterator[tuple[str, float | None]]:
        yield from (self.ann or {}).items()
        rows: tuple[Row | EarlyExit, ...] = (*self.snn, *([self.exit] if self.exit else []))
        for row in rows:
            yield from (("top1", row.top1), ("top5", row.top5), ("agreement", row.agreement))

    def to_dict(self) -> dict[str, Any]:
        """The documented JSON object, schema 1."""
        stored = {"schema": SCHEMA, **asdict(self), "snn": [asdict(row) for row in self.snn]}
        for row in (*stored["snn"], *([stored["exit"]] if self.exit else [])):
            for name in ("drop", "drop_interval", "fitted"):
                if name in row and row[name] is None:
                    del row[name]
        usual = {field.name: field.default for field in fields(self) if field.default is not MISSING}
        return {name: plain(value) for name, value in stored.items() if name not in usual or value != usual[name]}

    def _lines(self) -> Iterator[str]:
        last = self.snn[-1] if self.snn else None
        yield f"Report on {self.network or 'a network'}, recipe {self.recipe}, {self.images:,} images"
        yield f"data: {described(self.data, self.images)}"
        told = [] if self.ann is None else [f"ANN top-1 {_percent(self.ann['top1'])}"]
        for name, row in ((f"T = {last.timesteps}" if last else "", last), ("until confident", self.exit)):
            if row is not None:
                told.append(f"{name}: top-1 {_percent(row.top1)}, {_dropped(row)}agreement {_percent(row.agreement)}")
        yield "   ".join(told)
        yield from (f"Note: {note}" for note in self.notes[:1])
        yield "print(_.table()) shows every T, _.to_dict() holds all figures"

    def _parts(self) -> Iterator[str | Table]:
        """A row for the ANN, one for each T, and one for the exit."""
        rows: tuple[Row | EarlyExit, ...] = (*self.snn, *([self.exit] if self.exit else []))
        wanted = {
            "drop": any(row.drop is not None for row in rows),
            "95% interval": any(row.drop is not None for row in rows),
            "top-5": any(row.top5 is not None for row in rows),
            "end-to-end steps": any(row.end_to_end_steps != row.timesteps for row in self.snn),
        }
        titles = tuple(name for name in COLUMNS if wanted.get(name, True)) + (("",) if self.exit else ())
        cells = [_cells(row) for row in rows]
        if self.ann is not None:
            cells.insert(0, {"T": "ANN", "top-1": _percent(self.ann["top1"]), "top-5": _percent(self.ann["top5"])})
        if out := self.exit:
            cells[-1][""] = (
                f"mean T; each image until it is {out.confidence:g} sure, at most T = {out.timesteps}; "
                f"{out.images_per_second:.2f} images/s"
            )
        yield "\n".join(self._head())
        yield Table(titles, tuple(tuple(line.get(name, "") for name in titles) for line in cells), texts=0, gap=3)
        yield "\n".join(self._foot())

    def _head(self) -> Iterator[str]:
        """What was measured, and what has to be known of it."""
        fast = ", fast" if self.precision == "fast" else ""
        yield (
            f"{self.network or 'network'}   recipe {self.recipe}   {self.images} images   {self.device}, kernel "
            f"{self.kernel}{fast}"
        )
        if self.ann is None:
            yield f"trained for T = {self.trained_for}"
        yield f"data: {described(self.data, self.images)}"
        if self.alphabet != "binary":
            yield f"spikes: {self.alphabet}"
        if self.calibrated_on:
            yield f"{self.calibrated_on} of the images were calibrated on"
        yield from (f"Note: {note}" for note in self.notes)

    def _foot(self) -> Iterator[str]:
        if any(row.fitted is False for row in self.snn):
            yield f"* not fitted to this T but to T = {self.fitted_for}: convert for another with timesteps=T"
        yield (
            f"{self.images_per_second:.2f} images/s   {self.seconds_per_step_per_image * 1e3:.4g} ms per step and image"
            f"   peak memory {self.peak_memory_bytes / 2**20:.0f} MiB"
        )


def described(data: Mapping[str, Any] | None, images: int) -> str:
    """Which images these are, in a line."""
    if data is None:
        return "not said"
    if "loader" in data:
        return str(data["loader"])
    kinds = {"calibrated_on": "calibrated on", "unreadable": "unreadable"}
    left_out = [f"{data['left_out'][kind]:,} {words}" for kind, words in kinds.items() if data["left_out"][kind]]
    if share := data["left_out"].get("events_outside"):
        left_out.append(f"{share:.1%} of the events, outside the bins")
    said = f"{data['path']} ({data['split']}), {images:,} of {data['of']:,} images"
    return said + (f"; left out: {', '.join(left_out)}" if left_out else "")


def _cells(row: Row | EarlyExit) -> dict[str, str]:
    """The figures of a row by their titles; accuracies in percent, the drop in points."""
    if isinstance(row, EarlyExit):
        steps, late = f"{row.mean_timesteps:.1f}", ""
    else:
        steps, late = f"{row.timesteps}{'*' * (row.fitted is False)}", str(row.end_to_end_steps)
    cells = {
        "T": steps,
        "top-1": _percent(row.top1),
        "top-5": _percent(row.top5),
        "agreement": _percent(row.agreement),
        "spikes/neuron": f"{row.spikes_per_neuron:.3f}",
        "end-to-end steps": late,
    }
    if row.drop is not None and row.drop_interval is not None:
        low, high = row.drop_interval
        cells |= {"drop": f"{100 * row.drop:+.2f}", "95% interval": f"{100 * low:+.2f} to {100 * high:+.2f}"}
    return cells


def _dropped(row: Row | EarlyExit) -> str:
    return "" if row.drop is None else f"drop {100 * row.drop:+.2f} points, "


def _percent(share: float | None) -> str:
    return percent(share, 2)
