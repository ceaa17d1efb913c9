"""Training: settings, the papers' recipes, augmentation, checkpoints that a run goes on from, and the loop."""

from .loop import Trained, train
from .presets import PRESETS, Preset, preset
from .settings import Training

__all__ = ["PRESETS", "Preset", "Trained", "Training", "preset", "train"]
