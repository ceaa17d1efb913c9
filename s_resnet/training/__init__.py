"""Training and fine-tuning: settings, the papers' presets, augmentation, checkpoints to resume from, and the loop."""

from .fine_tuning import FineTuning, fine_tune, fine_tuning_defaults
from .loop import TrainingResult, train
from .presets import PRESETS, Preset, preset
from .settings import Execution, Training

__all__ = [
    "PRESETS",
    "Execution",
    "FineTuning",
    "Preset",
    "Training",
    "TrainingResult",
    "fine_tune",
    "fine_tuning_defaults",
    "preset",
    "train",
]
