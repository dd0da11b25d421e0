"""`train.init_from`: the model section comes with the weights, and what is given beside it must agree."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmkit.config.custom_model import AnyModel
from llmkit.config.derive import resolved_model
from llmkit.config.mistakes import Mistake, display
from llmkit.config.model_section import Model
from llmkit.config.schema import Data, Run
from llmkit.config.section import Section
from llmkit.config.settings import Settings
from llmkit.config.shape import ModelShape
from llmkit.config.tree import Node, find, merge
from llmkit.errors import UserError

SETTING = "train.init_from"
MAY_DIFFER = (
    "attention_dropout", "hidden_dropout", "initializer_range", "embedding_initializer_range",
    "head_initializer_range", "residual_init", "vocab_pad_multiple",
    "moe.router_aux_loss_coef", "moe.router_z_loss_coef", "moe.bias_update_rate", "moe.capacity_factor",
)  # fmt: skip
"""Settings that decide neither what stored weights are nor what they compute in evaluation. Biases of experts
that the weights lack are 0 at first, and so change nothing; those that they have are not left out."""
BIASES = "moe.bias_update_rate"
TO_LENGTHEN = ("max_position_embeddings", "rope_theta", "rope_scaling")
"""Settings of a model with rotary positions that may differ from the weights', for longer sequences."""


@dataclass(frozen=True)
class Asked:
    """What a configuration says of its initial weights. init_from: a folder. run: the run's own folder.
    deterministic: `run.deterministic`, which must be heeded before torch is imported."""

    init_from: Path
    run: Path
    deterministic: bool


@dataclass(frozen=True)
class StoredModel:
    """The model of stored weights. plugins: modules that it needs. origin: names the folder in messages.
    resumed: whether it is that of the run itself, which goes on."""

    spec: AnyModel
    plugins: list[str]
    origin: str
    resumed: bool


ReadModel = Callable[[Asked], StoredModel]


def model_settings(spec: AnyModel) -> dict[str, Any]:
    """The section `model` that describes a model, every setting with its plain value."""
    if isinstance(spec, ModelShape):
        values = {name: getattr(spec, name) for name in Model.model_fields if name != "type"}
        return {name: _plain(value) for name, value in values.items()}
    return {**spec.settings, "type": spec.type, "vocab_size": spec.vocab_size}


def with_stored_model(
    tree: Node, read: ReadModel, mistakes: list[Mistake]
) -> tuple[Node, StoredModel | None]:
    """The tree of a configuration on top of what its weights say: the model, plugins, and the tokenizer.

    The same tree, and None, where it does not start from weights, or these cannot be read: that is noted.
    """
    node = find(tree, SETTING.split("."))
    if node is None or not isinstance(node.value, str) or not node.value or ":/" in node.value:
        return tree, None  # what is no path is refused with the other settings
    try:
        stored = read(_asked(tree, node.value))
    except UserError as error:
        mistakes.append(Mistake(node.location, f"{SETTING}: {error}", "", (SETTING,)))
        return tree, None
    model = model_settings(stored.spec)
    if _is_lengthened(stored.spec, _given(tree, "data.sequence_length")):
        del model["max_position_embeddings"]  # as many as the sequences have
    under: dict[str, Any] = {"model": model}
    if stored.plugins:
        under["plugins"] = stored.plugins
    if _given(tree, "data.tokenizer.type") is None:
        under["data"] = {"tokenizer": {"type": "init_from"}}
    return merge(_node(under, f"{stored.origin} ({SETTING})"), tree), stored


def differing(s: Settings, stored: StoredModel) -> Iterator[Mistake]:
    """Settings of the model that are not those of its weights, where these decide what it computes."""
    asked, rotary = s.config.model.vocab_size, _is_rotary(stored.spec)
    yield from _differing_biases(s, stored)
    for name, value in _compared(s, stored):
        adds_rows = name == "vocab_size" and asked != "auto" and asked > value
        if adds_rows and s.config.train.lora.rank:
            note = f"adapters leave the embedding as it is, so the rows beyond {value} would never be trained"
            yield s.mistake("{0} does not go with {1}", "model.vocab_size", "train.lora.rank", note=note)
        elif not adds_rows and not (rotary and name.partition(".")[0] in TO_LENGTHEN):
            note = f"{stored.origin} has {display(value)}; leave it out"
            yield s.mistake("{0} is not that of the weights", f"model.{name}", note=note)


def _differing_biases(s: Settings, stored: StoredModel) -> Iterator[Mistake]:
    """Biases of experts that the weights have are a part of what they compute, and adapters leave those of
    their base as they are, or absent."""
    if not isinstance(stored.spec, ModelShape) or not isinstance(s.config.model, Model):
        return
    old, new = stored.spec.moe.bias_update_rate, s.config.model.moe.bias_update_rate
    if s.config.train.lora.rank and new != old:
        note = f"adapters leave biases of experts as {stored.origin} has them, {display(old)}; leave it out"
        yield s.mistake("{0} does not go with {1}", f"model.{BIASES}", "train.lora.rank", note=note)
    elif new is None and old is not None and not stored.resumed:
        note = f"{stored.origin} has biases of experts; leave it out, or set it to 0 to keep them as they are"
        yield s.mistake("{0} is not that of the weights", f"model.{BIASES}", note=note)


def notes(s: Settings, stored: StoredModel) -> Iterator[str]:
    """Notes on what is valid, and other than what the weights were trained with."""
    for name, value in _compared(s, stored):
        then = f"{s.describe(f'model.{name}')}: the weights were trained with {display(value)}"
        if name == "vocab_size":
            yield f"{then}; the rows of the tokens beyond start at the mean of the others"
        elif name == "max_position_embeddings":
            length = s.describe("data.sequence_length")
            yield f"sequences of {length} are longer than those that the weights read, of {value} tokens"
        else:
            yield then


def _compared(s: Settings, stored: StoredModel) -> Iterator[tuple[str, Any]]:
    """The settings of the GPT that differ from the weights' and matter, with the weights' value."""
    old = stored.spec
    if stored.resumed or not isinstance(old, ModelShape) or not isinstance(s.config.model, Model):
        return  # compared with the checkpoint; or by the tensors alone, when they are read
    given_auto = {"vocab_size"} if s.config.model.vocab_size == "auto" else set()  # as the tokenizer has
    new = _flat(model_settings(resolved_model(s.config, old.vocab_size)))
    for name, value in _flat(model_settings(old)).items():
        if name not in MAY_DIFFER and (new[name] != value or name in given_auto):
            yield name, value


def _is_lengthened(spec: AnyModel, length: object) -> bool:
    """Whether the sequences are longer than those that a model with rotary positions was trained on."""
    tokens = Data.model_fields["sequence_length"].default if length is None else length
    return _is_rotary(spec) and isinstance(tokens, int) and tokens > spec.max_position_embeddings


def _is_rotary(spec: AnyModel) -> bool:
    return isinstance(spec, ModelShape) and spec.position_embedding == "rope"


def _asked(tree: Node, init_from: str) -> Asked:
    run = Run()
    folder, name = _given(tree, "run.dir"), _given(tree, "run.name")
    return Asked(
        Path(os.path.expanduser(init_from)),
        Path(os.path.expanduser(str(folder or run.dir)), str(name or run.name)),
        _given(tree, "run.deterministic") is True,
    )


def _given(tree: Node, path: str) -> object:
    """The value of a setting in a tree; None if it is not given."""
    node = find(tree, path.split("."))
    return None if node is None else node.plain()


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The same with the settings of a section below it by their dotted names."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        below = value.items() if isinstance(value, Mapping) else ()
        found |= {f"{name}.{each}": one for each, one in below} or {name: value}
    return found


def _plain(value: Any) -> Any:
    """A setting as plain values."""
    return value.model_dump(mode="json") if isinstance(value, Section) else value


def _node(value: Any, location: str) -> Node:
    """A tree of plain values that all come from one place."""
    if isinstance(value, Mapping):
        return Node({name: _node(below, location) for name, below in value.items()}, location)
    if isinstance(value, list | tuple):
        return Node([_node(below, location) for below in value], location)
    return Node(value, location)
