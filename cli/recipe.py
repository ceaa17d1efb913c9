"""The options of ``sresnet convert`` that make a recipe."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import s_resnet

CRITERIA = ("spikes", "target_drop", "latency", "no_step_currents", "no_delays")  # of --recipe auto


@dataclass(frozen=True)
class RecipeOptions:
    """What was asked for, by the names of the options; None for what was left out."""

    recipe: str | None
    timesteps: tuple[int, ...] | None
    percentile: float | None
    weights: str
    reconstruct: bool
    spikes: str | None
    target_drop: float | None
    latency: int | None
    no_step_currents: bool
    no_delays: bool
    lag: str | None

    def build(self, with_images: bool) -> s_resnet.Recipe | s_resnet.conversion.Auto:
        """The recipe that they make together.

        Raises:
            click.UsageError: a percentile is given for a recipe that does not use it.
            InvalidData: the options cannot be combined.
            ConversionError: the recipe cannot have them.
        """
        import s_resnet

        built: s_resnet.Recipe | s_resnet.conversion.Auto
        if self.recipe == "auto":
            spikes, has = self.spikes or "binary", (not self.no_step_currents, not self.no_delays)
            built = s_resnet.conversion.Auto(spikes, self.target_drop, self.latency, has[0], has[1])
        elif given := self._criteria():
            expected = "them with --recipe auto, for which they are criteria"
            remedy = "Leave them out, or choose --recipe auto"
            got = f"{', '.join(given)} with a recipe by name"
            raise s_resnet.errors.InvalidData(s_resnet.errors.message("convert", "", got, expected, remedy))
        else:
            named, default = s_resnet.conversion.recipe_named, s_resnet.conversion.default_recipe
            built = named(self.recipe) if self.recipe else default(with_images)
        if self.lag is not None:
            if not isinstance(built, s_resnet.Recipe):
                raise click.UsageError(
                    "--lag says which layers of one recipe wait; auto tries every choice. Leave it out, or choose "
                    "--recipe calibrated-lagged."
                )
            built = built.set("relu_to_neuron", lag=self.lag)
        if self.percentile is not None:
            if not isinstance(built, s_resnet.Recipe) or built.fits:
                raise click.UsageError(
                    f"--percentile applies to the paper's recipes; {built.name} chooses its thresholds by their error. "
                    "Leave it out, or choose --recipe s-resnet."
                )
            built = built.with_percentile(self.percentile)
        built = built.with_weights(self.weights)
        if self.timesteps is not None:  # checked before anything is read
            own, _ = s_resnet.conversion.own_and_others(self.timesteps, built)
            assert own is not None
            built = built.at(own)
        return built.reconstructed() if self.reconstruct else built

    def _criteria(self) -> list[str]:
        """The options for ``--recipe auto`` that were given."""
        given = [name for name in CRITERIA if getattr(self, name) is not None and getattr(self, name) is not False]
        return [f"--{name.replace('_', '-')}" for name in given]

    def check_trained(self, checkpoint: Path | str) -> None:
        """Raise click.UsageError for options that do not apply to a directly trained network."""
        asked = replace(self, weights="") if self.weights == "float32" else self
        given = [f"--{name.replace('_', '-')}" for name, value in vars(asked).items() if value]
        if given:
            raise click.UsageError(
                f"{checkpoint} was trained as a spiking network, to which {', '.join(given)} cannot be applied. Leave "
                "it out; evaluate takes any T."
            )

    def words(self, name: str, timesteps: Sequence[int] | None) -> list[str]:
        """Recipe, T (None for auto) and the other settings, as words of the network's file name."""
        asked = f"E{self.latency or 16}" if self.target_drop is None else f"drop{self.target_drop:g}"
        steps = asked if timesteps is None else f"T{'-'.join(map(str, sorted(timesteps)))}"
        words = [name, *([self.spikes] if self.spikes else []), steps]
        words += [self.weights] if self.weights != "float32" else []
        return [*words, "reconstructed"] if self.reconstruct else words
