"""Files that the process under test may not read."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def closed_to_this_user(path: Path, mode: int = 0) -> Iterator[None]:
    """While it lasts, nothing but what `mode` allows can be done with a path, also where root tests."""
    before = path.stat().st_mode
    path.chmod(mode)
    was_root = os.geteuid() == 0
    if was_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if was_root:
            os.seteuid(0)
        path.chmod(before)
