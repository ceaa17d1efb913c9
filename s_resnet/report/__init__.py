"""The report: HTML files, readable without a network and by someone who did not run them, and tables for papers."""

from .comparison_forms import FORMS, comparison_form, comparison_text, write_comparison
from .network_report import NetworkReport, ReportSettings, measure
from .page import write_page

__all__ = [
    "FORMS",
    "NetworkReport",
    "ReportSettings",
    "comparison_form",
    "comparison_text",
    "measure",
    "write_comparison",
    "write_page",
]
