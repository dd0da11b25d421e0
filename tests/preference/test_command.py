"""`llmkit reference`: the numbers, what is kept, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from llmkit.cli import main
from llmkit.data.building import progress
from llmkit.inference import load_model
from llmkit.precision import PRECISIONS
from llmkit.preference import compute
from llmkit.weights import open_weights
from tests.preference.pairs_project import PAIRS
from tests.program import train


def reference(*overrides: str) -> int:
    return main(["reference", "tiny.yaml", *PAIRS, *overrides])


def values(split: str = "train") -> np.ndarray:
    [path] = Path("data-cache").glob(f"jsonl-0-reference-*/{split}.f32")
    return np.fromfile(path, dtype="<f4").reshape(-1, 2)


def test_each_value_is_the_log_probability_of_an_answer_alone(pairs: Path) -> None:
    assert reference() == 0
    weights = open_weights(Path("runs/base"))
    model, tokenizer = load_model(weights, torch.device("cpu"), PRECISIONS["fp32"]), weights.tokenizer()
    expected: dict[tuple[int, int], list[float]] = {}
    for line in Path("pairs.jsonl").read_text().splitlines():
        record = json.loads(line)
        key, pair = (len(record["prompt"]), len(record["rejected"])), []
        for side in ("chosen", "rejected"):
            ids = [256, *tokenizer.encode(record["prompt"] + record[side]).tolist(), 256]
            begin = len(record["prompt"])  # inputs up to here are the prompt, and the end-of-text before it
            prefixes = [torch.tensor([ids[:t]]) for t in range(begin + 1, len(ids))]
            logits = torch.cat([model.logits(prefix) for prefix in prefixes]).double()
            answer = torch.tensor(ids[begin + 1 :])
            pair.append(-float(torch.nn.functional.cross_entropy(logits, answer, reduction="sum")))
        expected.setdefault(key, []).append(pair[0] - pair[1])
    found = np.concatenate([values(), values("heldout")])
    assert len(found) == 40 and (found < 0).all()
    margins = np.sort(found[:, 0] - found[:, 1])
    wanted = np.sort([margin for group in expected.values() for margin in group])
    assert np.abs(margins - wanted).max() < 2e-5 * np.abs(wanted).max()


def test_what_is_computed_is_kept(
    pairs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reference() == 0
    whole = values()
    for folder in Path("data-cache").glob("jsonl-0-reference-*"):
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    monkeypatch.setattr(compute, "CHUNK", 8)
    plain, calls = compute.log_probabilities, []

    def dies(*arguments: object) -> np.ndarray:
        calls.append(arguments)
        if len(calls) == 3:
            raise MemoryError("killed")
        return plain(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(compute, "log_probabilities", dies)
    with pytest.raises(MemoryError):
        reference()
    assert reference() == 0
    assert len(calls) == 3 + (5 + 1 - 2)  # 36 pairs to train on, 4 held out
    assert np.array_equal(values(), whole)
    capsys.readouterr()
    assert reference() == 0 and len(calls) == 7
    assert "has the log-probabilities of the pairs of jsonl-0" in capsys.readouterr().out
    assert not list(Path("data-cache").glob(".building-*reference*"))


def test_a_second_command_is_told_who_computes_the_same(
    pairs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, codes = compute.log_probabilities, []

    def meanwhile(*arguments: object) -> np.ndarray:
        if not codes:
            codes.append(reference())
        return plain(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(compute, "log_probabilities", meanwhile)
    assert reference() == 0 and codes == [2]
    error = capsys.readouterr().err
    assert re.search(r"jsonl-0-reference-\w+ is in use by process .* \(llmkit reference\); wait", error)


def test_long_sets_show_how_far_they_are_and_how_prompts_became_text(
    pairs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    monkeypatch.setattr(compute, "CHUNK", 20)
    assert reference() == 0
    said = capsys.readouterr().out
    assert "reference: jsonl-0: 50% is computed\n" in said and "jsonl-0: 100% is computed\n" in said
    assert "prompts are texts, which stand as they are: no chat template is used" in said
    Path("chat.jinja").write_text("{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}")
    assert reference("data.tokenizer.chat_template=chat.jinja", "data.tokenizer.type=bytes") == 0
    assert 'put by data.tokenizer.chat_template "chat.jinja" (command line)' in capsys.readouterr().out


def test_mistakes_are_one_message_each(pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reference", "tiny.yaml"]) == 2
    assert 'train.objective "causal_lm" (default) needs no reference model' in capsys.readouterr().err
    assert reference("train.dpo.reference=null") == 2
    assert 'train.objective "dpo" (command line) needs train.init_from null' in capsys.readouterr().err
    assert reference("train.dpo.reference=runs/none") == 2
    assert "runs/none: no such folder" in capsys.readouterr().err
    assert reference("data.sequence_length=64") == 2
    assert "is longer than the context of the reference model, 32 tokens" in capsys.readouterr().err
    assert reference("data.tokenizer={type: bpe, vocab_size: 300}") == 2
    error = capsys.readouterr().err
    assert "runs/base" in error and "has another tokenizer" in error


def test_training_without_the_reference_or_with_another_one_names_the_command(
    pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(*PAIRS) == 2
    assert (
        "source jsonl-0: the log-probabilities of its pairs under the reference model were not computed yet; "
        "do that first, with the same overrides: llmkit reference tiny.yaml" in capsys.readouterr().err
    )
    assert reference() == 0
    assert train("run.name=base", "train.max_steps=4") == 0  # the reference is another model now
    capsys.readouterr()
    assert train(*PAIRS) == 2
    assert "is of other pairs or of another model); do that first" in capsys.readouterr().err
