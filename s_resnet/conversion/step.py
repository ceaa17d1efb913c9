"""A step of a recipe: one pass with its settings. Plain data."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import cast

from ..errors import ConversionError, message
from ..graph.graph import Graph
from ..graph.provenance import AppliedPass
from ..runtime.display import Displayed
from . import passes
from .passes.reconstruct import check_settings
from .passes.relu_to_neuron import NeuronSettings, neuron_like

FITTED = ("fit_thresholds", "calibrate_neurons", "reconstruct", "fit_readout")  # to calibration images, for T
FITTED_AS_PUBLISHED = ("iterate_thresholds", "match_means", "match_every_step", "delay_readout")  # the same
FITS = (*FITTED, *FITTED_AS_PUBLISHED, "peak_thresholds", "balance_thresholds")  # passes fitted to calibration images
TUNED = ("compensate", "add_half_step", *FITTED, *FITTED_AS_PUBLISHED)  # passes tuned for T


@dataclass(frozen=True, repr=False)
class Step(Displayed):
    """One pass with its settings.

    Attributes:
        run: the pass, ``(graph, context, **settings) -> graph``.
        settings: numbers and strings, as in JSON.
        optional: whether a network may have nothing for it to do.

    Raises:
        ConversionError: the pass has no such setting, or not in this combination.
        InvalidData: a setting of neurons or of the reconstruction is out of range.
    """

    run: Callable[..., Graph]
    settings: Mapping[str, object] = field(default_factory=dict)
    optional: bool = False

    def __post_init__(self) -> None:
        known = list(inspect.signature(self.run).parameters)[2:]
        if self.run is passes.relu_to_neuron:
            neuron_like(cast(NeuronSettings, self.settings))
        elif unknown := [name for name in self.settings if name not in known]:
            expected = f"one of {', '.join(known)}" if known else "none"
            remedy = "Leave the setting out of the recipe"
            raise ConversionError(message(self.name, "", f"setting {unknown[0]!r}", expected, remedy))
        elif self.run is passes.reconstruct:
            check_settings(self.settings)

    @property
    def name(self) -> str:
        """The name of the pass."""
        return self.run.__name__

    def told(self, timesteps: int) -> AppliedPass:
        """The record of this step in an artifact."""
        tuned = {"timesteps": timesteps} if self.name in TUNED else {}
        kept = {name: value for name, value in self.settings.items() if name != "resume"}
        return AppliedPass(self.name, extra={**tuned, **kept})
