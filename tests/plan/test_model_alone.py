"""What `llmkit config` says of a file that names a model and no run."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmkit.config.load import load
from llmkit.plan import resolve_plan
from llmkit.plan.model_alone import STAND_INS, model_sizes, names_a_model_alone, show_model

MODELS = Path(__file__).parents[2] / "configs/models"
GPT2 = 124_439_808


def test_the_sizes_of_gpt2():
    loaded = load(MODELS / "gpt2-124m.yaml", assumed=STAND_INS)
    assert names_a_model_alone(loaded)
    plan = resolve_plan(loaded)
    assert model_sizes(plan) == {
        "parameters": GPT2,
        "trained_parameters": GPT2,
        "training_bytes": {
            "fp32": {"weights": 4 * GPT2, "gradients": 4 * GPT2, "optimizer": 8 * GPT2},
            "bf16": {"weights": 2 * GPT2, "gradients": 4 * GPT2, "optimizer": 12 * GPT2},
            "fp8": {"weights": 2 * GPT2, "gradients": 4 * GPT2, "optimizer": 12 * GPT2},
        },
        "checkpoint_bytes": 12 * GPT2,
    }
    shown = {line.split()[1]: line.split()[2:4] for line in show_model(plan).splitlines()}
    assert shown["parameters"][0] == f"{GPT2:,}"
    assert shown["weights_bf16"] == ["237.4", "MiB"]
    assert shown["training_bf16"] == ["2.1", "GiB"]
    assert shown["checkpoint"] == ["1.4", "GiB"]


@pytest.mark.parametrize("model", sorted(MODELS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_model_file_of_ours_is_one(model):
    loaded = load(model, ["train.precision=bf16"], assumed=STAND_INS)
    assert names_a_model_alone(loaded)


@pytest.mark.parametrize(
    "text",
    [
        "model: {hidden_size: 64, num_attention_heads: 4}\ntrain: {global_batch_size: 4}\n",
        "model: {hidden_size: 64, num_attention_heads: 4}\ndata: {sources: [{type: stdlib}]}\n",
        "data: {sequence_length: 64}\n",
        "model: {hidden_size: 64, num_attention_heads: 4}\ntrain: {max_steps: 3}\n",
    ],
)
def test_a_run_that_lacks_something_is_none(text, tmp_path):
    (tmp_path / "a.yaml").write_text(text)
    assert not names_a_model_alone(load(tmp_path / "a.yaml", assumed=STAND_INS))
