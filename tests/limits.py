"""Limits of time that guard tests against a hang.

A shared machine may give a test a tenth of a core, so none of these says how fast anything is: a limit is
minutes, and what must not wait at all is seen by a wait that is longer than the limit.
"""

from __future__ import annotations

from datetime import timedelta

HANG = 600.0
"""Seconds after which a process, a thread or a reply counts as hung."""
LONGER = timedelta(hours=1)
"""A wait that no test outlives: where it would be taken, the limit above ends the test."""
