"""Figures of a run as text: durations, rates, times of day."""

from __future__ import annotations

from datetime import datetime

NOT_FINITE = "not finite"


def shown_bits(bits_per_byte: float | None) -> str:
    """Bits per byte, or why there are none."""
    return "none (the held-out tokens stand for no text)" if bits_per_byte is None else f"{bits_per_byte:.4f}"


def duration(seconds: float) -> str:
    """`seconds` in the two units that matter: 42 s, 3 min 05 s, 2 h 10 min, 4 d 03 h."""
    whole = max(0, round(seconds))
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if days:
        return f"{days:,} d {hours % 24:02d} h"
    if hours:
        return f"{hours} h {minutes % 60:02d} min"
    if minutes:
        return f"{minutes} min {whole % 60:02d} s"
    return f"{whole} s"


def number(value: float | None, form: str) -> str:
    """A figure in this format; None stands for one that is not finite."""
    return NOT_FINITE if value is None else format(value, form)


def thousands(value: float) -> str:
    """A count with three figures: 950, 12.3k, 3.45M would be 3.5M."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.{0 if value >= 100 * size else 1}f}{unit}"
    return f"{value:.0f}"


def time_of_day(moment: datetime, now: datetime) -> str:
    """`moment` in the zone of `now`: "14:32", within a week "Tue 14:32", else "2026-12-24 14:32"."""
    moment = moment.astimezone(now.tzinfo)
    days = abs((moment.date() - now.date()).days)
    if days == 0:
        return f"{moment:%H:%M}"
    return f"{moment:%a %H:%M}" if days < 7 else f"{moment:%Y-%m-%d %H:%M}"
