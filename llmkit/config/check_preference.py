"""Checks of settings that concern training on preferences."""

from __future__ import annotations

from collections.abc import Iterator

from llmkit.config.mistakes import Mistake
from llmkit.config.model_section import Model
from llmkit.config.preference_section import Dpo
from llmkit.config.settings import Settings

_OBJECTIVE = "train.objective"


def check_preference(s: Settings) -> Iterator[Mistake]:
    """That objective, sources and what belongs to pairs alone go together."""
    train, data = s.config.train, s.config.data
    is_dpo = train.objective == "dpo"
    for number, source in enumerate(data.sources):
        at = f"data.sources.{number}"
        if is_dpo != (source.record == "preference"):
            note = "train.objective dpo reads records of kind preference, and nothing else does"
            yield s.mistake("{0} does not go with {1}", f"{at}.record", _OBJECTIVE, note=note)
        elif is_dpo and source.live:
            note = "the reference's log-probabilities are computed before training; set live to false"
            yield s.mistake("{0} does not go with {1}", f"{at}.live", f"{at}.record", note=note)
    if not is_dpo:
        for name, field in Dpo.model_fields.items():
            if getattr(train.dpo, name) != field.default:
                yield s.mistake("{0} does not belong to {1}", f"train.dpo.{name}", _OBJECTIVE)
        return
    if train.init_from is None and train.dpo.reference is None:
        note = "name the model to train (a run, a checkpoint, a folder of Hugging Face); it is the reference"
        yield s.mistake("{0} needs {1} to be given", _OBJECTIVE, "train.init_from", note=note)
    if data.packing != "concatenate":
        note = "a pair is a row of its own; leave packing out"
        yield s.mistake("{0} does not go with {1}", "data.packing", _OBJECTIVE, note=note)
    for name in ("z_loss", "label_smoothing"):
        if getattr(train, name):
            note = "the loss is one of pairs, not of tokens; train.dpo has a label_smoothing of its own"
            yield s.mistake("{0} does not go with {1}", f"train.{name}", _OBJECTIVE, note=note)
    model = s.config.model
    for name in ("router_aux_loss_coef", "router_z_loss_coef"):
        if isinstance(model, Model) and model.moe.num_experts and getattr(model.moe, name):
            note = "it is added for each target, and the loss of a pair is not a mean of them; set it to 0"
            yield s.mistake("{0} does not go with {1}", f"model.moe.{name}", _OBJECTIVE, note=note)
    if isinstance(model, Model) and model.moe.capacity_factor is not None:
        note = "the reference's log-probabilities are computed without a limit; leave the capacity out"
        yield s.mistake("{0} does not go with {1}", "model.moe.capacity_factor", _OBJECTIVE, note=note)
    if train.dpo.label_smoothing and train.dpo.loss != "sigmoid":
        yield s.mistake("{0} does not go with {1}", "train.dpo.label_smoothing", "train.dpo.loss")


def preference_remarks(s: Settings) -> Iterator[str]:
    """A note where pairs are all that a model would learn from."""
    train = s.config.train
    if train.objective == "dpo" and train.init_from is None:
        yield (
            f"{s.describe(_OBJECTIVE)} starts from random weights: name the model to train as train.init_from"
        )
