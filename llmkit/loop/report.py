"""The page on a run that the run leaves in its folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmkit.monitor.record import read_run

if TYPE_CHECKING:
    from llmkit.loop.trainer import Trainer

REPORT = "report.html"
"""In the run folder."""


def write_report(t: Trainer) -> bool:
    """Writes report.html, on rank 0, where `monitor.report` asks for it; returns whether it is there.

    Whatever goes wrong is noted: a run that has ended well has not failed for want of a page.
    """
    if t.mesh.rank > 0 or not t.config.monitor.report:
        return False
    t.folder.require_current()
    try:
        from llmkit.report.command import write_page  # a run that is killed never needs it

        write_page([read_run(t.folder.path)], t.folder.path / REPORT)
    except Exception as error:
        t.console.note(f"no report: {type(error).__name__}: {error}")
        return False
    return True
