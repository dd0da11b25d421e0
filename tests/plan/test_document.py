"""What `llmkit config --json` prints."""

from __future__ import annotations

import json

from llmkit.config.load import load
from llmkit.plan import resolve_plan
from llmkit.plan.document import document


def test_settings_origins_and_plan(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "data: {sources: [{type: stdlib}], tokenizer: {type: bytes}, sequence_length: 32}\n"
        "model: {hidden_size: 64, num_hidden_layers: 2, num_attention_heads: 4}\n"
        "train: {max_steps: 5, global_batch_size: 4, micro_batch_size: 2, precision: bf16}\n"
    )
    loaded = load(tmp_path / "a.yaml", ["parallel.world_size=2"])
    plan = resolve_plan(loaded)
    found = json.loads(json.dumps(document(loaded, plan, alone=False)))
    assert found["config"]["train"]["max_steps"] == 5
    assert found["origins"]["parallel.world_size"] == "command line"
    assert found["origins"]["train.max_steps"].endswith("a.yaml:3")
    told = found["plan"]
    assert (told["world_size"], told["engine"], told["precision"]) == (2, "native", "bf16")
    assert (told["micro_batch_size"], told["accumulation_steps"], told["tokens_per_step"]) == (2, 1, 128)
    assert told["process_bytes"]["weights"] == plan.state.weights
    assert found["model"]["parameters"] == plan.model.num_parameters
    assert found["model"]["checkpoint_bytes"] == 12 * plan.model.num_parameters


def test_what_is_known_later_is_null(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "data: {sources: [{type: stdlib}], tokenizer: {type: file, path: t.json}}\ntrain: {max_steps: 5}\n"
    )
    loaded = load(tmp_path / "a.yaml")
    found = document(loaded, resolve_plan(loaded), alone=False)
    assert found["model"] is found["plan"]["process_bytes"] is found["plan"]["precision"] is None
    assert "vocab_size" in found["pending"]
