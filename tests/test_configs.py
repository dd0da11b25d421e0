"""Every shipped configuration loads, and the published models have the published sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from llmkit.config.derive import resolved_model
from llmkit.config.load import load
from llmkit.config.shape import ModelShape
from llmkit.hf.choose import (
    ARCHITECTURES,
    OF_TRAINING,
    architecture_for,
    architecture_of,
    read_shape,
)
from llmkit.model.gpt import GPT
from llmkit.plan import resolve_plan
from llmkit.plan.text import show_plan
from tests.zoo import CONFIGS as PUBLISHED
from tests.zoo import GPT3

CONFIGS = Path(__file__).parents[1] / "configs"
RUN = "data: {sources: [{type: stdlib}], sequence_length: 512}\ntrain: {max_steps: 200}\n"
OTHER = """
model:
  vocab_size: 5000
  hidden_size: 60
  num_hidden_layers: 4
  num_attention_heads: 5
  num_key_value_heads: 1
  head_dim: 20
  intermediate_size: 100
  mlp: relu2
  norm: layernorm
  norm_weight: true
  norm_eps: 1.0e-3
  norm_weight_offset: 0.5
  norm_placement: both
  position_embedding: rope
  rope_theta: 77.0
  sliding_rope_theta: 78.0
  rope_scaling: {rope_type: yarn, factor: 2.0, original_max_position_embeddings: 99, truncate: false}
  partial_rotary_factor: 0.5
  max_position_embeddings: 5555
  attention_bias: true
  attention_output_bias: true
  mlp_bias: true
  qk_norm: true
  sliding_window: 99
  layer_types: [sliding_attention, full_attention]
  attn_logit_softcapping: 9.0
  final_logit_softcapping: 9.0
  tie_word_embeddings: false
  embedding_norm: true
  key_shift: 0.3
  bigram_embedding: 88
  value_embeddings: true
  residual_scalars: true
  embedding_multiplier: 1.1
  attention_multiplier: 1.2
  residual_multiplier: 1.3
  logits_scaling: 1.4
  attention_dropout: 0.4
  hidden_dropout: 0.4
  initializer_range: 0.5
  embedding_initializer_range: 0.5
  head_initializer_range: 0.5
  residual_init: zero
optimizer: {groups: [{params: ["*.residual_scalars.*"], learning_rate: 0.1}]}
"""
"""A model that no published one resembles."""
TYPES = {architecture.model_type for architecture in ARCHITECTURES}
"""Those that llmkit reads."""
MODELS = [*PUBLISHED, *GPT3]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_runs_load(path):
    assert show_plan(resolve_plan(load(path)))


def test_every_model_is_tested():
    assert {path.stem for path in (CONFIGS / "models").iterdir()} == set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_after_any_other_is_the_same(tmp_path, name):
    """Whatever the files before it say of the model."""
    (tmp_path / "other.yaml").write_text(OTHER)
    shapes = []
    for files in (f"[{CONFIGS}/models/{name}.yaml]", f"[other.yaml, {CONFIGS}/models/{name}.yaml]"):
        config = tmp_path / "run.yaml"
        config.write_text(f"extends: {files}\n{RUN}")
        loaded = load(config)
        shapes.append(resolved_model(loaded.config))
        assert not [each for each in loaded.remarks if "model.vocab_size" not in each]
        assert not loaded.config.optimizer.groups
    assert shapes[0] == shapes[1]


def test_the_other_model_says_something_of_every_setting(tmp_path):
    (tmp_path / "other.yaml").write_text(f"{OTHER}{RUN}")
    origins = load(tmp_path / "other.yaml").origins
    whole = ("model.rope_scaling.", "model.moe.")  # sections
    open_ = {path for path, origin in origins.items() if origin == "default" and path.startswith("model.")}
    assert {path for path in open_ if not path.startswith(whole)} == {
        "model.type",
        "model.vocab_pad_multiple",
    }


@pytest.mark.parametrize("name", ["gpt2-355m", "llama-3.1-8b", "gemma3-1b"])
def test_a_model_before_a_file_that_changes_it_is_told(tmp_path, name):
    config = tmp_path / "run.yaml"
    config.write_text(f"extends: [{CONFIGS}/models/{name}.yaml, {CONFIGS}/demo.yaml]\n")
    remark = load(config).remarks[0]
    assert f"{CONFIGS}/demo.yaml changes " in remark
    assert f"model settings of {CONFIGS}/models/" in remark
    assert f"-> 192 ({CONFIGS}/demo.yaml:8)" in remark


@pytest.mark.parametrize("name", MODELS)
def test_a_model_has_the_published_number_of_weights_and_can_be_exported(tmp_path, name):
    shape = shape_of(tmp_path, name)
    with torch.device("meta"):
        model = GPT(shape)
    padding = (shape.padded_vocab_size - shape.vocab_size) * shape.hidden_size
    padding *= 1 if shape.tie_word_embeddings else 2
    assert sum(p.numel() for p in model.parameters()) == shape.num_parameters + padding
    text = (CONFIGS / "models" / f"{name}.yaml").read_text()
    assert f" {shape.num_parameters:,} parameters" in text.splitlines()[0]
    exported = architecture_for(shape).model_type
    if name in GPT3:
        assert shape.num_parameters == pytest.approx(GPT3[name], rel=0.02) and exported == "gpt2"
    else:
        assert shape.num_parameters == PUBLISHED[name][0]
        assert exported in (PUBLISHED[name][1]["model_type"], "llama")  # which some others are


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_model_has_the_tensors_of_the_published_one(tmp_path, name):
    keys = dict(PUBLISHED[name][1])
    with torch.device("meta"):
        theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(keys.pop("model_type"), **keys))
    shape = shape_of(tmp_path, name)
    assert sum(p.numel() for p in theirs.parameters()) == shape.num_parameters
    if keys.get("n_embd"):  # q, k and v are one tensor there, and matrices are transposed
        return
    found = {tuple(p.shape) for p in theirs.parameters() if p.dim() < 3}
    for path, p in theirs.named_parameters():
        if p.dim() == 3:  # all experts of a layer
            fused = 2 if path.endswith("gate_up_proj") else 1
            found.add((p.shape[1] // fused, p.shape[2]))
    assert found == set(shape.parameters().values())


@pytest.mark.parametrize(
    "name", [name for name, (_, keys) in PUBLISHED.items() if keys["model_type"] in TYPES]
)
def test_a_model_computes_what_the_published_one_does(tmp_path, name):
    keys = PUBLISHED[name][1]
    published = read_shape(keys, name, architecture_of(keys, name))
    assert computed(shape_of(tmp_path, name)) == computed(published)


def computed(shape: ModelShape) -> dict[str, object]:
    """The settings that say what a model computes."""
    fields = {name: value for name, value in shape.to_dict().items() if name not in OF_TRAINING}
    windows = [shape.window(layer) for layer in range(shape.num_hidden_layers)]
    same = {"attention_output_bias": shape.output_bias, "layer_types": windows, "sliding_window": None}
    moe = {name: value for name, value in fields["moe"].items() if not name.endswith("_coef")}
    return fields | same | {"moe": moe}


def shape_of(folder: Path, name: str) -> ModelShape:
    config = folder / "run.yaml"
    config.write_text(f"extends: {CONFIGS / 'models' / name}.yaml\n{RUN}")
    shape = resolved_model(load(config).config)
    assert isinstance(shape, ModelShape)
    return shape
