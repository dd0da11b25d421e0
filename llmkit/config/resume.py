"""Differences between the settings of a checkpoint and those of now, and whether they are allowed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from llmkit.config.keys import all_keys, general, keys
from llmkit.config.mistakes import display, printable
from llmkit.config.renamed import with_new_names
from llmkit.config.resume_rules import RESUME_POLICIES, Kind, ResumePolicy
from llmkit.config.schema import Config
from llmkit.errors import UserError

ABSENT = "absent"
"""Shown for the value of a setting that one side does not have."""
UNKNOWN = ResumePolicy("warned", "a setting that this version does not know")


@dataclass(frozen=True)
class Difference:
    """A setting whose value changed.

    old, new: as YAML would write them, in brief. origin: where the new value is from, such as
    "mine.yaml:12"; "" where that is not known.
    """

    path: str
    old: str
    new: str
    rule: ResumePolicy
    origin: str = ""

    def __str__(self) -> str:
        where = f" ({printable(self.origin, 200)})" if self.origin else ""
        return f"{printable(self.path, 100)}: {self.old} -> {self.new}{where}"

    def to_json(self) -> dict[str, str]:
        """For events.jsonl."""
        return {"setting": self.path, "old": self.old, "new": self.new, "origin": self.origin}


@dataclass(frozen=True)
class Differences:
    """All settings that changed, in the order of the settings."""

    all: Sequence[Difference]

    def of(self, *kinds: Kind) -> list[Difference]:
        """Those whose rule is of one of these kinds."""
        return [difference for difference in self.all if difference.rule.kind in kinds]

    def raise_if_fixed(
        self, origin: str | Path, allow_data_change: bool = False,
        remedy: str = "Put the old values back, or start a new run under another run.name",
    ) -> None:  # fmt: skip
        """Raises one UserError that names each setting that may not change, with both values.

        origin: where the old values are from, such as the run folder. remedy: what the user can do.
        """
        forbidden = self.of("fixed") if allow_data_change else self.of("fixed", "data")
        if not forbidden:
            return
        lines = [
            f"{printable(str(origin))} cannot go on with other values of settings that are fixed for a run "
            "(old -> new):"
        ]
        lines += [f"  {difference}: {difference.rule.reason}" for difference in forbidden]
        if not self.of("fixed"):
            remedy += "; --allow-data-change goes on with other data, and records that"
        lines.append(f"{remedy}.")
        raise UserError("\n".join(lines))


def rule_of(path: str, schema: type[Config] = Config) -> ResumePolicy | None:
    """Returns the rule of a dotted setting, or of the section it is in; None if there is none.

    Indices in a list are numbers or, as in the reference of all settings, N.
    """
    path = general(path)
    key = all_keys(schema).get(path)
    if key is not None and not key.is_section and path not in RESUME_POLICIES:
        read = path.startswith("data.sources.")  # where it decides what is read, like ours
        return ResumePolicy(key.resume or ("data" if read else "warned"), "a setting of a plugin")  # type: ignore[arg-type]
    found = [name for name in RESUME_POLICIES if f"{path}.".startswith(f"{name}.")]
    return RESUME_POLICIES[max(found, key=len)] if found else None


def compare(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    origins: Mapping[str, str] | None = None,
    schema: type[Config] = Config,
) -> Differences:
    """The differences between two resolved configs (`config.model_dump(mode="json")`).

    A setting that the old config does not know yet counts as having had its default; one that
    exists no longer is warned about. origins: where the new values are from, by dotted setting. schema: of
    the new config.
    """
    before, after, origins = _flat(with_new_names(old), schema), _flat(new, schema), origins or {}
    defaults = {key.path: key.default for key in keys(schema)}
    found: dict[str, Difference] = {}
    for path in list(after) + [path for path in before if path not in after]:
        item = _item(path)
        if item and (_has_item(before, item) != _has_item(after, item)):
            # An entry of a list that came or went, such as a source, is one difference.
            was, now = _show_item(before, item, defaults), _show_item(after, item, defaults)
            origin = next((o for p, o in origins.items() if p.startswith(f"{item}.") and o != "default"), "")
            found[item] = Difference(item, was, now, _strictest(item, before | after, schema), origin)
            continue
        if path not in before and defaults.get(general(path)) == display(after[path]):
            continue
        if path in before and path in after and _same(path, before[path], after[path]):
            continue
        was, now = (display(side[path]) if path in side else ABSENT for side in (before, after))
        found[path] = Difference(path, was, now, rule_of(path, schema) or UNKNOWN, origins.get(path, ""))
    return Differences(list(found.values()))


def _same(path: str, old: Any, new: Any) -> bool:
    """Whether two values of a setting mean the same: fractions of documents, where the same are held out."""
    if path == "data.validation_fraction" and old and new:
        return round(1.0 / old) == round(1.0 / new)
    return old == new


def _item(path: str) -> str | None:
    """The entry of a list that a setting is in, such as data.sources.1."""
    found = re.match(r"(.*\.[0-9]+)\.", path)
    return found[1] if found else None


def _has_item(flat: Mapping[str, Any], item: str) -> bool:
    return any(path.startswith(f"{item}.") for path in flat)


def _strictest(item: str, flat: Mapping[str, Any], schema: type[Config]) -> ResumePolicy:
    """The strictest rule of the settings of an entry of a list."""
    rules = [rule_of(path, schema) or UNKNOWN for path in flat if path.startswith(f"{item}.")]
    return min(rules, key=lambda rule: get_args(Kind).index(rule.kind))


def _show_item(flat: Mapping[str, Any], item: str, defaults: Mapping[str, str]) -> str:
    """What is set in an entry of a list, but for defaults; "absent" for one that is not there."""
    if not _has_item(flat, item):
        return ABSENT
    set_here = {
        path: value for path, value in flat.items() if path.startswith(f"{item}.") and value is not None
    }
    return ", ".join(
        f"{path.removeprefix(f'{item}.')} {display(value)}"
        for path, value in set_here.items()
        if defaults.get(general(path)) != display(value)
    )


def _flat(config: Mapping[str, Any], schema: type[Config], prefix: str = "") -> dict[str, Any]:
    """Every setting by its dotted path; sections in a list are numbered from 0."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            flat |= _flat(value, schema, f"{path}.")
        elif (
            isinstance(value, list)
            and _is_list(path, schema)
            and all(isinstance(item, Mapping) for item in value)
        ):
            for index, item in enumerate(value):
                flat |= _flat(item, schema, f"{path}.{index}.")
        else:
            flat[path] = list(value) if isinstance(value, tuple) else value
    return flat


def _is_list(path: str, schema: type[Config]) -> bool:
    """Whether a setting is a list of sections; so is one that this version does not know."""
    key = all_keys(schema).get(general(path))
    return key is None or key.is_list
