"""One self-contained HTML page from run folders: what was trained, how it was evaluated, and what may be claimed of
it."""

from atent.report.compose import report

__all__ = ["report"]
