"""A run on one process, which several tests compare with."""

from __future__ import annotations

import pytest
import torch

from llmkit.parity.run import Trajectory, run_alone


@pytest.fixture(scope="session")
def alone() -> Trajectory:
    return run_alone("gpt2", True, "fp32", torch.device("cpu"))
