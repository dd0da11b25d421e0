"""What the commands of the benchmarks share."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence


def progress(text: str) -> None:
    """One line on stderr, so that a long run shows where it is."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def list_among(allowed: Sequence[str]) -> Callable[[str], list[str]]:
    """A reader of comma-separated names."""

    def read(text: str) -> list[str]:
        names = list(dict.fromkeys(text.split(",")))
        unknown = [name for name in names if name not in allowed]
        if unknown:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not among {', '.join(allowed)}")
        return names

    return read
