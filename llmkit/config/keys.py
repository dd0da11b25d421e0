"""Reference of all settings, read off the schema: what each key takes, its default, its meaning."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from llmkit.config.mistakes import display
from llmkit.config.schema import Config

OTHER_NAMES: dict[str, str] = {
    "adam_beta1": "optimizer.betas",
    "adam_beta2": "optimizer.betas",
    "batch_size": "train.global_batch_size",
    "beta1": "optimizer.betas",
    "beta2": "optimizer.betas",
    "block_size": "data.sequence_length",
    "context_length": "data.sequence_length",
    "dropout": "model.hidden_dropout",
    "dtype": "train.precision",
    "load_in_4bit": "train.lora.quantize_base",
    "load_in_8bit": "train.lora.quantize_base",
    "lora_alpha": "train.lora.alpha",
    "lora_dropout": "train.lora.input_dropout",
    "lora_r": "train.lora.rank",
    "lora_rank": "train.lora.rank",
    "target_modules": "train.lora.targets",
    "eval_interval": "evaluate.every_steps",
    "deepspeed_stage": "parallel.zero_stage",
    "grad_clip": "train.gradient_clipping",
    "gradient_accumulation_steps": "train.micro_batch_size",
    "gradient_checkpointing": "parallel.activation_checkpointing",
    "hidden_act": "model.mlp",
    "log_interval": "monitor.log_every",
    "logging_steps": "monitor.log_every",
    "lr": "optimizer.learning_rate",
    "lr_scheduler_type": "schedule.name",
    "max_grad_norm": "train.gradient_clipping",
    "max_iters": "train.max_steps",
    "max_seq_len": "data.sequence_length",
    "max_seq_length": "data.sequence_length",
    "min_lr": "schedule.min_lr_ratio",
    "n_embd": "model.hidden_size",
    "n_head": "model.num_attention_heads",
    "n_layer": "model.num_hidden_layers",
    "num_heads": "model.num_attention_heads",
    "num_layers": "model.num_hidden_layers",
    "output_dir": "run.dir",
    "per_device_train_batch_size": "train.micro_batch_size",
    "rms_norm_eps": "model.norm_eps",
    "save_steps": "checkpoint.every_steps",
    "seq_len": "data.sequence_length",
    "seq_length": "data.sequence_length",
    "tensor_model_parallel_size": "parallel.tensor_parallel_size",
    "tie_embeddings": "model.tie_word_embeddings",
    "tp_size": "parallel.tensor_parallel_size",
    "wandb_project": "monitor.wandb.project",
    "warmup": "schedule.warmup_steps",
}
"""Names that other toolkits use, and ours."""


MAX_NAME = 64
"""Longer names resemble no setting, and comparing them would take long."""


@dataclass(frozen=True)
class Key:
    """One setting, or a section of settings.

    path: dotted; N stands for an index in a list, as in data.sources.N.type.
    allowed: the values it takes, in words, as in "a whole number of at least 1, or null".
    choices: the texts it takes, where these are few.
    default: as YAML would write it, or "required"; empty for other sections.
    is_list: whether it is a list of sections.
    resume: the rule for a run that goes on, as a plugin's setting gives it; empty for others.
    """

    path: str
    allowed: str
    choices: tuple[str, ...]
    default: str
    doc: str
    is_section: bool
    is_list: bool = False
    resume: str = ""


@functools.cache
def all_keys(schema: type[Config] = Config) -> dict[str, Key]:
    """Every section and setting by its path, in the order of the schema."""
    described = schema.model_json_schema()
    return {key.path: key for key in _walk(described, described["$defs"], "")}


def keys(schema: type[Config] = Config) -> list[Key]:
    """Every setting (no sections), in the order of the schema."""
    return [key for key in all_keys(schema).values() if not key.is_section]


def markdown() -> str:
    """The reference of all keys as a Markdown page, a table for each section."""
    lines = [
        "# Settings",
        "",
        "Every key of a configuration file.",
        "This page is written by `llmkit.config.keys.markdown()`; a test keeps it current.",
        "On the command line a key is set with `section.key=value`; `N` is an index in a list, from 0, or a",
        "source's name: `data.sources.1.weight=2`, `data.sources[1].weight=2`, `data.sources.web.weight=2`.",
        "`llmkit config --keys NAME` prints this for one key or section.",
        "",
        "What wins: the command line over the file, the file over those that it names after `extends:`,",
        "of these a later one over an earlier one, and any of them over the defaults. Sections merge key by",
        "key; lists are replaced as a whole. `llmkit config FILE` shows each value with where it is from.",
        "A file that says `reset: model` (a section, such as `model.rope_scaling`, or a list of them) beside",
        "`extends:` starts from the defaults there: what the files before it say is dropped. Those in",
        "`configs/models` do, so that each is one model.",
    ]
    entries = list(all_keys().values())
    top = [("the top level", "", "Outside of all sections.")]
    for title, section, doc in top + [(key.path, key.path, key.doc) for key in entries if key.is_section]:
        lines += ["", f"## {title}", "", doc, "", "| key | takes | default | meaning |"]
        lines.append("|---|---|---|---|")
        for key in entries:
            if not key.is_section and key.path.rpartition(".")[0] in (section, f"{section}.N"):
                cells = (f"`{key.path}`", key.allowed, f"`{key.default}`", key.doc)
                lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def suggest(path: str, schema: type[Config] = Config) -> list[str]:
    """The right keys that an unknown dotted key may have meant, best first; often one or none.

    Names that other toolkits use come first; then the key's own section, the same name in other
    sections, a similar name in them.
    """
    section, _, name = general(path).rpartition(".")
    known = all_keys(schema)
    siblings = {p.rpartition(".")[2]: p for p in known if p.rpartition(".")[0] == section}
    wanted = name.lower().replace("-", "_")
    if len(wanted) > MAX_NAME:
        return []
    if (right := OTHER_NAMES.get(wanted)) in known:
        return [siblings.get(right.rpartition(".")[2], right)]
    if close := difflib.get_close_matches(wanted, siblings, n=1, cutoff=0.75):
        return [siblings[close[0]]]
    if same := _of_name(wanted, known):
        return same
    names = {p.rpartition(".")[2] for p in known}
    if far := difflib.get_close_matches(wanted, names, n=1, cutoff=0.75):
        return _of_name(far[0], known)
    return [siblings[n] for n in difflib.get_close_matches(wanted, siblings, n=1, cutoff=0.55)]


def _of_name(name: str, known: Iterable[str]) -> list[str]:
    """The keys of this name that lie least deep, at most three."""
    found = [path for path in known if path.rpartition(".")[2] == name]
    return [path for path in found if path.count(".") == min(each.count(".") for each in found)][:3]


def key_of(path: str, schema: type[Config] = Config) -> Key | None:
    """The key of a dotted path, in which list indices are numbers; None if there is none such."""
    wanted, known = general(path), all_keys(schema)
    if wanted.endswith(".N") and (many := known.get(wanted[:-2])) and many.is_list:
        return Key(path, "a section (a mapping of keys)", (), "required", many.doc, True)
    return known.get(wanted)


def general(path: str) -> str:
    """A dotted key with N for each index in a list."""
    return re.sub(r"\.[0-9]+(?=\.|$)", ".N", path)


def numbered(key: str, like: str) -> str:
    """A key with the list indices of a similar dotted key put in for N."""
    indices = [part for part in like.split(".") if part.isdecimal()]
    return ".".join(indices.pop(0) if part == "N" and indices else part for part in key.split("."))


def _walk(schema: dict[str, Any], definitions: dict[str, Any], prefix: str) -> Iterator[Key]:
    """The keys of a section's JSON schema and of the sections below it."""
    required = schema.get("required", ())
    for name, field in schema["properties"].items():
        path = prefix + name
        doc = " ".join(field.get("description", "").split())
        below = _section(field, definitions)
        if below is not None and "properties" not in below:  # another type by name, such as an enumeration
            field, below = {**below, **field}, None
        default = "required" if name in required else ""
        if below is None:
            default = default or display(field.get("default"))
            resume = field.get("resume", "")
            yield Key(path, _allowed(field), tuple(_choices(field)), default, doc, False, resume=resume)
            continue
        doc = doc or " ".join(below.get("description", "").split())
        many = field.get("type") == "array"
        allowed = "a section (a mapping of keys)"
        if many:
            allowed = "a list of sections" + (", at least one" if field.get("minItems") else "")
        yield Key(path, allowed, (), default, doc, True, many)
        yield from _walk(below, definitions, path + (".N." if many else "."))


def _section(field: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any] | None:
    """The schema of the section that a field holds, alone or in a list; None for a setting."""
    reference = field.get("$ref") or field.get("items", {}).get("$ref")
    if reference is None:
        return None
    section: dict[str, Any] = definitions[reference.rpartition("/")[2]]
    return section


def _choices(field: dict[str, Any]) -> Iterator[str]:
    for option in field.get("anyOf", [field]):
        yield from (value for value in option.get("enum", ()) if isinstance(value, str))
        if "const" in option:
            yield str(option["const"])


def _allowed(field: dict[str, Any]) -> str:
    """What a setting takes, in words."""
    parts = [_one_of_allowed(option) for option in field.get("anyOf", [field])]
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + ", or " + parts[-1]


def _one_of_allowed(option: Any) -> str:
    if not isinstance(option, dict) or not option.keys() & {"const", "enum", "type"}:
        return "any value"
    if "const" in option:
        return str(option["const"])
    if "enum" in option:
        return "one of " + ", ".join(map(str, option["enum"]))
    kind = option["type"]
    if kind in ("integer", "number"):
        return ("a whole number" if kind == "integer" else "a number") + _range(option)
    if kind == "string":
        pattern = option.get("pattern")
        return "text" + (f" that matches {pattern}" if pattern else "")
    if kind == "array":
        if "prefixItems" in option:
            items = [_one_of_allowed(item) for item in option["prefixItems"]]
            same = len(set(items)) == 1
            return f"a list of {len(items)}" + (f", each {items[0]}" if same else f": {', '.join(items)}")
        return "a list of " + _one_of_allowed(option.get("items")).replace("text", "texts")
    if kind == "object":
        return "a mapping of names, each to " + _one_of_allowed(option.get("additionalProperties"))
    return {"boolean": "true or false", "null": "null"}[kind]


def _range(option: dict[str, Any]) -> str:
    """The bounds of a number, in words; empty if there are none."""
    if "minimum" in option and "maximum" in option:
        return f" from {_number(option['minimum'])} to {_number(option['maximum'])}"
    words = {
        "minimum": "of at least",
        "exclusiveMinimum": "above",
        "maximum": "at most",
        "exclusiveMaximum": "below",
    }
    bounds = [f"{word} {_number(option[name])}" for name, word in words.items() if name in option]
    return f" {' and '.join(bounds)}" if bounds else ""


def _number(value: float) -> str:
    return str(int(value) if float(value).is_integer() else value)
