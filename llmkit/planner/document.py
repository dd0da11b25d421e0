"""A plan as JSON, for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from llmkit.estimate.search import Candidate
from llmkit.estimate.term import Term
from llmkit.planner.launch import launch_lines, overrides_of
from llmkit.planner.study import Study

VERSION = 1
"""Of the form below; keys may be added without a new one."""


def document(study: Study, best: int) -> dict[str, Any]:
    """The plan as values that JSON can hold. best: layouts in it."""
    fleet, plan, config = study.fleet, study.best.plan, study.subject.loaded.config
    return {
        "version": VERSION,
        "config": study.path,
        "overrides": list(study.overrides),
        "assumed": dict(study.subject.assumed),
        "parameters": plan.model.num_parameters,
        "tokens_per_step": plan.tokens_per_step,
        "precision": plan.precision.name,
        "fleet": {
            "device": asdict(fleet.device), "devices_per_node": fleet.devices_per_node, "nodes": fleet.nodes,
            "inside": asdict(fleet.inside), "between": asdict(fleet.between),
        },
        "asked": None if study.asked is None else candidate_json(study.asked),
        "refusal": study.refusal or None,
        "layouts": [
            {**candidate_json(each), "overrides": overrides_of(each, config)}
            for each in study.found.families[:best]
        ],
        "run": study.outlook.to_json(),
        "laws": [row.to_json() for row in study.laws],
        "launch": launch_lines(study.path, study.best_overrides, fleet, study.subject.assumed),
    }  # fmt: skip


def candidate_json(candidate: Candidate) -> dict[str, Any]:
    """A layout with its memory, and its time where it fits."""
    memory = candidate.memory
    found = {
        "settings": candidate.settings,
        "fits": memory.fits,
        "memory": {
            "device_bytes": memory.device_bytes, "host_bytes": memory.host_bytes,
            "available": memory.available, "largest_micro_batch": memory.largest_micro_batch,
            "device": _terms(memory.device), "host": _terms(memory.host),
        },
    }  # fmt: skip
    if not memory.fits:
        return found
    time = candidate.time
    return found | {
        "step": {
            "seconds": time.seconds, "low": time.low, "high": time.high,
            "tokens_per_second": time.tokens_per_second, "mfu": time.mfu, "mfu_causal": time.mfu_causal,
            "hfu": time.hfu, "parts": _terms(time.parts), "hidden": _terms(time.hidden),
        }
    }  # fmt: skip


def _terms(terms: Sequence[Term]) -> list[dict[str, Any]]:
    return [asdict(term) for term in terms]
