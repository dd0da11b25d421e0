"""The settings of a model that come with weights, and what may be given beside them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmkit.config.initial_model import Asked, StoredModel, model_settings
from llmkit.config.load import load
from llmkit.config.model_section import Moe, RopeScaling
from llmkit.errors import UserError
from tests.shapes import GPT2_STYLE, LLAMA_STYLE

SCALED = RopeScaling(rope_type="linear", factor=2.0)
ROTARY = replace(LLAMA_STYLE, max_position_embeddings=64, rope_scaling=SCALED)
MIXTURE = replace(
    ROTARY, moe=Moe(num_experts=4, moe_intermediate_size=8, capacity_factor=2.0), mlp_bias=False
)
BALANCED = replace(MIXTURE, moe=MIXTURE.moe.model_copy(update={"bias_update_rate": 0.01}))
LEARNED = replace(GPT2_STYLE, max_position_embeddings=64)


def loaded(tmp_path, *overrides, spec=ROTARY, resumed=False, model="", asked=None):
    """A configuration that starts from weights of this model; asked: gets what its reader was asked."""
    path = tmp_path / "tuned.yaml"
    path.write_text(
        "data: {sources: [{type: stdlib}], sequence_length: 64}\n"
        f"train: {{init_from: weights/base, max_steps: 1000}}\n{model}"
    )

    def read(question: Asked) -> StoredModel:
        if asked is not None:
            asked.append(question)
        return StoredModel(spec, [], "weights/base", resumed)

    return load(path, overrides, read)


def test_the_model_comes_with_the_weights(tmp_path):
    asked = []
    found = loaded(tmp_path, "run.name=new", "run.deterministic=true", asked=asked)
    section = found.config.model.model_dump(mode="json", exclude={"type"})
    assert section == model_settings(ROTARY)
    assert found.config.model.rope_scaling == SCALED
    assert found.origins["model.rope_scaling.factor"] == found.origins["model.hidden_size"]
    assert found.origins["model.hidden_size"] == "weights/base (train.init_from)"
    assert found.config.data.tokenizer.type == "init_from"
    (question,) = asked
    assert str(question.init_from) == "weights/base" and str(question.run) == "runs/new"
    assert question.deterministic


def test_what_decides_what_is_computed_is_refused_by_name_and_place(tmp_path):
    with pytest.raises(UserError) as refused:
        loaded(
            tmp_path, "model.rope_theta=5", model="model: {hidden_size: 12, qk_norm: true}\n", spec=LEARNED
        )
    message = str(refused.value)
    for said in ("hidden_size 12 (", "tuned.yaml:3", "qk_norm true", "rope_theta 5.0", "leave it out"):
        assert said in message, message


def test_dropout_initial_ranges_and_what_comes_to_the_same_may_be_given(tmp_path):
    heads = f"num_key_value_heads: {ROTARY.num_key_value_heads}"
    model = f"model: {{hidden_dropout: 0.25, initializer_range: 0.5, {heads}, head_dim: {ROTARY.head_dim}}}\n"
    found = loaded(tmp_path, model=model)
    assert found.config.model.hidden_dropout == 0.25 and not found.remarks


def test_a_mixture_may_be_balanced_otherwise_than_its_weights_were(tmp_path):
    given = [
        "model.moe.router_aux_loss_coef=0.5", "model.moe.router_z_loss_coef=0.25",
        "model.moe.bias_update_rate=0.125", "model.moe.capacity_factor=1.25",
    ]  # fmt: skip
    for spec in (MIXTURE, BALANCED):
        found = loaded(tmp_path, *given, spec=spec)
        moe = found.config.model.moe
        assert (moe.router_aux_loss_coef, moe.router_z_loss_coef) == (0.5, 0.25) and not found.remarks
        assert (moe.bias_update_rate, moe.capacity_factor, moe.num_experts) == (0.125, 1.25, 4)
    with pytest.raises(UserError, match=r"num_experts_per_tok 1 \(command line\) is not that of the weights"):
        loaded(tmp_path, "model.moe.num_experts_per_tok=1", spec=MIXTURE)


def test_a_mixture_is_trained_on_preferences_without_losses_of_its_router(tmp_path):
    pairs = "data.sources=[{type: jsonl, path: p.jsonl, record: preference, prompt_field: question}]"
    dpo = (pairs, "train.objective=dpo", "model.moe.capacity_factor=null")
    found = loaded(tmp_path, *dpo, "model.moe.router_aux_loss_coef=0", spec=BALANCED)
    assert found.config.model.moe.router_aux_loss_coef == 0 and found.config.model.moe.num_experts == 4
    with pytest.raises(UserError, match=r"router_aux_loss_coef 0.01 .*\n.* set it to 0"):
        loaded(tmp_path, *dpo, spec=BALANCED)


def test_biases_of_experts_stay_where_they_are_and_adapters_get_no_others(tmp_path):
    rate, lora = "model.moe.bias_update_rate", "train.lora.rank=2"
    with pytest.raises(UserError, match=r"bias_update_rate null .*\n.* has biases of experts; leave it out"):
        loaded(tmp_path, f"{rate}=null", spec=BALANCED)
    for spec, value, resumed in ((MIXTURE, 0, False), (MIXTURE, 0.1, True), (BALANCED, "null", False)):
        with pytest.raises(UserError, match=r"1 mistake\n.*bias_update_rate .* does not go with train.lora"):
            loaded(tmp_path, f"{rate}={value}", lora, spec=spec, resumed=resumed)
    assert loaded(tmp_path, lora, spec=BALANCED).config.model.moe.bias_update_rate == 0.01


@pytest.mark.parametrize("given", ["data.sequence_length=65", "model.max_position_embeddings=65"])
def test_longer_sequences_are_noted_with_rotary_positions_and_refused_with_learned_ones(tmp_path, given):
    (note,) = (line for line in loaded(tmp_path, given).remarks if "64" in line)
    assert "longer" in note or "trained with 64" in note
    with pytest.raises(UserError, match=r"max_position_embeddings"):
        loaded(tmp_path, given, spec=LEARNED)


def test_a_base_of_rotary_frequencies_may_change_with_a_note(tmp_path):
    (note,) = loaded(tmp_path, "model.rope_theta=500000").remarks
    assert "rope_theta 500000.0 (command line): the weights were trained with" in note
    (note,) = loaded(tmp_path, "model.rope_scaling.factor=4").remarks
    assert "rope_scaling" in note and "factor 4.0" in note


def test_a_larger_vocabulary_adds_rows_and_a_smaller_one_is_refused(tmp_path):
    (note,) = loaded(tmp_path, f"model.vocab_size={ROTARY.vocab_size + 3}").remarks
    assert "start at the mean of the others" in note
    with pytest.raises(UserError, match=r"vocab_size .* \(command line\) does not go with train.lora.rank 2"):
        loaded(tmp_path, f"model.vocab_size={ROTARY.vocab_size + 3}", "train.lora.rank=2")
    for size in (ROTARY.vocab_size - 1, "auto"):
        with pytest.raises(UserError, match=r"vocab_size .* is not that of the weights"):
            loaded(tmp_path, f"model.vocab_size={size}", "data.tokenizer.type=file", "data.tokenizer.path=x")


def test_a_run_that_goes_on_is_compared_with_its_checkpoint_alone(tmp_path):
    assert loaded(tmp_path, "model.hidden_size=96", resumed=True).config.model.hidden_size == 96


def test_the_weights_tokenizer_keeps_its_own_end_of_text(tmp_path):
    with pytest.raises(UserError, match=r"end_of_text .* does not belong"):
        loaded(tmp_path, "data.tokenizer.end_of_text=</s>")
    with pytest.raises(UserError, match=r"needs train.init_from"):
        loaded(tmp_path, "train.init_from=null", "data.tokenizer.type=init_from")


def test_why_there_are_no_weights_is_said_once_with_its_place(tmp_path):
    path = tmp_path / "tuned.yaml"
    path.write_text("data: {sources: [{type: stdlib}]}\ntrain: {init_from: nowhere, max_steps: 9}\n")

    def read(question: Asked) -> StoredModel:
        raise UserError("nowhere: no such folder")

    with pytest.raises(UserError, match=r"tuned.yaml:2: train.init_from: nowhere: no such folder"):
        load(path, (), read)
    with pytest.raises(UserError, match=r"1 mistake\n.*is a URL, and only a path will do"):
        load(path, ["train.init_from=https://example.org/x"], read)
