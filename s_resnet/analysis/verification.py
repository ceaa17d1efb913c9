"""What a verification found, layer by layer and channel by channel, and what would help."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..runtime.display import Displayed, Figures, Table, percent, plain
from .figures import described
from .losses import PARTS

SCHEMA = 1
LEGEND = (
    "uneven to inherited are parts of the total, as root mean squares, which do not add up; unsettled: neurons whose "
    "count is not what all their charge is worth"
)
SHORT = ("uneven", "quantized", "clipped", "inherited", "own", "total")
TABLE = "print(_.table()) shows every layer, _.to_dict() also every channel"
SATURATING = 4  # with fewer steps many neurons fire at each of them, and are not stuck
MOSTLY = 0.5  # a layer learns little if more than this share of its neurons is dormant

# What helps against each part, with the recipes that already do it.
_FITTED = (
    "calibrated",
    "calibrated-constant",
    "calibrated-fission",
    "calibrated-lagged",
    "phased",
    "signed",
    "multilevel",
)
_ADVICE: Mapping[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "unevenness": (
        ('recipe="phased", whose layers fire after they have received all their input', ("phased",)),
        ('recipe="signed", whose neurons take back surplus spikes', ("phased", "signed")),
        ('recipe="calibrated", which corrects every layer on the spikes it really gets', _FITTED),
    ),
    "quantization": (
        ("a larger T (convert with timesteps={twice})", ()),
        ('recipe="multilevel", whose neurons emit several thresholds per step', ("multilevel",)),
    ),
    "clipping": (
        ("more calibration images", ()),
        ("a larger percentile in convert", _FITTED),
        ('recipe="calibrated", whose thresholds are fitted to T', _FITTED),
    ),
    "inherited": (("recipe.reconstructed(), with a recipe that fits (calibrated, phased, signed or multilevel)", ()),),
}
# The same for networks trained with QCFS: other recipes would replace the thresholds that they have learned.
_TUNING = ("s_resnet.fine_tune, which trains on the real spikes", ())
_QCFS_ADVICE: Mapping[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "unevenness": (
        ('recipe="phased", whose layers fire after they have received all their input', ("qcfs-phased",)),
        _TUNING,
    ),
    "quantization": (("a larger T (convert with timesteps={twice})", ()), ("training with more levels", ())),
    "clipping": (("longer training, which learns the thresholds", ()), _TUNING),
    "inherited": (_TUNING,),
}


@dataclass(frozen=True, repr=False)
class LayerVerification(Displayed):
    """One neuron layer: what it loses against the source network, or what it does if there is none.

    Errors are root mean squares over neurons and images, relative to that of the source; channels are weighted in the
    source's units (:attr:`Neuron.scale`). Parts may cancel, so their root mean squares do not sum to the total; the
    parts themselves do.

    Attributes:
        name: the node.
        rate: thresholds emitted per neuron and step (spikes, in a directly trained network); of copies, by all of them.
        dead: channels that never fire although the source network is active there; in a directly trained network, all
            that never fire.
        saturated: channels in which more than 1 % of neurons and images are stuck at the largest count, below the
            source's activation; in a directly trained network, those that fire all they can at every step.
        channels: per channel ``rate``, ``saturation`` (that share), and each of ``errors`` or ``dormant``.
        errors: ``unevenness``, ``quantization``, ``clipping``, ``inherited``; ``own``, the sum of the first three;
            ``total``. None for a directly trained network, which has no source.
        unsettled: share of neurons and images whose count is not the one that the total charge gives; None for a
            directly trained network.
        differential: whether quantization includes unevenness.
        dormant: share of neurons and images whose membranes never lie in the surrogate's window, so that no gradient
            passes; 0 for a surrogate that is zero nowhere, None for a converted network.
        drift: root mean square of the mean output after T steps minus that after the T it was trained for, relative
            to the latter; None for a converted network.
    """

    name: str
    rate: float
    dead: tuple[int, ...]
    saturated: tuple[int, ...]
    channels: dict[str, tuple[float, ...]]
    errors: dict[str, float] | None = None
    unsettled: float | None = None
    differential: bool = False
    dormant: float | None = None
    drift: float | None = None

    @property
    def few(self) -> tuple[str, str]:
        """How many channels are dead, and how many saturated, in the form ``3/64``."""
        of = len(self.channels["rate"])
        return f"{len(self.dead)}/{of}", f"{len(self.saturated)}/{of}"


@dataclass(frozen=True, repr=False)
class Verification(Figures):
    """Where a spiking network departs from its source network, on the same images.

    A directly trained network has no source. It is compared with its own answers after the T that it was trained for,
    and its layers are examined by themselves.

    Attributes:
        network: its name.
        recipe: the recipe that made it.
        timesteps: T.
        images: how many.
        layers: its neuron layers in execution order.
        logit_error: root mean square of the logits' error, relative to the logits it is compared with.
        agreement: share of images with the same answer.
        top1: accuracies of ``ann`` and ``snn``; for a directly trained network those of ``snn``, and of ``trained`` if
            it was trained for another T. Empty without labels.
        breaks: the first layer whose total error reaches half of its signal (a signal-to-error power ratio of 4), or
            None.
        worst: the layer with the largest own error; None for a directly trained network.
        cause: the part with the largest sum of squared errors over the layers up to ``breaks`` (over all if it is
            None). It is ``inherited``, meaning that many small errors add up, if every own error is below a tenth of
            its signal and nothing is reconstructed. None for a directly trained network.
        trained_for: the T that a directly trained network was trained for; None for a converted one.
        data: which images these are, as in :class:`s_resnet.Report`.
    """

    network: str
    recipe: str
    timesteps: int
    images: int
    layers: tuple[LayerVerification, ...]
    logit_error: float
    agreement: float
    top1: dict[str, float]
    breaks: str | None = None
    worst: str | None = None
    cause: str | None = None
    trained_for: int | None = None
    data: Mapping[str, Any] | None = None

    @property
    def verdict(self) -> str:
        """What the figures say, in a few sentences."""
        return _losses(self) if self.trained_for is None else _activity(self, self.trained_for)

    @property
    def advice(self) -> str:
        """The settings that would help."""
        return _against(self, self.cause) if self.cause is not None else _training(self)

    @property
    def _moved(self) -> bool:
        """Whether a directly trained network ran at another T than it was trained for."""
        return self.trained_for not in (None, self.timesteps)

    def to_dict(self) -> dict[str, Any]:
        """The documented JSON object, schema 1.

        An error where the source network is silent is null, and so is a figure that has no meaning for a directly
        trained network. Figures that only such a network has are left out for a converted one.
        """
        entry = {"schema": SCHEMA, **asdict(self), "verdict": self.verdict, "advice": self.advice}
        if self.trained_for is None:
            del entry["trained_for"]
            for layer in entry["layers"]:
                del layer["dormant"], layer["drift"]
        return dict(plain(entry))

    def _lines(self) -> Iterator[str]:
        made = f"recipe {self.recipe}" if self.trained_for is None else "directly trained"
        yield f"Verification of {self.network or 'a network'}, {made}, T = {self.timesteps}, {self.images:,} images"
        yield from self._conclusions()
        yield TABLE

    def _parts(self) -> Iterator[str | Table]:
        trained = "" if self.trained_for is None else f" (trained for {self.trained_for})"
        said = f"{self.network}   recipe {self.recipe}   T = {self.timesteps}{trained}   {self.images} images"
        yield f"{said}\ndata: {described(self.data, self.images)}"
        if self.trained_for is None:
            titles = ("layer", "rate", *SHORT, "unsettled", "dead", "saturated")
            yield Table(titles, tuple(map(_loss_row, self.layers)), width=9)
            yield LEGEND
        else:
            yield self._activity_table()
        logits, *rest = self._conclusions()
        if logits:
            yield logits
        yield "\n".join(rest)

    def _activity_table(self) -> Table:
        """A line per layer; with the drift if T is not the one it was trained for."""
        stuck = self.timesteps >= SATURATING
        titles = ("layer", "rate", "dead", *["saturated"] * stuck, "dormant", *["drift"] * self._moved)
        rows = []
        for layer in self.layers:
            dead, saturated = layer.few
            told = (*[saturated] * stuck, percent(layer.dormant), *[percent(layer.drift)] * self._moved)
            rows.append((layer.name, f"{layer.rate:.4f}", dead, *told))
        return Table(titles, tuple(rows), width=9)

    def _conclusions(self) -> tuple[str, str, str]:
        """What the answers are worth, the verdict and the advice."""
        accuracy = "".join(f"   top-1 {name.upper()} {percent(share)}" for name, share in self.top1.items())
        logits = f"logits: error {percent(self.logit_error)}   agreement {percent(self.agreement)}{accuracy}"
        if self.timesteps == self.trained_for:
            logits = accuracy.strip()  # there is nothing else to compare with
        return logits, self.verdict, self.advice


def _loss_row(layer: LayerVerification) -> tuple[str, ...]:
    errors = [percent(share) for share in (layer.errors or {}).values()]
    if layer.differential:
        errors[0] = "in next"
    return (layer.name, f"{layer.rate:.4f}", *errors, percent(layer.unsettled), *layer.few)


def _losses(result: Verification) -> str:
    """Which layer of a converted network breaks, and which adds most."""
    errors = {layer.name: layer.errors or {} for layer in result.layers}
    worst = next(layer for layer in result.layers if layer.name == result.worst)
    most = max(PARTS[:3], key=lambda part: errors[worst.name][part])
    if worst.differential and most == "quantization":
        most += " and unevenness"
    adds = f"{worst.name} adds most ({percent(errors[worst.name]['own'])} of its own, mostly {most})."
    if result.breaks is None:
        name = max(errors, key=lambda layer: errors[layer]["total"])
        return f"No layer breaks: the largest error is {percent(errors[name]['total'])}, in {name}. {adds}"
    broken = errors[result.breaks]
    return (
        f"{result.breaks} is the first to break: its error is {percent(broken['total'])} of its signal "
        f"({percent(broken['own'])} its own, {percent(broken['inherited'])} inherited). {adds}"
    )


def _activity(result: Verification, trained_for: int) -> str:
    """What the neurons of a directly trained network do."""
    channels = sum(len(layer.channels["rate"]) for layer in result.layers)
    dead = sum(len(layer.dead) for layer in result.layers)
    most = max(result.layers, key=lambda layer: len(layer.dead))
    said = [f"All {channels} channels fire."]
    if dead:
        said = [f"{dead} of {channels} channels never fire, {len(most.dead)} of them in {most.name}."]
    asleep = max(result.layers, key=lambda layer: layer.dormant or 0.0)
    said.append(f"Most dormant: {asleep.name}, {percent(asleep.dormant)} of its neurons.")
    if result.timesteps != trained_for:
        moved = max(result.layers, key=lambda layer: layer.drift or 0.0)
        said.append(
            f"It was trained for T = {trained_for}: at T = {result.timesteps} logits differ from those by "
            f"{percent(result.logit_error)}, and {percent(result.agreement)} of the answers are the same; "
            f"{moved.name} drifts most ({percent(moved.drift)})."
        )
    return " ".join(said)


def _against(result: Verification, cause: str) -> str:
    because = "Small errors of many layers add up" if cause == "inherited" else f"Mostly {cause}"
    advice = _QCFS_ADVICE if result.recipe.startswith("qcfs") else _ADVICE
    help = [text for text, needless in advice[cause] if not _is_one_of(result.recipe, needless)]
    return f"{because}; what would help: {'; or '.join(help).format(twice=2 * result.timesteps)}."


def _is_one_of(recipe: str, names: tuple[str, ...]) -> bool:
    """Whether it is one of these recipes, or one of them where fewer layers wait: ``"calibrated-lagged-blocks"``."""
    return any(recipe == name or recipe.startswith(f"{name}-") for name in names)


def _training(result: Verification) -> str:
    said = []
    asleep = [layer.name for layer in result.layers if (layer.dormant or 0.0) > MOSTLY]
    if asleep:
        said.append(
            f"No gradient passes through most neurons of {len(asleep)} of {len(result.layers)} layers; what would "
            "help in training: neurons (SpikingNeuron in Python) with a wider surrogate, one that is zero nowhere, "
            "or more thresholds."
        )
    if result.timesteps != result.trained_for and result.agreement < 1:
        said.append(f"Run it at T = {result.trained_for}, or train it for T = {result.timesteps}.")
    return " ".join(said) or "Nothing to change."
