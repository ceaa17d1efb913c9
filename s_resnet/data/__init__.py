"""Images, signals, event recordings and labels: opening, preprocessing, and keeping training and test data apart."""

from .arrays import ArrayData, ArrayLoader, AsStored
from .classes import match_classes, natural_order, network_classes, order_note, read_names
from .events import EVENT_BINS, Binning, EventData, EventLoader, Events, MeanFrameLoader, bin_events
from .folders import held_out_beside
from .images import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ImageData,
    Preprocessing,
    choose,
    preprocessing_for,
    without_labels,
)
from .intervals import paired_difference, wilson
from .leakage import fingerprints, used_for_calibration
from .loader import ImageLoader, Loader
from .open import loader_for, open_data

__all__ = [
    "EVENT_BINS",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "ArrayData",
    "ArrayLoader",
    "AsStored",
    "Binning",
    "EventData",
    "EventLoader",
    "Events",
    "ImageData",
    "ImageLoader",
    "Loader",
    "MeanFrameLoader",
    "Preprocessing",
    "bin_events",
    "choose",
    "fingerprints",
    "held_out_beside",
    "loader_for",
    "match_classes",
    "natural_order",
    "network_classes",
    "open_data",
    "order_note",
    "paired_difference",
    "preprocessing_for",
    "read_names",
    "used_for_calibration",
    "wilson",
    "without_labels",
]
