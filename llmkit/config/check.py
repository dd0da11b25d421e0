"""Checks that concern more than one setting; all that fail are reported together."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from llmkit.config.adapters import check_lora
from llmkit.config.check_activations import check_activations
from llmkit.config.check_layout import (
    check_batch,
    check_model,
    check_optimizer,
    check_tensor_parallel,
    check_vocabulary,
    check_world,
    check_zero,
)
from llmkit.config.check_preference import check_preference
from llmkit.config.context import check_context
from llmkit.config.dealt_experts import check_dealt_experts
from llmkit.config.entries import chosen, common_fields, own_settings, settings_of
from llmkit.config.groups import check_groups
from llmkit.config.heldout import may_hold_out, nothing_held_out
from llmkit.config.mistakes import Mistake, display, listed
from llmkit.config.paths import check_paths
from llmkit.config.schema import PRETOKENIZED, Config, Source, Tokenizer, default_source_name
from llmkit.config.section import Entry
from llmkit.config.settings import Facts, Settings
from llmkit.errors import UserError
from llmkit.registry import Kind, find, names

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")


def check(config: Config, origins: Mapping[str, str], facts: Facts | None = None) -> list[Mistake]:
    """Returns every contradiction between settings; its text names the values and where they came from.

    origins: dotted path -> where the value came from, as in Loaded.origins.
    facts: what is known beside the settings; a check that needs more is left out.
    """
    settings = Settings(config, origins, facts or Facts())
    data = (_tokenizer, _sources, _entries, _profile, _curriculum, check_paths)
    layout = (
        check_world, check_tensor_parallel, check_context, check_dealt_experts, check_zero, check_activations
    )  # fmt: skip
    update = (check_preference, _ema, _evaluate, check_optimizer, check_groups, check_lora)
    checks = (check_model, check_vocabulary, *data, check_batch, *update, *layout)
    return [mistake for one in checks for mistake in one(settings)]


def source_name(index: int, source: Source) -> str:
    """Returns a source's name: its own, or one made of its type and index."""
    return source.name or default_source_name(source.type, index)


_TOKENIZER_FIELDS = {
    "vocab_size": ("bpe",), "pattern": ("bpe",), "path": ("file",), "name": ("hub",), "revision": ("hub",),
}  # fmt: skip


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
    if tokenizer.type == "init_from":
        if s.config.train.init_from is None:
            yield s.mistake("{0} needs {1} to be given", f"{at}.type", "train.init_from")
        for name in ("end_of_text", "control_tokens_in_text"):
            if getattr(tokenizer, name) != Tokenizer.model_fields[name].default:
                note = "the weights' tokenizer has its own; to choose, take its tokenizer.json by type: file"
                yield s.mistake("{0} does not belong to {1}", f"{at}.{name}", f"{at}.type", note=note)
    if not tokenizer.end_of_text:
        yield s.mistake("{0} is empty", f"{at}.end_of_text")


_FILES = ("text", "jsonl", "parquet", "arrow")
_RECORDS = ("jsonl", "parquet", "arrow", "hub")
_SOURCE_FIELDS = {
    "path": (*_FILES, *PRETOKENIZED),
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
    "chosen_field": _RECORDS,
    "rejected_field": _RECORDS,
    "ids_field": _RECORDS,
    "separator": ("text",),
    "heldout_path": ("shards",),
}
"""The types of sources that a field is for."""
_RECORD_FIELDS = {
    "text_field": ("text",),
    "messages_field": ("chat",),
    "prompt_field": ("prompt_completion", "preference"),
    "completion_field": ("prompt_completion",),
    "chosen_field": ("preference",),
    "rejected_field": ("preference",),
    "ids_field": ("ids",),
}


def _sources(s: Settings) -> Iterator[Mistake]:
    names: dict[str, int] = {}
    for index, source in enumerate(s.config.data.sources):
        at = f"data.sources.{index}"
        given = {key for key in _SOURCE_FIELDS if getattr(source, key) != Source.model_fields[key].default}
        registered = find("source", source.type)
        for name, types in _SOURCE_FIELDS.items():
            if registered is not None and (name == "live" or types is _RECORDS):
                types = (source.type,)
            if name in given and source.type not in types:
                note = f"{name} is only for sources of type {listed(types)}; leave it out"
                yield s.mistake("{0} does not belong to {1}", f"{at}.{name}", f"{at}.type", note=note)
            elif name in given and source.record not in _RECORD_FIELDS.get(name, (source.record,)):
                note = f"{name} is only for records of kind {listed(_RECORD_FIELDS[name])}; leave it out"
                yield s.mistake("{0} does not belong to {1}", f"{at}.{name}", f"{at}.record", note=note)
        if source.type in _SOURCE_FIELDS["path"] and not source.path:
            note = "a file, a folder or a glob pattern, or a list of them"
            yield s.mistake("{0} needs {1} to be given", f"{at}.type", f"{at}.path", note=note)
        if source.type in PRETOKENIZED and isinstance(source.path, list) and len(source.path) > 1:
            note = "one path; give each its own source"
            yield s.mistake("{0} does not go with {1}", f"{at}.path", f"{at}.type", note=note)
        if source.type == "hub" and not source.dataset:
            yield s.mistake("{0} needs {1} to be given", f"{at}.type", f"{at}.dataset")
        if source.separator == "":
            yield s.mistake("{0} is empty; leave it out to take a file as a document", f"{at}.separator")
        name = source_name(index, source)
        if name in names:
            paths = (f"{at}.name", f"data.sources.{names[name]}.name")
            yield s.mistake(f'two sources are called "{name}": {{0}} and {{1}}', *paths)
        names.setdefault(name, index)


def _entries(s: Settings) -> Iterator[Mistake]:
    """Hooks, sinks and sources of plugins: that they are registered, and their settings are their own."""
    lists: tuple[tuple[str, Kind, list[Entry]], ...] = (
        ("hooks", "hook", s.config.hooks), ("monitor.sinks", "sink", s.config.monitor.sinks),
    )  # fmt: skip
    note = "the module that registers it must be named under `plugins:`"
    for path, kind, entries in lists:
        for number, each in enumerate(entries):
            if each.type not in names(kind):
                yield s.mistake(f"{{0}} names no registered {kind}", f"{path}.{number}.type", note=note)
    for at, entry, component in chosen(s.config):
        own, common = settings_of(component).model_fields, common_fields(component.kind)
        for name, field in type(entry).model_fields.items():
            if name not in common and name not in own and getattr(entry, name) != field.default:
                yield s.mistake("{0} does not belong to {1}", f"{at}.{name}", f"{at}.type")
        try:
            own_settings(entry, component)
        except UserError as error:
            yield s.mistake(f"{{0}}: {error}", f"{at}.type")


def _profile(s: Settings) -> Iterator[Mistake]:
    steps = s.config.monitor.profile_steps
    if steps is not None and steps[0] > steps[1]:
        note = "the first and the last step that are recorded, as in [10, 12]"
        yield s.mistake("{0} ends before it begins", "monitor.profile_steps", note=note)


def _curriculum(s: Settings) -> Iterator[Mistake]:
    data = s.config.data
    names = {source_name(index, source): index for index, source in enumerate(data.sources)}
    begins = any(stage.step == 1 for stage in data.curriculum)
    if not begins and all(source.weight == 0.0 for source in data.sources):
        paths = [f"data.sources.{index}.weight" for index in range(len(data.sources))]
        placeholders = " and ".join(f"{{{index}}}" for index in range(len(paths)))
        yield s.mistake(f"{placeholders}: no source is left to draw from", *paths)
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


def _ema(s: Settings) -> Iterator[Mistake]:
    ema, at = s.config.train.ema, "train.ema"
    if ema.decay is not None and ema.half_life_tokens is not None:
        note = "both say how fast the average forgets; leave one of them out"
        yield s.mistake("{0} does not go with {1}", f"{at}.decay", f"{at}.half_life_tokens", note=note)


def _evaluate(s: Settings) -> Iterator[Mistake]:
    config, every = s.config, "evaluate.every_steps"
    never = not may_hold_out(config.data)
    why = nothing_held_out(s)
    if config.evaluate.every_steps > 0 and never:
        note = f"{why}; {every}=0 trains without evaluations"
        yield s.mistake("{0} has nothing to evaluate on", every, note=note)
    tasks = config.evaluate.tasks
    if not tasks.names and tasks.every_steps:
        yield s.mistake("{0} needs tasks: {1} is empty", "evaluate.tasks.every_steps", "evaluate.tasks.names")
    if config.evaluate.early_stopping is not None:
        stopping = "evaluate.early_stopping"
        if config.evaluate.every_steps == 0:
            yield s.mistake("{0} needs evaluations during training: {1} is off", stopping, every)
        elif never or s.facts.holds_out is False:
            yield s.mistake("{0} needs held-out documents", stopping, note=why)
