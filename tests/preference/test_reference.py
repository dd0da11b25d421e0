"""What training reads of the reference model: it must be that of these pairs, undamaged."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from llmkit.cli import main
from tests.preference.pairs_project import PAIRS
from tests.program import TIMELESS, rows, train

REWARDS = ("rewards/chosen", "rewards/rejected", "rewards/accuracy", "rewards/margin")


def test_a_run_records_rewards_and_goes_on_bit_for_bit(
    pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reference", "tiny.yaml", *PAIRS]) == 0
    assert train(*PAIRS, "evaluate.every_steps=3", "run.name=straight") == 0
    assert "accuracy" in capsys.readouterr().out
    found = rows(Path("runs/straight"))
    steps = [row for row in found if "loss" in row]
    assert [row["tokens"] for row in steps] == [6 * step for step in range(1, 7)]  # pairs
    for row in steps:
        assert row["rewards/margin"] == pytest.approx(
            row["rewards/chosen"] - row["rewards/rejected"], abs=1e-5
        )
        assert 6 * row["rewards/accuracy"] == pytest.approx(round(6 * row["rewards/accuracy"]))
    held = [row for row in found if "eval_loss" in row]
    assert [row["step"] for row in held] == [3, 6]
    assert all(row["eval_bits_per_byte"] is None and row["eval_rewards/accuracy"] <= 1.0 for row in held)

    assert train(*PAIRS, "evaluate.every_steps=3", "train.max_steps=3", "schedule.steps=6") == 0
    assert train(*PAIRS, "evaluate.every_steps=3", "train.dpo.reference=runs/straight") == 2
    assert "train.dpo.reference" in capsys.readouterr().err
    Path("runs/base").rename("moved")  # what it gives for the pairs is there
    assert train(*PAIRS, "evaluate.every_steps=3") == 0
    kept = (*TIMELESS, *REWARDS, *(f"eval_{name}" for name in REWARDS))
    straight, parts = (
        [{name: row.get(name) for name in kept} for row in rows(Path("runs") / name)]
        for name in ("straight", "tiny")
    )
    assert parts == straight
    assert main(["evaluate", "runs/tiny"]) == 2
    assert "what the run held out are pairs of answers" in capsys.readouterr().err


def test_each_pair_keeps_its_reference_in_a_mixture_of_sources_over_epochs(pairs: Path) -> None:
    """A model that stays the reference gives all pairs that are read a reward of 0."""
    lines = Path("pairs.jsonl").read_text().splitlines(keepends=True)
    Path("few.jsonl").write_text("".join(lines[:13]))
    sources = ("pairs.jsonl, record: preference, weight: 3", "few.jsonl, record: preference")
    mixture = ", ".join(f"{{type: jsonl, path: {each}}}" for each in sources)
    settings = [
        "tiny.yaml", *PAIRS, f"data.sources=[{mixture}]", "train.init_from=runs/base",
        "train.micro_batch_size=2", "train.max_steps=24", "evaluate.every_steps=12",
        "optimizer.learning_rate=1e-12", "optimizer.weight_decay=0",
    ]  # fmt: skip
    assert main(["reference", *settings]) == 0 and main(["train", *settings, "run.name=still"]) == 0
    for row in rows(Path("runs/still")):
        kind = "eval_" * ("eval_loss" in row)
        assert row[f"{kind}loss"] == pytest.approx(math.log(2), abs=1e-6)
        of_sources = [value for name, value in row.items() if name.startswith(f"{kind}loss/")]
        assert of_sources == [pytest.approx(math.log(2), abs=1e-5)] * len(of_sources) and of_sources
        assert max(abs(row[f"{kind}{name}"]) for name in ("rewards/chosen", "rewards/rejected")) < 1e-5


def test_a_damaged_file_is_named(pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reference", "tiny.yaml", *PAIRS]) == 0
    [path] = Path("data-cache").glob("jsonl-0-reference-*/train.f32")
    content = bytearray(path.read_bytes())
    content[5] ^= 1
    path.write_bytes(content)
    assert train(*PAIRS) == 2
    error = capsys.readouterr().err
    assert f"{path}: does not match reference.json, the file is damaged; delete {path.parent}" in error
    path.unlink()
    assert train(*PAIRS) == 2
    assert "train.f32: cannot be read" in capsys.readouterr().err
    (path.parent / "reference.json").write_text("{}")
    assert train(*PAIRS) == 2
    assert "reference.json" in capsys.readouterr().err
