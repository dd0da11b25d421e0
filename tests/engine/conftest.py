"""What several tests of engines use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def waiting_is_an_error() -> Iterator[None]:
    """On a GPU: whatever waits for it raises."""
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")
