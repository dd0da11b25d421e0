"""A small model that answers in two styles learns by pairs to answer in one."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
import torch

from llmkit.cli import main
from llmkit.generation.sampling import Sampling
from llmkit.generation.text import complete, stream_batch
from llmkit.inference import load_for_use
from llmkit.prompts import chat_prompt
from llmkit.weights import open_weights
from tests.program import rows

SETTINGS = """\
run: {name: sft, deterministic: true}
data:
  tokenizer: {type: bytes, chat_template: chat.jinja}
  sequence_length: 32
  validation_fraction: 0.1
  sources: [{type: jsonl, path: both.jsonl, record: chat}]
model: {hidden_size: 48, num_hidden_layers: 2, num_attention_heads: 4, num_key_value_heads: 2}
train: {max_steps: 150, global_batch_size: 16, precision: fp32}
optimizer: {learning_rate: 0.01}
kernels: {compile: false}
monitor: {wandb: {mode: disabled}}
"""
PAIRS = """\
extends: sft.yaml
run: {name: dpo}
data:
  tokenizer: {type: init_from, chat_template: null}
  sources: [{type: jsonl, path: pairs.jsonl, record: preference}]
train: {init_from: runs/sft, objective: dpo, max_steps: 30, global_batch_size: 8}
optimizer: {learning_rate: 0.0001}
schedule: {warmup_steps: 5}
evaluate: {every_steps: 15}
"""
TEMPLATE = (
    "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }};{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)
RUNS: dict[str, list[str]] = {
    "full": [],
    "lora": ["train.lora={rank: 4, alpha: 8}", "optimizer.learning_rate=0.001"],
}
WORDS = ["".join(letters) for letters in itertools.product("bdgkm", "aeiou", "lnr")]
ASKED = WORDS[::5]
"""Words of which no pair is learned."""


def chat(word: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": word}, {"role": "assistant", "content": answer}]


def write(path: Path, records: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def answers(run: str) -> list[str]:
    """To each word asked: one answer, drawn from the model's probabilities."""
    model, tokenizer = load_for_use(open_weights(Path(run)), "cpu", "fp32")
    prompts = [chat_prompt(tokenizer, word, None) for word in ASKED]
    with torch.inference_mode():
        pieces = stream_batch(
            model, tokenizer, prompts, 16, Sampling(temperature=1.0, seed=1), rows=len(prompts)
        )
        found = complete(pieces, len(prompts))
    return [answer.text for answer in found]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a model that says a word back in either style, by chance."""
    folder = tmp_path_factory.mktemp("learning")
    (folder / "sft.yaml").write_text(SETTINGS)
    (folder / "dpo.yaml").write_text(PAIRS)
    (folder / "chat.jinja").write_text(TEMPLATE)
    kind, plain = "{} please", "{} now"
    both = [{"messages": chat(word, style.format(word))} for word in WORDS for style in (kind, plain)]
    write(folder / "both.jsonl", both)
    learned = [word for word in WORDS if word not in ASKED]
    pairs = [
        {"chosen": chat(word, kind.format(word)), "rejected": chat(word, plain.format(word))}
        for word in learned
    ]
    write(folder / "pairs.jsonl", pairs)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", "sft.yaml"]) == 0
    return folder


def test_the_preferred_style_is_the_one_that_is_generated(
    tuned: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tuned)
    before = answers("runs/sft")
    assert 4 < sum(text.endswith("now") for text in before) < 15
    assert main(["train", "dpo.yaml"]) == 2
    assert "llmkit reference dpo.yaml" in capsys.readouterr().err
    assert main(["reference", "dpo.yaml"]) == 0
    for name, overrides in RUNS.items():
        assert main(["train", "dpo.yaml", f"run.name={name}", *overrides]) == 0
        found = rows(Path("runs") / name)
        first, *_, last = (row for row in found if "loss" in row)
        # The model is the reference yet: each pair costs log 2, and no answer is preferred.
        assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
        assert abs(first["rewards/chosen"]) + abs(first["rewards/rejected"]) < 1e-5
        assert last["rewards/accuracy"] == 1.0 and last["rewards/margin"] > 0.05
        held = [row for row in found if "eval_loss" in row]
        assert held[-1]["eval_loss"] < held[0]["eval_loss"] < math.log(2)
        assert held[-1]["eval_rewards/accuracy"] == 1.0
        assert sum(text.endswith("please") for text in answers(f"runs/{name}")) >= 14, name
