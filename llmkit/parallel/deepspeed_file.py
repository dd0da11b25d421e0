"""Reads a user's DeepSpeed JSON file: every key takes effect, or is refused with what to do instead."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmkit.config.mistakes import Mistake, display, printable
from llmkit.parallel.deepspeed_keys import (
    RULES,
    SAME_SECTION,
    Compared,
    Fixed,
    NoEffect,
    Off,
    Passed,
    Refused,
)
from llmkit.parallel.launch_setting import LaunchSetting

OF_ACCELERATE = {
    "zero_stage": "zero_optimization.stage",
    "offload_optimizer_device": "zero_optimization.offload_optimizer.device",
    "offload_param_device": "zero_optimization.offload_param.device",
}
"""Names that accelerate's own YAML has for keys of DeepSpeed's."""


@dataclass
class DeepSpeedFile:
    """The settings of the file, by what becomes of them.

    compared: by the field of AccelerateConfig. passed: by the dotted key. no_effect: a line for each key
    without effect. mistakes: keys that llmkit cannot follow, each with its line.
    """

    compared: dict[str, LaunchSetting] = field(default_factory=dict)
    passed: dict[str, LaunchSetting] = field(default_factory=dict)
    no_effect: list[str] = field(default_factory=list)
    mistakes: list[Mistake] = field(default_factory=list)


def read_deepspeed_file(path: Path) -> DeepSpeedFile:
    """Reads the file; a value "auto" counts as not given."""
    found, which = DeepSpeedFile(), "the deepspeed_config_file of accelerate's configuration"
    try:
        text = path.read_text()
        content = json.loads(text, object_pairs_hook=_distinct)
    except (OSError, ValueError) as error:
        found.mistakes.append(Mistake(str(path), f"{which} cannot be read: {error}"))
        return found
    if not isinstance(content, dict):
        found.mistakes.append(Mistake(str(path), f"{which} holds no {{...}}"))
        return found
    for key, value in _leaves(content):
        setting = LaunchSetting(key, value, f"{path}:{_line(text, key)}")
        key = ".".join([SAME_SECTION.get(part, part) for part in key.split(".")])
        if mistake := _sort(key, setting, found):
            found.mistakes.append(Mistake(setting.location, mistake))
    return found


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)} is given twice")
    return content


def _leaves(content: Mapping[str, Any], section: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of all that has a rule of its own, and of all that has none."""
    for name, value in content.items():
        key = f"{section}{name}"
        within = SAME_SECTION.get(key, key) + "."
        if not any(rule.startswith(within) for rule in RULES):
            yield key, value
        elif isinstance(value, dict):
            yield from _leaves(value, f"{key}.")
        elif value is not None:
            yield key, value  # which should be a section


def _sort(key: str, setting: LaunchSetting, found: DeepSpeedFile) -> str:
    """Records a setting in `found`; returns what is wrong with it, or ""."""
    rule, value = RULES.get(key), setting.value
    if rule is None:
        return _unknown(key, value)
    if value == "auto":
        return ""
    match rule:
        case Compared(name):
            found.compared[name] = setting
        case Passed(_, kind, multiple):
            if kind is bool and not isinstance(value, bool):
                return f"{setting.name} is {display(value)}; it must be true or false"
            if kind is int and not _is_whole(value, multiple):
                of = f"multiple of {multiple}" if multiple > 1 else "whole number from 1"
                return f"{setting.name} is {display(value)}; it must be a {of}"
            found.passed[key] = setting._replace(value=kind(value))
        case NoEffect(reason):
            found.no_effect.append(f"{setting} has no effect: {reason}")
        case Fixed(values, instead):
            same = any(each == value and isinstance(each, bool) == isinstance(value, bool) for each in values)
            return "" if same else f"{setting.name} {display(value)} is not what llmkit does: {instead}"
        case Off(instead):
            return "" if _is_off(value) else f"llmkit does not use {setting.name}: {instead}"
        case Refused(instead):
            return f"llmkit does not use {setting.name}: {instead}"
    return ""


def _is_whole(value: Any, multiple: int) -> bool:
    """Files write large numbers as 5e8, too."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 1 <= value < float("inf") and value % multiple == 0


def _is_off(value: Any) -> bool:
    if isinstance(value, dict) and "enabled" in value:
        return value["enabled"] in (False, "auto")
    return not any(value.values()) if isinstance(value, dict) else not value


def _unknown(key: str, value: Any) -> str:
    if any(rule.startswith(f"{key}.") for rule in RULES):
        return f"{key} is {display(value)}; it must be a section, {{...}}"
    section, dot, name = key.rpartition(".")
    within = f"{section}{dot}"
    beside = {rule.removeprefix(within).split(".")[0] for rule in RULES if rule.startswith(within)}
    by_name = {rule.rpartition(".")[2]: rule for rule in RULES} | OF_ACCELERATE
    remedy = "; take it out"
    for names in ({each: f"{within}{each}" for each in beside}, by_name):
        if close := difflib.get_close_matches(name, names, n=1, cutoff=0.75):
            remedy = f"; did you mean {names[close[0]]}?"
            break
    return f"{printable(key, 100)} is no key of DeepSpeed's that llmkit knows{remedy}"


def _line(text: str, key: str) -> int:
    """Returns the line number of a dotted key: each part is searched behind the one before."""
    position = 0
    for part in key.split("."):
        position = max(position, text.find(json.dumps(part), position))
    return text.count("\n", 0, position) + 1
