"""What every test may rely on: no network, no W&B server, no GPU unless it is asked for."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.drills.catalogue import drills_of
from tests.program import make_project

# What a busy machine does slowly is no fault.
settings.register_profile("no-clock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no-clock")

# Set before anything imports torch or a Hugging Face library.
os.environ["HF_HUB_OFFLINE"] = "1"
# As `run.deterministic` does: some tests compare bit for bit, and MKL would otherwise round by alignment.
os.environ["MKL_CBWR"] = "COMPATIBLE"
os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
# Tensors here are small: a second thread costs more than it brings.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["WANDB_MODE"] = "disabled"
os.environ["TOKENIZERS_PARALLELISM"] = "true"
for secret in ("WANDB_API_KEY", "HF_TOKEN"):
    os.environ.pop(secret, None)

# Under nohup it is ignored, by programs that tests start too, which then do not stop.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

LONGEST = ("tests/slurm", "tests/benchmarks", "tests/parity", "tests/engine", "tests/launch", "tests/drills")
"""Folders with the tests that take minutes, the longest first."""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a small configuration, as working directory."""
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True, scope="module")
def _new_to_the_compiler() -> None:
    """What torch.compile has given up in tests of another file, it tries again."""
    if "torch._dynamo" in sys.modules:
        sys.modules["torch._dynamo"].reset()


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Callable[[str, float | str, str], None]:
    """Records a figure of a drill for the table of `python -m tests.drills`: name, value, unit."""

    def record(name: str, value: float | str, unit: str) -> None:
        request.node.user_properties.append(("measured", (name, value, unit)))

    return record


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Each test begins with the same random numbers, whichever ran before it in this process."""
    random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


def pytest_collection_finish(session: pytest.Session) -> None:
    """No file of tests registers anything when it is imported: all tests would have other settings."""
    from llmkit import registry

    if registry._components:
        found = ", ".join(component.origin for component in registry._components.values())
        raise pytest.UsageError(f"registered while tests were collected: {found}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Wrong marks of drills are found; tests that need a GPU are skipped, and said to be, without one.

    Where several workers share the tests, each file stays with one of them, and what takes longest comes
    first. There is one cluster of tests/slurm, which they cannot share.
    """
    for item in items:
        drills_of(item)
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=_place)
        for item in items:
            if item.nodeid.startswith("tests/slurm/"):
                alone = "one process alone performs it: make test WORKERS=0 ARGS=tests/slurm"
                item.add_marker(pytest.mark.skip(reason=alone))
    wanting = [item for item in items if item.get_closest_marker("cuda")]
    if not wanting:
        return
    import torch

    if not torch.cuda.is_available():
        for item in wanting:
            item.add_marker(pytest.mark.skip(reason="no GPU here"))


def _place(item: pytest.Item) -> int:
    """Where a test comes in the order: the smaller the earlier."""
    return next((place for place, name in enumerate(LONGEST) if item.nodeid.startswith(name)), len(LONGEST))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Seconds of each folder of tests, the slowest first."""
    seconds: dict[str, float] = defaultdict(float)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds[str(Path(report.location[0]).parent)] += report.duration
    terminalreporter.write_sep("-", "seconds a folder")
    for folder, spent in sorted(seconds.items(), key=lambda item: -item[1]):
        terminalreporter.write_line(f"{spent:8.1f}  {folder}")
