"""Training and fine-tuning: settings, the papers' recipes, augmentation, checkpoints to go on from, and the loop."""

from .loop import Trained, train
from .presets import PRESETS, Preset, preset
from .settings import Training
from .tuning import Tuned, fine_tune, tuning

__all__ = ["PRESETS", "Preset", "Trained", "Training", "Tuned", "fine_tune", "preset", "train", "tuning"]
