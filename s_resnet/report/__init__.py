"""The report: one HTML file, readable without a network and by someone who did not run it, with its figures as JSON."""

from .page import write_page
from .study import Study, study

__all__ = [
    "Study",
    "study",
    "write_page",
]
