"""Tests of Triton kernels run in Triton's interpreter, on the CPU, or on a GPU where one is.

Whether kernels are interpreted is decided when triton is first imported, and torch.compile imports it too. So
the tests of this folder run in one process of their own, which pytest starts at the first of them. A test
asks for `device`: "cpu" there, "cuda" (marked so) in pytest's own process.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import traceback
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from tests.limits import HANG


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> str:
    """Where the kernels run."""
    return request.param


@pytest.fixture(scope="session")
def interpreter() -> Iterator[ProcessPoolExecutor]:
    """A process in which Triton interprets."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed; the extra `dev` brings it on Linux")
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            pool.submit(os.getpid).result(HANG)  # it has started, with this environment
            if before is None:
                del os.environ["TRITON_INTERPRET"]
            yield pool
    finally:
        os.environ.pop("TRITON_INTERPRET", None)
        if before is not None:
            os.environ["TRITON_INTERPRET"] = before


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test here that does not run on a GPU asks for the process."""
    for item in items:
        if item.path.parent == Path(__file__).parent and not item.get_closest_marker("cuda"):
            item.fixturenames.append("interpreter")  # type: ignore[attr-defined]


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Runs a test in the interpreter's process."""
    pool = pyfuncitem.funcargs.get("interpreter")
    if pool is None:
        return None
    names = pyfuncitem._fixtureinfo.argnames
    arguments = {name: pyfuncitem.funcargs[name] for name in names}
    call = pool.submit(_run, str(pyfuncitem.path), pyfuncitem.originalname, arguments)
    if (failure := call.result(HANG)) is not None:
        pytest.fail(failure, pytrace=False)
    return True


def _run(path: str, name: str, arguments: dict[str, Any]) -> str | None:
    """Calls a test function; the traceback of what it raised, or None."""
    import torch

    from tests.kernels.float64 import TOLERANCE

    torch.set_num_threads(1)
    torch.manual_seed(0)
    TOLERANCE[torch.bfloat16] = 8e-3  # the interpreter does not round to it, it truncates
    try:
        getattr(_load(path), name)(**arguments)
    except BaseException:
        return traceback.format_exc()
    return None


@cache
def _load(path: str) -> Any:
    """The module of a file of tests. pytest does not rewrite its assertions: they need messages."""
    spec = importlib.util.spec_from_file_location(f"interpreted_{Path(path).stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
