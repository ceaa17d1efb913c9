"""What a pass knows besides the network: statistics of its activations, and the T that it is converted for."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..errors import ConversionError, message
from ..runtime.display import Displayed
from .calibrate import NO_CALIBRATION, Calibration
from .spill import Spill


@dataclass(frozen=True, repr=False)
class Context(Displayed):
    """The second argument of every pass.

    Attributes:
        calibration: the scales and calibration images; by default none, which is enough for passes that need none.
        timesteps: T, for passes that fit to it; None if no pass does, or for :meth:`Recipe.apply` to use the recipe's.
        progress: whether to show bars on stderr when it is a terminal.
    """

    calibration: Calibration = NO_CALIBRATION
    timesteps: int | None = None
    progress: bool = False

    def fitting_images(self, where: str) -> Tensor | Spill:
        """The images ``[N, C, H, W]`` that the pass ``where`` fits to.

        Raises:
            ConversionError: there are none.
        """
        images = self.calibration.fitting
        if images is None or len(images) == 0:
            remedy = "Pass calibration_batches, or choose the recipe s-resnet, which can do without"
            raise ConversionError(message(where, "", "no calibration images", "256 to 1,024", remedy))
        return images

    def fitting_steps(self, where: str) -> int:
        """The T that the pass ``where`` fits to.

        Raises:
            ConversionError: there is none.
        """
        if self.timesteps is None:
            remedy = "Pass Context(calibration, timesteps=16)"
            raise ConversionError(message(where, "", "no T to fit to", "one", remedy))
        return self.timesteps
