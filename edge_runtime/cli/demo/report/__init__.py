"""The demo's report: one self-contained HTML page. `render_report(data) -> str` is pure."""

from edge_runtime.cli.demo.report.data import (
    Box,
    FaultKind,
    FaultMark,
    JobRow,
    PictureAnswer,
    ReportData,
    ResultMark,
    SimilarAnswer,
    Summary,
)
from edge_runtime.cli.demo.report.page import render_report

__all__ = [
    "Box",
    "FaultKind",
    "FaultMark",
    "JobRow",
    "PictureAnswer",
    "ReportData",
    "ResultMark",
    "SimilarAnswer",
    "Summary",
    "render_report",
]
