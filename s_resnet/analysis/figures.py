"""The figures of an evaluation: how good a spiking network is at every T, compared with its ANN on the same images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

from ..errors import InvalidData, message
from ..runtime.display import Displayed, Figures, Table, percent, plain

SCHEMA = 1
COLUMNS = ("T", "top-1", "drop", "95% interval", "top-5", "agreement", "spikes/neuron", "end-to-end steps")
MANY_CLASSES = 20  # with fewer classes a top-5 accuracy says little


@dataclass(frozen=True, repr=False)
class Row(Displayed):
    """The network at one T; accuracies are shares of the images.

    Attributes:
        timesteps: T.
        end_to_end_steps: steps from the first input to the answer.
        top1: accuracy.
        top5: accuracy of the first five answers; None below 20 classes.
        agreement: share of images on which the network and its source give the same answer.
        spikes_per_neuron: spikes per neuron and image, up to T; of several neurons in place of one per each of these.
        drop: the ANN's top-1 minus the network's, positive where the network is worse; None for a directly trained
            network.
        drop_interval: the 95 % interval of the drop.
        fitted: whether the recipe was fitted to this T; None for a recipe that is not fitted to a T.
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
    """The network when each image stops as soon as its answer is confident.

    Attributes:
        confidence: the softmax share at which an image stops.
        timesteps: the most steps that an image may take.
        mean_timesteps: the mean number of steps that images took.
        top1: as in :class:`Row`.
        top5: as in :class:`Row`.
        agreement: as in :class:`Row`.
        spikes_per_neuron: spikes per neuron and image, up to the step where the image stopped.
        images_per_second: speed of this simulation alone.
        drop: as in :class:`Row`.
        drop_interval: as in :class:`Row`.
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
        snn: the network at each T; empty if only the early exit was asked for.
        images_per_second: speed of the simulation, without decoding and the ANN: all images divided by the time of the
            slowest process. It is that of the fixed T if they were simulated, else that of the exit.
        seconds_per_step_per_image: that same time divided by the steps of all images.
        peak_memory_bytes: the largest of any process: tensors on its GPU, or the whole process on a CPU.
        exit: the early exit; None, and absent from the JSON, unless asked for.
        precision: ``"exact"``, which the JSON leaves out, or ``"fast"``.
        alphabet: what the neurons send, as :attr:`Graph.alphabet`; the JSON leaves ``"binary"`` out.
        calibrated_on: how many of the images the network was calibrated on; the JSON leaves 0 out.
        trained_for: the T that a directly trained network was trained for; the agreement is with its answers at that
            T. The JSON leaves None out.
        data: which images these are: ``path``, ``split``, how many there are (``of``), and what was ``left_out``:
            ``calibrated_on``, ``unreadable``, files that are ``no_images``, the share ``events_outside`` the bins. For
            any other iterable, its description as ``loader``.
        notes: what about the images or answers is probably not as intended.
        repeated: how many of the images had been counted before; the JSON leaves 0 out.
        fitted_for: the T that the recipe was fitted to; None for a recipe that is not fitted, which the JSON leaves
            out.
        copies: how many plain neurons stand for each of the source network's; the JSON leaves 1 out.
        fitted: of a network for several T, each T that it has numbers for; the JSON leaves it out of others.

    Raises:
        InvalidData: a share is not between 0 and 1, so something was counted wrong.
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
    copies: int = 1
    fitted: tuple[int, ...] = ()

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
                f"mean T; each image until it is {out.confidence:g} sure, at most T = {out.timesteps}"
                f"{', with its numbers' if self.fitted else ''}; "
                f"{out.images_per_second:.2f} images/s"
            )
        yield "\n".join(self._head())
        yield Table(titles, tuple(tuple(line.get(name, "") for name in titles) for line in cells), texts=0, gap=3)
        yield "\n".join(self._foot())

    def _head(self) -> Iterator[str]:
        """What was measured, and what to know about it."""
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
        if self.fitted:
            yield f"one network with numbers of its own for T = {', '.join(map(str, self.fitted))}"
        if self.fitted and any(row.fitted is False for row in self.snn):
            yield "* no numbers for this T: those of the largest T below it, or of the smallest there is"
        elif any(row.fitted is False for row in self.snn):
            yield f"* not fitted to this T but to T = {self.fitted_for}: convert for another with timesteps=T"
        yield (
            f"{self.images_per_second:.2f} images/s   {self.seconds_per_step_per_image * 1e3:.4g} ms per step and image"
            f"   peak memory {self.peak_memory_bytes / 2**20:.0f} MiB"
        )


def described(data: Mapping[str, Any] | None, images: int) -> str:
    """One line that says which images these are."""
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
