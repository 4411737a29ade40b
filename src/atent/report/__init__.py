"""A self-contained HTML report of run folders: training, evaluation and headline results."""

from atent.report.compose import report

__all__ = ["report"]
