"""Checks that concern more than one setting; all that fail are reported together."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llmkit.config.mistakes import Mistake, access_in_url, display
from llmkit.config.schema import BPE_VOCAB_SIZE, Config, Source, Tokenizer, default_source_name

BYTES_VOCABULARY = 257
"""The bytes and end-of-text."""

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")


def check(config: Config, origins: dict[str, str]) -> list[Mistake]:
    """Every contradiction between settings; each names the values and where they came from, in its text.

    origins: dotted path -> where the value came from, as in Loaded.origins.
    """
    settings = Settings(config, origins)
    data = (_vocabulary, _tokenizer, _sources, _curriculum, _paths)
    checks = (_model, *data, _batch, _evaluate, _optimizer, _parallel)
    return [mistake for one in checks for mistake in one(settings)]


def source_name(index: int, source: Source) -> str:
    """A source's name: its own, or its type and place in the list."""
    return source.name or default_source_name(source.type, index)


@dataclass(frozen=True)
class Settings:
    """A config that can say where its values came from."""

    config: Config
    origins: dict[str, str]

    def value(self, path: str) -> Any:
        """The value of a dotted path."""
        found: Any = self.config
        for part in path.split("."):
            found = found[int(part)] if part.isdecimal() else getattr(found, part)
        return found

    def told(self, path: str) -> str:
        """As in "model.hidden_size 770 (demo.yaml:4)"."""
        return f"{path} {display(self.value(path))} ({self.origins.get(path, 'default')})"

    def mistake(self, what: str, *paths: str, note: str = "") -> Mistake:
        """A mistake about `paths`; in `what`, {0}, {1} stand for the paths with value and origin."""
        return Mistake("", what.format(*(self.told(path) for path in paths)), note, paths)


def _model(s: Settings) -> Iterator[Mistake]:
    model = s.config.model
    heads, kv_heads, width = "model.num_attention_heads", "model.num_key_value_heads", "model.hidden_size"
    if model.head_dim is None and model.hidden_size % model.num_attention_heads:
        note = "choose a multiple, or give model.head_dim"
        yield s.mistake("{0} is not divisible by {1}", width, heads, note=note)
    elif model.position_embedding == "rope":
        rope = "model.position_embedding"
        if model.head_dim is not None and model.head_dim % 2:
            yield s.mistake("{0} is odd, but {1} rotates pairs", "model.head_dim", rope)
        elif model.head_dim is None and (odd := model.hidden_size // model.num_attention_heads) % 2:
            what = f"{{0}} and {{1}} make heads of width {odd}, which is odd, but {{2}} rotates pairs"
            yield s.mistake(what, width, heads, rope)
    if model.num_key_value_heads and model.num_attention_heads % model.num_key_value_heads:
        yield s.mistake("{0} is not divisible by {1}", heads, kv_heads)
    if model.max_position_embeddings and s.config.data.sequence_length > model.max_position_embeddings:
        yield s.mistake("{0} is longer than {1}", "data.sequence_length", "model.max_position_embeddings")


def _vocabulary(s: Settings) -> Iterator[Mistake]:
    size, tokenizer = s.config.model.vocab_size, s.config.data.tokenizer
    if size == "auto":
        return
    if tokenizer.type == "bytes" and size < BYTES_VOCABULARY:
        what = f"{{0}} is smaller than the {BYTES_VOCABULARY} tokens of {{1}}"
        yield s.mistake(what, "model.vocab_size", "data.tokenizer.type")
    elif tokenizer.type == "bpe" and size < (tokenizer.vocab_size or BPE_VOCAB_SIZE):
        what = "{0} is smaller than {1}"
        if tokenizer.vocab_size is None:
            what += f", which means {BPE_VOCAB_SIZE}"
        note = "leave model.vocab_size out"
        yield s.mistake(what, "model.vocab_size", "data.tokenizer.vocab_size", note=note)


_TOKENIZER_FIELDS = {"vocab_size": ("bpe",), "path": ("file",), "name": ("hub",), "revision": ("hub",)}


def _tokenizer(s: Settings) -> Iterator[Mistake]:
    tokenizer, at = s.config.data.tokenizer, "data.tokenizer"
    for name, types in _TOKENIZER_FIELDS.items():
        if getattr(tokenizer, name) is not None and tokenizer.type not in types:
            note = f"{at}.{name} is only for the tokenizer type {types[0]}; leave it out or set it to null"
            yield s.mistake("{0} does not belong to {1}", f"{at}.{name}", f"{at}.type", note=note)
    for kind, name in (("file", "path"), ("hub", "name")):
        if tokenizer.type == kind and not getattr(tokenizer, name):
            note = " ".join((Tokenizer.model_fields[name].description or "").split())
            yield s.mistake("{0} needs {1} to be given", f"{at}.type", f"{at}.{name}", note=note)
    if tokenizer.type == "hub" and tokenizer.name and not _HUB_ID.fullmatch(tokenizer.name):
        yield s.mistake("{0} is no hub id", f"{at}.name", note="such as openai-community/gpt2")
    if not tokenizer.end_of_text:
        yield s.mistake("{0} is empty", f"{at}.end_of_text")


_FILES = ("text", "jsonl", "parquet", "arrow")
_RECORDS = ("jsonl", "parquet", "arrow", "hub")
_SOURCE_FIELDS = {
    "path": (*_FILES, "shards", "megatron"),
    "dataset": ("hub",),
    "subset": ("hub",),
    "split": ("hub",),
    "revision": ("hub",),
    "live": (*_FILES, "hub"),
    "record": _RECORDS,
    "text_field": _RECORDS,
    "messages_field": _RECORDS,
    "prompt_field": _RECORDS,
    "completion_field": _RECORDS,
    "ids_field": _RECORDS,
    "separator": ("text",),
    "heldout_path": ("shards",),
}
"""The types of sources that a field is for."""
_RECORD_FIELDS = {
    "text_field": "text",
    "messages_field": "chat",
    "prompt_field": "prompt_completion",
    "completion_field": "prompt_completion",
    "ids_field": "ids",
}


def _sources(s: Settings) -> Iterator[Mistake]:
    names: dict[str, int] = {}
    for index, source in enumerate(s.config.data.sources):
        at = f"data.sources.{index}"
        given = {key for key in _SOURCE_FIELDS if getattr(source, key) != Source.model_fields[key].default}
        for name, types in _SOURCE_FIELDS.items():
            if name in given and source.type not in types:
                note = f"{name} is only for sources of type {_listed(types)}; leave it out"
                yield s.mistake("{0} does not belong to {1}", f"{at}.{name}", f"{at}.type", note=note)
            elif name in given and source.record != _RECORD_FIELDS.get(name, source.record):
                note = f"{name} is only for records of kind {_RECORD_FIELDS[name]}; leave it out"
                yield s.mistake("{0} does not belong to {1}", f"{at}.{name}", f"{at}.record", note=note)
        if source.type in _SOURCE_FIELDS["path"] and not source.path:
            note = "a file, a folder or a glob pattern, or a list of them"
            yield s.mistake("{0} needs {1} to be given", f"{at}.type", f"{at}.path", note=note)
        if source.type in ("shards", "megatron") and isinstance(source.path, list) and len(source.path) > 1:
            note = "one path; give each its own source"
            yield s.mistake("{0} does not go with {1}", f"{at}.path", f"{at}.type", note=note)
        if source.type == "hub" and not source.dataset:
            yield s.mistake("{0} needs {1} to be given", f"{at}.type", f"{at}.dataset")
        if source.write_through and not source.live:
            note = "a source that is not live is tokenized before training, and kept, anyway"
            yield s.mistake("{0} does not go with {1}", f"{at}.write_through", f"{at}.live", note=note)
        if source.separator == "":
            yield s.mistake("{0} is empty; leave it out to take a file as a document", f"{at}.separator")
        name = source_name(index, source)
        if name in names:
            paths = (f"{at}.name", f"data.sources.{names[name]}.name")
            yield s.mistake(f'two sources are called "{name}": {{0}} and {{1}}', *paths)
        names.setdefault(name, index)


def _listed(names: tuple[str, ...]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _curriculum(s: Settings) -> Iterator[Mistake]:
    data = s.config.data
    names = {source_name(index, source): index for index, source in enumerate(data.sources)}
    begins = any(stage.step == 1 for stage in data.curriculum)
    if not begins and all(source.weight == 0.0 for source in data.sources):
        paths = [f"data.sources.{index}.weight" for index in range(len(data.sources))]
        told = " and ".join(f"{{{index}}}" for index in range(len(paths)))
        yield s.mistake(f"{told}: no source is left to draw from", *paths)
    steps: dict[int, int] = {}
    weights = {name: data.sources[index].weight for name, index in names.items()}
    for index, stage in sorted(enumerate(data.curriculum), key=lambda item: item[1].step):
        at = f"data.curriculum.{index}"
        if stage.step in steps:
            other = f"data.curriculum.{steps[stage.step]}.step"
            yield s.mistake("{0} and {1} are the same step", f"{at}.step", other)
        steps[stage.step] = index
        for name in stage.weights.keys() - names.keys():
            note = f"the sources are {', '.join(names)}"
            yield s.mistake(f"{{0}} names {display(name)}, which is no source", f"{at}.weights", note=note)
        weights |= {name: weight for name, weight in stage.weights.items() if name in names}
        if not any(weights.values()):
            yield s.mistake("{0} leave no source to draw from", f"{at}.weights")


def _paths(s: Settings) -> Iterator[Mistake]:
    paths = ["run.dir", "data.cache_dir", "data.tokenizer.path", "data.tokenizer.chat_template"]
    for index in range(len(s.config.data.sources)):
        paths += [f"data.sources.{index}.{name}" for name in ("path", "dataset", "heldout_path")]
    for path in paths:
        value = s.value(path)
        texts = value if isinstance(value, list) else [value]
        if any(text is not None and "\0" in text for text in texts):
            yield s.mistake("{0} has a NUL character in it, which no path can have", path)
        elif access := next(filter(None, map(access_in_url, filter(None, texts))), ""):
            note = (
                "the configuration is copied into the run's folder and checkpoints: name the file without it "
                "(keys of s3://, gs:// and hf:// come from the environment), or download it"
            )
            yield s.mistake(f"{path} has a URL in it with {access}", path, note=note)
        elif isinstance(value, list) and "" in value:
            yield s.mistake("{0} has an empty path in it", path)
        elif value == "" and path in ("run.dir", "data.cache_dir"):
            yield s.mistake("{0} is empty", path, note='the current folder is "."')


def _batch(s: Settings) -> Iterator[Mistake]:
    train = s.config.train
    if train.max_steps is None and train.max_minutes is None:
        note = "set train.max_steps, or train.max_minutes for a run that ends in time"
        yield s.mistake("one of {0} and {1} must be given", "train.max_steps", "train.max_minutes", note=note)
    if train.micro_batch_size != "auto" and train.global_batch_size % train.micro_batch_size:
        note = f"it must be a divisor of {train.global_batch_size}, or auto"
        paths = ("train.micro_batch_size", "train.global_batch_size")
        yield s.mistake("{0} does not divide {1}", *paths, note=note)


def _evaluate(s: Settings) -> Iterator[Mistake]:
    config, heldout, every = s.config, "data.heldout_every", "evaluate.every_steps"
    if config.data.heldout_every == 1:
        yield s.mistake("{0} holds out every document: nothing is left to train on", heldout)
    if config.evaluate.every_steps > 0 and config.data.heldout_every == 0:
        yield s.mistake("{0} has nothing to evaluate on: {1} holds nothing out", every, heldout)
    if config.evaluate.early_stopping is not None:
        stopping = "evaluate.early_stopping"
        if config.evaluate.every_steps == 0:
            yield s.mistake("{0} needs evaluations during training: {1} is off", stopping, every)
        elif config.data.heldout_every == 0:
            yield s.mistake("{0} needs held-out documents: {1} holds nothing out", stopping, heldout)


def _optimizer(s: Settings) -> Iterator[Mistake]:
    if max(s.config.optimizer.betas) >= 1.0:
        yield s.mistake("{0} must both be below 1", "optimizer.betas", note="with 1 a moment never moves")


def _parallel(s: Settings) -> Iterator[Mistake]:
    parallel, size, stage = s.config.parallel, "parallel.tensor_parallel_size", "parallel.zero_stage"
    if parallel.world_size is not None and parallel.world_size % parallel.tensor_parallel_size:
        yield s.mistake("{0} is not a multiple of {1}", "parallel.world_size", size)
    if parallel.sequence_parallel and parallel.tensor_parallel_size == 1:
        yield s.mistake("{0} needs {1} to be at least 2", "parallel.sequence_parallel", size)
    if parallel.offload == "cpu" and parallel.zero_stage == 0:
        note = "only what ZeRO shares out can lie in the host's memory; choose stage 1, 2 or 3"
        yield s.mistake("{0} does not go with {1}", "parallel.offload", stage, note=note)
    if parallel.checkpoint_every > 1 and parallel.activation_checkpointing == "none":
        what = "{0} does nothing with {1}"
        yield s.mistake(what, "parallel.checkpoint_every", "parallel.activation_checkpointing")
    if s.config.optimizer.name == "muon":
        note = "muon updates whole matrices: choose adamw, or give every rank the whole model"
        if parallel.tensor_parallel_size > 1:
            yield s.mistake("{0} does not go with {1}", "optimizer.name", size, note=note)
        if parallel.zero_stage not in ("auto", 0):
            yield s.mistake("{0} does not go with {1}", "optimizer.name", stage, note=note)
