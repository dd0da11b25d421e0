"""Whether a job's time limit leaves time to train before SLURM's warning that the limit is near."""

from __future__ import annotations

import re
from collections.abc import Mapping

_IN_SCRIPT = re.compile(r"^#SBATCH --(time|signal)=(\S+)", re.MULTILINE)
_WITHOUT_TIME = 60
"""Seconds before the limit at which sbatch sends a signal that is given without a time."""
_EARLIER = 60
"""Seconds by which SLURM may send it earlier, by its manual."""


def too_short(script: str, options: Mapping[str, str | None]) -> str | None:
    """Why no start of the job could train, as each would be warned as it begins; None where they can.

    script: the template, whose own options hold where `options`, those of the job, have none.
    """
    chosen = dict[str, str | None](_IN_SCRIPT.findall(script)) | dict(options)
    limit, warning = _seconds(chosen.get("time") or ""), _warning(chosen.get("signal") or "")
    if limit is None or warning is None or limit > warning + _EARLIER:
        return None
    return (
        f"--time: {chosen['time']} is {limit:,} seconds, and SLURM warns the run {warning:,} seconds before "
        f"they are over, or up to {_EARLIER} earlier: every start would be told to stop as it begins, and "
        f"train nothing; ask for more than {warning + _EARLIER:,} seconds, or for a later warning by "
        "--sbatch-option=--signal=B:USR1@SECONDS"
    )


def _seconds(limit: str) -> int | None:
    """Of a time limit in one of sbatch's forms; None for another form, and for none at all, which is 0."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", limit, re.ASCII)
    if found is None:
        return None
    days, *parts = (None if part is None else int(part) for part in found.groups())
    given = [part for part in parts if part is not None]
    if days is None:  # minutes, minutes:seconds or hours:minutes:seconds
        given = [0] * (len(given) < 3) + given
    hours, minutes, seconds = [*given, 0, 0][:3]
    return ((((days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds) or None


def _warning(signal: str) -> int | None:
    """Seconds before the limit at which the signal comes; None without a signal."""
    found = re.fullmatch(r"(?:[RB]+:)?\w+(?:@(\d+))?", signal, re.ASCII)
    if found is None:
        return None
    return int(found[1]) if found[1] else _WITHOUT_TIME
