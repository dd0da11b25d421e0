"""Every shipped configuration loads, and the published models have the published sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llmkit.config.derive import resolved_model
from llmkit.config.load import load
from llmkit.model.gpt import GPT
from llmkit.plan import resolve_plan
from llmkit.plan.text import show_plan

CONFIGS = Path(__file__).parents[1] / "configs"
PARAMETERS = {
    "gpt2-124m": 124_439_808,
    "gpt2-355m": 354_823_168,
    "gpt2-1558m": 1_557_611_200,
    "llama-3.2-1b": 1_235_814_400,
    "qwen3-0.6b": 596_049_920,
}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_runs_load(path):
    assert show_plan(resolve_plan(load(path)))


def test_every_model_is_tested():
    assert {path.stem for path in (CONFIGS / "models").iterdir()} == set(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_model_says_all_that_makes_it(name):
    """Else what another file says of the model would be mixed into it."""
    config = load(
        CONFIGS / "models" / f"{name}.yaml", ["data={sources: [{type: stdlib}]}", "train.max_steps=200"]
    )
    left_open = {path for path, origin in config.origins.items() if origin == "default" and "model." in path}
    assert left_open == {"model.vocab_pad_multiple"}


@pytest.mark.parametrize(("name", "parameters"), PARAMETERS.items())
def test_a_model_after_another_file_is_the_published_one(tmp_path, name, parameters):
    config = tmp_path / "run.yaml"
    config.write_text(f"extends: [{CONFIGS}/demo.yaml, {CONFIGS}/models/{name}.yaml]\n")
    loaded = load(config)
    assert resolved_model(loaded.config).num_parameters == parameters
    (remark,) = loaded.remarks
    assert "model.vocab_size" in remark, "the demo's tokenizer has fewer tokens"


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_model_before_a_file_that_changes_it_is_told(tmp_path, name):
    config = tmp_path / "run.yaml"
    config.write_text(f"extends: [{CONFIGS}/models/{name}.yaml, {CONFIGS}/demo.yaml]\n")
    remark = load(config).remarks[0]
    assert f"{CONFIGS}/demo.yaml changes " in remark
    assert f"model settings of {CONFIGS}/models/" in remark
    assert f"-> 192 ({CONFIGS}/demo.yaml:8)" in remark


@pytest.mark.parametrize(("name", "parameters"), PARAMETERS.items())
def test_models_have_the_published_number_of_parameters(tmp_path, name, parameters):
    config = tmp_path / "run.yaml"
    config.write_text(
        f"extends: {CONFIGS / 'models' / name}.yaml\n"
        "data: {sources: [{type: stdlib}], sequence_length: 1024}\n"
        "train: {max_steps: 1}\n"
    )
    shape = resolved_model(load(config).config)
    assert shape.num_parameters == parameters
    with torch.device("meta"):
        model = GPT(shape)
    padding = shape.padded_vocab_size - shape.vocab_size
    assert sum(p.numel() for p in model.parameters()) == parameters + padding * shape.hidden_size
