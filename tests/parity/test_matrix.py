"""Every layout trains like one process: losses, gradients, weights, moments."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

import pytest
import torch

from llmkit.kernels.compiler import compiler_missing
from llmkit.monitor.hardware import has_avx512_bf16
from llmkit.parity.cases import (
    ADAPTERS,
    ALONE,
    AVX512,
    COMPILED,
    CONTEXT,
    DEALT,
    FORMED,
    LARGE,
    SETTINGS,
    SLICED,
    Case,
)
from llmkit.parity.covering import covering
from tests.chosen import chosen, few_at_every_commit
from tests.limits import HANG
from tests.ranks import run_ranks

WITH_EACH_STAGE = ("engine", "precision", "offload")
LARGEST = 2
"""Processes of a case that `few` names: four share two cores badly."""


def few(cases: Iterable[Case]) -> Iterator[Case]:
    """Cases in which each of these settings meets each stage of ZeRO, as far as `LARGEST` allows it."""
    tried: set[tuple[object, ...]] = set()
    for case in cases:
        new = {(case.stage, name, getattr(case, name)) for name in WITH_EACH_STAGE} - tried
        if new and case.world_size <= LARGEST:
            tried |= new
            yield case


CAN_COMPILE = not compiler_missing(torch.device("cpu"))
TO_COMPILE = COMPILED if CAN_COMPILE else []
SHARED_ROWS = [case for case in CONTEXT if CAN_COMPILE or not case.compiled]
BY_AVX512 = AVX512 if has_avx512_bf16() and TO_COMPILE else []
DEALT_OUT = [case for case in DEALT if CAN_COMPILE or not case.compiled]
COVERING = covering()
CASES = COVERING + LARGE + FORMED + SETTINGS + ALONE + ADAPTERS + TO_COMPILE + BY_AVX512
CASES += SLICED + SHARED_ROWS + DEALT_OUT
ALWAYS = {*few(COVERING), *BY_AVX512, LARGE[-1], FORMED[1], FORMED[10], SLICED[0]}
ALWAYS |= {SETTINGS[at] for at in (2, 4, 5, 8)} | {ADAPTERS[at] for at in (0, -1)}
ALWAYS |= {CONTEXT[3], CONTEXT[4], DEALT[-2]}
"""Every stage, engine, precision, optimizer and way to share a layer, rows or experts; on four processes
four cases. tests/parity/test_mistakes.py compares six more at every commit, in two steps: without a mistake
they, too, equal one process."""


@pytest.fixture(scope="module")
def verdicts(request: pytest.FixtureRequest) -> dict[str, dict[str, Any]]:
    """Of the chosen cases, in one launch for each number of processes: it costs more than a case."""
    wanted: list[Case] = chosen(request, "case")
    found: dict[str, dict[str, Any]] = {}
    for world_size in sorted({case.world_size for case in wanted}):
        cases = [case for case in wanted if case.world_size == world_size]
        settings = [asdict(case) for case in cases]
        limit = HANG * (1 + len(cases) // 20)  # all of them are in one launch
        judged = run_ranks(world_size, "tests.parity.launched:judge", timeout=limit, cases=settings)[0]
        found |= dict(zip(map(str, cases), judged, strict=True))
    return found


@pytest.mark.parametrize("case", few_at_every_commit(CASES, ALWAYS))
def test_a_case_equals_one_process(verdicts, case):
    verdict = verdicts[str(case)]
    print(verdict["row"])
    assert verdict["failures"] == []
