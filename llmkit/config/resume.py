"""What may change when a run goes on: each setting is fixed, of the data, warned about, or free."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from llmkit.config.keys import general, keys
from llmkit.config.mistakes import display, printable
from llmkit.errors import UserError

Class = Literal["fixed", "data", "warned", "free"]

RULES: dict[str, Class] = {
    "run.name": "free",
    "run.dir": "free",
    "run.seed": "fixed",
    "run.deterministic": "free",
    "model": "fixed",
    "model.max_position_embeddings": "warned",  # of learned positions the checkpoint's model is compared
    "data.tokenizer.type": "data",
    "data.tokenizer.vocab_size": "data",
    "data.tokenizer.path": "free",  # the content is compared, not where it lies
    "data.tokenizer.name": "data",
    "data.tokenizer.revision": "data",
    "data.tokenizer.end_of_text": "data",
    "data.tokenizer.control_tokens_in_text": "data",
    "data.tokenizer.chat_template": "free",
    "data.sources.N.type": "data",
    "data.sources.N.name": "data",
    "data.sources.N.path": "free",
    "data.sources.N.dataset": "free",
    "data.sources.N.subset": "data",
    "data.sources.N.split": "data",
    "data.sources.N.revision": "data",
    "data.sources.N.live": "data",
    "data.sources.N.write_through": "free",
    "data.sources.N.weight": "data",
    "data.sources.N.max_epochs": "free",
    "data.sources.N.record": "data",
    "data.sources.N.text_field": "data",
    "data.sources.N.messages_field": "data",
    "data.sources.N.prompt_field": "data",
    "data.sources.N.completion_field": "data",
    "data.sources.N.ids_field": "data",
    "data.sources.N.separator": "data",
    "data.sources.N.heldout_path": "free",
    "data.curriculum": "data",
    "data.sequence_length": "data",
    "data.packing": "data",
    "data.heldout_every": "data",
    "data.document_masks": "data",
    "data.errors": "data",
    "data.cache_dir": "free",
    "data.lanes": "data",
    "data.shuffle_window": "data",
    "data.workers": "free",
    "data.stall_seconds": "free",
    "train.max_steps": "free",
    "train.max_minutes": "free",
    "train.global_batch_size": "warned",
    "train.micro_batch_size": "free",
    "train.gradient_clipping": "warned",
    "train.precision": "warned",
    "train.max_nonfinite_steps": "free",
    "optimizer.name": "fixed",
    "optimizer.learning_rate": "warned",
    "optimizer.betas": "warned",
    "optimizer.eps": "warned",
    "optimizer.momentum": "warned",
    "optimizer.weight_decay": "warned",
    "schedule": "warned",
    "parallel": "free",
    "kernels": "free",
    "checkpoint": "free",
    "evaluate": "free",
    "monitor": "free",
}
"""Class of a setting, or of all settings of a section but those that are named.

fixed: another value would be another run. data: another value changes what is read from there on, which
must be allowed. warned: it may change, and is told. free: it changes nothing that is computed.
"""


@dataclass(frozen=True)
class Difference:
    """A setting whose value changed; a value that is not there is None and shown as "absent"."""

    path: str
    old: str
    new: str

    def __str__(self) -> str:
        return f"{printable(self.path, 100)}: {self.old} -> {self.new}"


@dataclass(frozen=True)
class Differences:
    """The settings that changed and should not have, or should only with care."""

    fixed: list[Difference]
    data: list[Difference]
    warned: list[Difference]

    def raise_if_fixed(self, place: str | Path, allow_data_change: bool = False) -> None:
        """Raises one UserError that names each setting that may not change, with both values.

        place: where the old values are from, such as the run folder.
        """
        forbidden = self.fixed + ([] if allow_data_change else self.data)
        if not forbidden:
            return
        lines = [
            f"{printable(str(place))} cannot go on with other values of what is fixed for a run (old -> new):"
        ]
        lines += [f"  {difference}" for difference in forbidden]
        remedy = "Put the old values back, or start a new run under another run.name"
        if not self.fixed:
            remedy += "; --allow-data-change goes on with other data, and records that"
        lines.append(f"{remedy}.")
        raise UserError("\n".join(lines))


def classify(path: str) -> Class | None:
    """The class of a dotted setting, by the rule that names most of it; None if none speaks of it.

    Places in a list are numbers or, as in the reference of all settings, N.
    """
    path = re.sub(r"\.[0-9]+(?=\.|$)", ".N", path)
    found = [prefix for prefix in RULES if f"{path}.".startswith(f"{prefix}.")]
    return RULES[max(found, key=len)] if found else None


def compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> Differences:
    """The differences between two resolved configs (`config.model_dump(mode="json")`).

    A setting that the old config does not know yet counts as having had its default; one that
    exists no longer is warned about.
    """
    before, after = _flat(old), _flat(new)
    differences = Differences(fixed=[], data=[], warned=[])
    told: set[str] = set()
    for path in list(after) + [path for path in before if path not in after]:
        kind = classify(path) or "warned"
        if kind == "free":
            continue
        item = _item(path)
        if item and (_has_item(before, item) != _has_item(after, item)):
            # An entry of a list that came or went, such as a source, is one difference.
            if item not in told:
                told.add(item)
                shown = [_show_item(side, item) for side in (before, after)]
                getattr(differences, kind).append(Difference(item, *shown))
            continue
        if path not in before and _defaults().get(general(path)) == display(after[path]):
            continue
        if path in before and path in after and before[path] == after[path]:
            continue
        shown = [display(side[path]) if path in side else "absent" for side in (before, after)]
        getattr(differences, kind).append(Difference(path, *shown))
    return differences


def _item(path: str) -> str | None:
    """The entry of a list that a setting is in, such as data.sources.1."""
    found = re.match(r"(.*\.[0-9]+)\.", path)
    return found[1] if found else None


def _has_item(flat: Mapping[str, Any], item: str) -> bool:
    return any(path.startswith(f"{item}.") for path in flat)


def _show_item(flat: Mapping[str, Any], item: str) -> str:
    """What is set in an entry of a list, but for defaults; "absent" for one that is not there."""
    if not _has_item(flat, item):
        return "absent"
    set_here = {
        path: value for path, value in flat.items() if path.startswith(f"{item}.") and value is not None
    }
    return ", ".join(
        f"{path.removeprefix(f'{item}.')} {display(value)}"
        for path, value in set_here.items()
        if _defaults().get(general(path)) != display(value)
    )


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every setting by its dotted path; sections in a list are numbered from 0."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{path}.")
        elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            for index, item in enumerate(value):
                flat |= _flat(item, f"{path}.{index}.")
        else:
            flat[path] = list(value) if isinstance(value, tuple) else value
    return flat


@cache
def _defaults() -> dict[str, str]:
    return {key.path: key.default for key in keys()}
