"""Tables of a page: data sources, evaluations by tasks, settings, how to make the run again."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmkit.config.mistakes import printable, without_secrets
from llmkit.monitor.record import RunRecord, at
from llmkit.report.facts import source_names
from llmkit.report.happened import starts

NEWEST = 6
"""Evaluations by tasks that are shown."""


@dataclass(frozen=True)
class Source:
    """A data source. share: of the rows, in percent. figures: by name; what no source has is left out."""

    name: str
    kind: str
    share: float
    figures: dict[str, str]


def sources(run: RunRecord) -> list[Source]:
    """The mixture as the settings have it, with what the run made of it."""
    settings = run.settings
    tokens = {str(at(each, "name")): at(each, "tokens") for each in _stored_sources(run)}
    names, weights, figures = source_names(run), [], []
    for number, name in enumerate(names):
        weight = settings.get(f"data.sources.{number}.weight", 1.0)
        weights.append(float(weight) if isinstance(weight, int | float) else 0.0)
        size, epochs = tokens.get(name), _last(run, f"epochs/{name}")
        figures.append({
            "tokens": f"{size:,}" if isinstance(size, int) else "",
            "epochs": epochs or (_last(run, "epochs") if len(names) == 1 else ""),
            "loss": _last(run, f"loss/{name}"),
            "held-out loss": _last(run, f"eval_loss/{name}"),
        })  # fmt: skip
    known = [name for name in (figures[0] if figures else {}) if any(each[name] for each in figures)]
    total = sum(weights) or 1.0
    return [
        Source(name, _kind(run, number), 100 * weights[number] / total, {each: shown[each] for each in known})
        for number, (name, shown) in enumerate(zip(names, figures, strict=True))
    ]


def _kind(run: RunRecord, number: int) -> str:
    kinds = (run.settings.get(f"data.sources.{number}.{key}") for key in ("dataset", "type"))
    return printable(str(next(filter(None, kinds), "")), 80)


def _last(run: RunRecord, column: str) -> str:
    value = run.columns[column].last if column in run.columns else None
    return "" if value is None else f"{value:.4g}"


def tasks(run: RunRecord) -> tuple[list[int], list[tuple[str, str, list[str]]]]:
    """Steps of the newest evaluations by tasks, and of each task and metric its values at them."""
    names = [name for name in run.columns if name.startswith("eval/")]
    if not names:
        return [], []
    steps = np.unique(np.concatenate([run.columns[name].steps for name in names]))[-NEWEST:].tolist()
    rows = []
    for name in names:
        column = run.columns[name]
        values = dict(zip(column.steps.tolist(), column.values.tolist(), strict=True))
        cells = [
            f"{values[step]:.4f}" if step in values and np.isfinite(values[step]) else "" for step in steps
        ]
        task, _, metric = name.removeprefix("eval/").rpartition("/")
        rows.append((task or metric, metric if task else "", cells))
    return steps, rows


def reproduce(run: RunRecord) -> list[tuple[str, str]]:
    """What makes the run again, and what it was made with: name and text."""
    command = run.manifest.get("command")
    found = []
    if isinstance(command, list) and command:
        words = [str(word) for word in command]
        program = words[0].rpartition("/")[2] or words[0]
        words[:1] = ["python", "-m", "llmkit"] if program == "__main__.py" else [program]
        found.append(
            ("Its command", shlex.join(without_secrets(word) if "=" in word else word for word in words))
        )
    if isinstance(started_in := at(run.checkpoint, "state", "started_in"), str):
        found.append(("Started in", started_in))
    again = shlex.join(["llmkit", "train", str(run.folder / "config.yaml"), f"run.name={run.name}-again"])
    if (run.folder / "config.yaml").is_file():
        found.append(("A new run with its settings", again))
    for name in ("llmkit", "python", "torch", "accelerate", "deepspeed"):
        if isinstance(version := run.manifest.get(name), str):
            found.append((name, version))
    plugins = run.manifest.get("plugins")
    if isinstance(plugins, dict):
        found += [(f"plugin {name}", str(code)) for name, code in plugins.items()]
    return [(name, printable(text, 1000)) for name, text in found + _fingerprints(run)]


def _fingerprints(run: RunRecord) -> list[tuple[str, str]]:
    tokenizer = at(run.checkpoint, "state", "data", "fingerprint", "tokenizer")
    found = [("Tokenizer", str(tokenizer))] if tokenizer else []
    for each in _stored_sources(run):
        if digest := at(each, "digest"):
            found.append((f"Data {at(each, 'name')}", f"digest {digest}, {at(each, 'tokens')} tokens"))
    return found


def _stored_sources(run: RunRecord) -> list[Any]:
    found = at(run.checkpoint, "state", "data", "fingerprint", "sources")
    return found if isinstance(found, list) else []


def settings_by_start(run: RunRecord) -> str:
    """How many files of settings the starts of a run have used, in words; "" for one."""
    files = dict.fromkeys(str(event["config"]) for event in starts(run.events) if "config" in event)
    return f"those of the newest start, {list(files)[-1]}" if len(files) > 1 else ""
