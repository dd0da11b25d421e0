"""Tests of what can only be known on a GPU. Each has the same body on the CPU, at a small size.

On the CPU it shows that the test itself runs; `make test-gpu` runs those marked cuda.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Where it runs; on a GPU no test keeps memory for the next."""
    found = torch.device(request.param)
    if found.type == "cpu":
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield found
        torch.set_num_threads(threads)
        return
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    yield found
    torch.cuda.synchronize()
    torch.compiler.reset()
    torch.cuda.empty_cache()
