"""What may change when a run goes on: each setting is fixed, warned about, or free."""

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

Class = Literal["fixed", "warned", "free"]

RULES: dict[str, Class] = {
    "run.name": "free",
    "run.dir": "free",
    "run.seed": "fixed",
    "run.deterministic": "free",
    "model": "fixed",
    "data.tokenizer.type": "fixed",
    "data.tokenizer.vocab_size": "fixed",
    "data.tokenizer.path": "free",  # the content is compared, not where it lies
    "data.tokenizer.name": "fixed",
    "data.tokenizer.revision": "fixed",
    "data.tokenizer.end_of_text": "fixed",
    "data.sources.N.type": "fixed",
    "data.sources.N.name": "fixed",
    "data.sources.N.path": "free",
    "data.sources.N.weight": "warned",  # from here on; no row is lost or repeated by it
    "data.sources.N.text_field": "fixed",
    "data.sources.N.separator": "fixed",
    "data.sequence_length": "fixed",
    "data.heldout_every": "fixed",
    "data.document_masks": "fixed",
    "data.errors": "fixed",
    "data.cache_dir": "free",
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
"""Class of a setting, or of all settings of a section."""


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
    warned: list[Difference]

    def raise_if_fixed(self, place: str | Path) -> None:
        """Raises one UserError that names each differing fixed setting with both values.

        place: where the old values are from, such as the run folder.
        """
        if not self.fixed:
            return
        lines = [
            f"{printable(str(place))} cannot go on with other values of what is fixed for a run (old -> new):"
        ]
        lines += [f"  {difference}" for difference in self.fixed]
        lines.append("Put the old values back, or start a new run under another run.name.")
        raise UserError("\n".join(lines))


def classify(path: str) -> Class | None:
    """The class of a dotted setting; None if no rule, or more than one, speaks of it.

    Places in a list are numbers or, as in the reference of all settings, N.
    """
    path = re.sub(r"\.[0-9]+(?=\.|$)", ".N", path)
    found = [kind for prefix, kind in RULES.items() if f"{path}.".startswith(f"{prefix}.")]
    return found[0] if len(found) == 1 else None


def compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> Differences:
    """The differences between two resolved configs (`config.model_dump(mode="json")`).

    A setting that the old config does not know yet counts as having had its default; one that
    exists no longer is warned about.
    """
    before, after = _flat(old), _flat(new)
    differences = Differences(fixed=[], warned=[])
    for path in list(after) + [path for path in before if path not in after]:
        if path not in before and _is_default(path, after[path], before):
            continue
        if path in before and path in after and before[path] == after[path]:
            continue
        shown = [display(side[path]) if path in side else "absent" for side in (before, after)]
        kind = classify(path) or "warned"
        if kind != "free":
            getattr(differences, kind).append(Difference(path, *shown))
    return differences


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


def _is_default(path: str, value: object, before: Mapping[str, Any]) -> bool:
    """Whether a setting has its default, in a section or list entry that the old config had."""
    item = re.match(r"(.*\.[0-9]+)\.", path)
    if item and not any(known.startswith(f"{item[1]}.") for known in before):
        return False
    return _defaults().get(general(path)) == display(value)
