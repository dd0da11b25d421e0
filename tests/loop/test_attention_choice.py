"""The kernel of attention is measured by rank 0, taken by all, recorded, and kept by a run that resumes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llmkit.kernels import attention_timing
from llmkit.loop import attention_choice
from llmkit.plan import DeviceFacts, plan_for_shape
from llmkit.plan import operators as table
from llmkit.plan.operators import FORMS, Form
from tests.loop.rank_cases import measurable
from tests.program import make_project, train
from tests.ranks import run_ranks
from tests.shapes import LLAMA_STYLE

RUN = Path("runs/tiny")
MEASURED = ("run.deterministic=false", "train.max_steps=2")


def attention(run: Path = RUN) -> dict[str, str]:
    """The choice in manifest.json."""
    return json.loads((run / "manifest.json").read_text())["kernels"]["operators"]["attention"]


class Times:
    """What measuring finds, and how often it was done."""

    def __init__(self, patch: pytest.MonkeyPatch, **times: float) -> None:
        self.times, self.asked = times, list[attention_timing.Sizes]()
        patch.setattr(attention_timing, "measured", self)

    def __call__(
        self, forms: Any, sizes: attention_timing.Sizes, device: torch.device, note: Any
    ) -> dict[str, float]:
        self.asked.append(sizes)
        return dict(self.times)


@pytest.fixture
def cache(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache, in the project's folder; two forms of a CPU are ones that are timed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(project / "cache"))
    monkeypatch.setattr(table, "FORMS", measurable())
    return project / "cache/llmkit"


def test_a_run_measures_once_shows_and_records_the_fastest_and_resumes_with_it(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    times = Times(monkeypatch, sdpa=1.9, blocks=1.2)
    assert train(*MEASURED) == 0
    reason = "measured: blocks 1.20 ms, sdpa 1.90 ms"
    assert attention() == {"form": "blocks", "reason": reason}
    assert reason in capsys.readouterr().out
    assert times.asked == [
        attention_timing.Sizes(4, 32, heads=4, kv_heads=2, head_dim=8, dropout=0.0, dtype="torch.float32")
    ]
    assert train(*MEASURED, "run.name=second") == 0
    assert attention(Path("runs/second")) == {"form": "blocks", "reason": reason}
    assert len(times.asked) == 1, "what is kept serves a second run"
    (kept,) = cache.glob("attention-*.json")
    kept.unlink()
    times.times = {"sdpa": 1.0, "blocks": 1.2}
    assert train("run.deterministic=false", "train.max_steps=3") == 0
    assert attention() == {"form": "blocks", "reason": reason}, "the resumed run computes as before"
    assert len(times.asked) == 1
    _edit_manifest(device="another")
    assert train("run.deterministic=false", "train.max_steps=4") == 0
    assert attention()["form"] == "sdpa", "on another device it is measured"
    assert len(times.asked) == 2


def _edit_manifest(**changes: Any) -> None:
    path = RUN / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("setting", ["run.deterministic=true", "kernels.operators.attention=matmul"])
def test_a_repeatable_run_and_a_form_that_is_asked_for_measure_nothing(
    cache: Path, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    times = Times(monkeypatch)
    assert train(*MEASURED, setting) == 0
    assert (times.asked, list(cache.glob("attention-*"))) == ([], [])
    assert attention()["form"] == ("matmul" if "matmul" in setting else "sdpa")


def test_where_no_form_could_be_measured_the_rule_holds(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Times(monkeypatch)
    assert train(*MEASURED) == 0
    assert attention() == {"form": "sdpa", "reason": "plain PyTorch"}


DAMAGED: Mapping[str, Any] = {
    "no JSON": b"{",
    "no object": b"3",
    "nothing of it": b"{}",
    "a form that cannot serve": {"form": "cudnn", "reason": "measured: cudnn 1.00 ms"},
    "one that was asked for": {"form": "blocks", "reason": "as given"},
    "another type": {"form": ["blocks"], "reason": 3},
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_record_that_does_not_count_is_passed_over(tmp_path: Path, name: str) -> None:
    class Folder:
        path = tmp_path

    def recorded(form: Any) -> Any:
        content = {"device": "a", "kernels": {"operators": {"attention": form}}}
        written = form if isinstance(form, bytes) else json.dumps(content).encode()
        (tmp_path / "manifest.json").write_bytes(written)
        return attention_choice._recorded(Folder, ("sdpa", "blocks"), "a")  # type: ignore[arg-type]

    assert recorded(DAMAGED[name]) is None
    assert recorded({"form": "blocks", "reason": "measured: x"}).form == "blocks"
    (tmp_path / "manifest.json").unlink()
    assert attention_choice._recorded(Folder, ("sdpa", "blocks"), "a") is None  # type: ignore[arg-type]


def test_ranks_take_what_rank_0_has_measured(tmp_path: Path) -> None:
    make_project(tmp_path)
    found = run_ranks(2, "tests.loop.rank_cases:measures_attention", joined=False, folder=str(tmp_path))
    reason = "measured: blocks 1.00 ms, sdpa 2.00 ms"
    assert found == [
        {"code": 0, "measured": 1, "form": "blocks"},
        {"code": 0, "measured": 0, "form": "blocks"},
    ]
    assert attention(tmp_path / RUN) == {"form": "blocks", "reason": reason}


def test_the_sizes_are_those_of_a_rank() -> None:
    settings = {
        "data": {"sources": [{"type": "stdlib"}], "sequence_length": 48},
        "train": {"max_steps": 1, "global_batch_size": 12, "micro_batch_size": 3, "precision": "bf16"},
        "parallel": {"world_size": 2, "tensor_parallel_size": 2},
    }
    shape = LLAMA_STYLE
    plan = plan_for_shape(shape, settings, DeviceFacts())
    assert (shape.num_attention_heads, shape.num_key_value_heads) == (6, 2)
    assert attention_choice.sizes_of(plan) == attention_timing.Sizes(
        3, 48, heads=3, kv_heads=1,
        head_dim=shape.head_dim, dropout=shape.attention_dropout, dtype="torch.bfloat16",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("heads", "kv_heads", "tensor", "context", "sizes"),
    [(12, 4, 1, 2, (6, 2)), (12, 4, 1, 6, (2, 2)), (12, 2, 2, 3, (2, 1)), (8, 8, 2, 4, (1, 1))],
)
def test_ulysses_repeats_heads_that_are_too_few(heads, kv_heads, tensor, context, sizes) -> None:
    """Of 4 key and value heads that 6 ranks share, each is sent three times: two for every rank."""
    settings = {
        "data": {"sources": [{"type": "stdlib"}], "sequence_length": 48},
        "train": {"max_steps": 1, "global_batch_size": 1, "micro_batch_size": 1, "precision": "bf16"},
        "parallel": {
            "world_size": tensor * context, "tensor_parallel_size": tensor, "context_parallel_size": context
        },
    }  # fmt: skip
    shape = replace(LLAMA_STYLE, num_attention_heads=heads, num_key_value_heads=kv_heads)
    found = attention_choice.sizes_of(plan_for_shape(shape, settings, DeviceFacts()))
    assert (found.positions, found.heads, found.kv_heads) == (48, *sizes)


def test_no_form_of_a_cpu_is_measured_by_itself() -> None:
    timed = {form.name for form in FORMS["attention"] if form.timed}
    assert timed == {"cudnn", "flash", "flash3", "flash4", "efficient"}
    assert isinstance(measurable()["attention"][0], Form)
