"""Objective, records of pairs and what belongs to them go together, or are refused with both values."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from llmkit.config.load import load

PAIRS = "data.sources=[{type: jsonl, path: p.jsonl, record: preference, prompt_field: question}]"
DPO = [PAIRS, "train.objective=dpo", "train.dpo.reference=runs/sft"]
WRONG = [
    (
        ["train.objective=dpo"],
        'data.sources.0.record "text" (default) does not go with train.objective "dpo" (command line)',
    ),
    (
        [PAIRS],
        'data.sources.0.record "preference" (command line) does not go with train.objective "causal_lm"',
    ),
    (["train.dpo.beta=0.3"], 'train.dpo.beta 0.3 (command line) does not belong to train.objective "causal_'),
    ([*DPO, "data.sources.0.live=true"], "the reference's log-probabilities are computed before training"),
    ([*DPO, "data.packing=best_fit"], "a pair is a row of its own"),
    ([*DPO, "train.z_loss=1e-4"], "train.z_loss 0.0001 (command line) does not go with train.objective"),
    ([*DPO, "model.moe.num_experts=4"], "router_aux_loss_coef 0.01 (default) does not go with train.obj"),
    (
        [*DPO, "model.moe={num_experts: 4, router_aux_loss_coef: 0.0, router_z_loss_coef: 0.1}"],
        "model.moe.router_z_loss_coef 0.1 (command line) does not go with train.objective",
    ),
    (
        [*DPO, "model.moe={num_experts: 4, router_aux_loss_coef: 0.0, capacity_factor: 1.5}"],
        "model.moe.capacity_factor 1.5 (command line) does not go with train.objective",
    ),
    ([*DPO, "train.label_smoothing=0.1"], "train.dpo has a label_smoothing of its own"),
    (
        [*DPO, "train.dpo={loss: ipo, label_smoothing: 0.1}"],
        "train.dpo.label_smoothing 0.1 (command line) does not go with train.dpo.loss",
    ),
    ([*DPO, "train.dpo.reference=hf://org/model"], "fetch a model of the hub first"),
    ([*DPO, "train.dpo.reference=''"], "train.dpo.reference"),
    (
        [*DPO, "train.dpo.reference=null"],
        'train.objective "dpo" (command line) needs train.init_from null (default) to be given',
    ),
    ([*DPO, "train.dpo.beta=0"], "train.dpo.beta must be"),
    ([*DPO, "data.sources.0.completion_field=x"], "only for records of kind prompt_completion;"),
]


@pytest.mark.parametrize(("overrides", "what"), WRONG)
def test_what_does_not_go_with_the_objective_is_refused(
    overrides: list[str], what: str, base: str, refused: Callable[..., str]
) -> None:
    assert what in refused(base, *overrides)


def test_pairs_are_rows_of_two_sequences(base: str, write: Callable[..., str]) -> None:
    config = load(write(base), [*DPO, "train.dpo.loss=hinge"]).config
    assert config.data.has_pairs and config.data.row_length == 2 * config.data.sequence_length == 256
    assert config.train.dpo.beta == 0.1 and config.train.dpo.reference == "runs/sft"
    assert load(write(base)).config.data.row_length == 128


def test_random_weights_are_noted(base: str, write: Callable[..., str]) -> None:
    (note,) = load(write(base), DPO).remarks
    assert note.startswith('train.objective "dpo" (command line) starts from random weights')
    assert not load(write(base), [*DPO, "train.init_from=runs/sft"]).remarks
