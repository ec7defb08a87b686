"""An owner's page about one day: what the car did, what that took, what the owner can change."""

from edge_runtime.cli.day.page import render_day
from edge_runtime.cli.day.words import summary_of

__all__ = ["render_day", "summary_of"]
