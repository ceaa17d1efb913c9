"""The report: one HTML file, readable without a network and by someone who did not run it, with its figures as JSON."""

from .network_report import NetworkReport, ReportSettings, measure
from .page import write_page

__all__ = [
    "NetworkReport",
    "ReportSettings",
    "measure",
    "write_page",
]
