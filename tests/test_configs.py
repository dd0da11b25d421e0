"""Every shipped configuration loads, and the published models have the published sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llmkit.config.derive import derive, resolved_model
from llmkit.config.load import load
from llmkit.model.gpt import GPT

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
    config = load(path).config
    assert derive(config)


def test_every_model_is_tested():
    assert {path.stem for path in (CONFIGS / "models").iterdir()} == set(PARAMETERS)


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
