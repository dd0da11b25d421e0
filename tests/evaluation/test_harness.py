"""Tasks of lm-eval on our model against lm-eval's own adapter on transformers' model of the same weights."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmkit.errors import UserError
from llmkit.evaluation.harness import Tasks, figures, run_tasks
from llmkit.evaluation.hub_text import HubText
from llmkit.evaluation.score import Scorer
from llmkit.evaluation.team import Lead
from llmkit.parallel.mesh import Mesh
from tests.evaluation import toys


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return toys.make_tasks(tmp_path_factory.mktemp("evaluation") / "tasks")


def of_lm_eval(folder: Path, names: tuple[str, ...], tokens, tmp_path: Path, **options: Any) -> dict[str, Any]:
    """What lm-eval's own adapter finds."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import AutoTokenizer

    tokens.save(tmp_path)
    theirs = HFLM(
        toys.hugging_face(toys.model()), tokenizer=AutoTokenizer.from_pretrained(tmp_path), batch_size=3
    )
    assert theirs.max_length == toys.CONTEXT
    return lm_eval.simple_evaluate(
        theirs, tasks=list(names), bootstrap_iters=0, log_samples=True,
        task_manager=TaskManager(include_path=str(folder), include_defaults=False), **options,
    )  # fmt: skip


def ours(tasks: Tasks, tokens, rows: int | None = None) -> dict[str, Any]:
    lead = Lead(Scorer.of_model(toys.model(), Mesh(), tokens=400, rows=rows))
    return run_tasks(tasks, lead, HubText(tokens), {}, quiet=True)


def close(found: Any, wanted: Any) -> None:
    assert len(found) == len(wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        numbers = [[part[0] if isinstance(part, (tuple, list)) else part for part in each] for each in (ours, theirs)]
        torch.testing.assert_close(*(torch.tensor(each) for each in numbers), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("puts_bos", [True, False])
def test_figures_equal_those_of_lm_evals_own_adapter(folder, tmp_path, puts_bos):
    tokens = toys.tokenizer(puts_bos)
    wanted = of_lm_eval(folder, toys.NAMES, tokens, tmp_path)
    found = ours(Tasks(toys.NAMES, str(folder), samples=True), tokens)
    print(figures(found))
    for name, value in figures(wanted).items():
        assert figures(found)[name] == pytest.approx(value, rel=1e-5), name
    for task in toys.NAMES:
        print(toys.answers(found)[task][:2])
        for a, b in zip(toys.answers(found)[task], toys.answers(wanted)[task], strict=True):
            print(a, b)
