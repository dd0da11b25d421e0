"""`parallel.layout: auto`: the layout of a start, where the settings leave it open."""

from __future__ import annotations

from dataclasses import replace

from llmkit.config.derive import known_vocab_size
from llmkit.config.load import Loaded
from llmkit.config.memory import show_bytes
from llmkit.config.mistakes import listed
from llmkit.errors import UserError
from llmkit.estimate.hardware import Fleet
from llmkit.estimate.search import MICRO_BATCH, PATHS, Candidate, Found, Ground, search, with_settings
from llmkit.plan.overview import layout_text
from llmkit.plan.plan import Known

CHOSEN = "chosen by parallel.layout"
"""Origin of the values that are chosen."""
VOCABULARY = 131_072
"""Tokens that are counted with where the tokenizer is not known yet: about those of today's largest ones."""


def with_layout(loaded: Loaded, known: Known, fleet: Fleet, host_memory: float | None = None) -> Loaded:
    """The configuration with the best layout on a fleet in the place of settings that are not given.

    host_memory: bytes of a node's host. A pure function of what all ranks have alike, so that they agree. The
    micro-batch stays open where it is: it follows from the memory that is free. Raises UserError where no
    layout fits, or none is accepted.
    """
    if known_vocab_size(loaded.config, known.tokenizer_size) is None:
        known = replace(known, tokenizer_size=VOCABULARY)
    ground = Ground(fleet, known, host_memory=host_memory)
    found = layouts_of(loaded, ground)
    if not found.fitting:
        if found.nearest is None:
            raise UserError(found.refused[0])
        raise UserError(_nothing_fits(loaded, fleet, found.nearest))
    best, *others = found.families
    fixed = kept_settings(loaded)
    changed = {path: value for path, value in best.settings.items() if path not in fixed}
    chosen = with_settings(loaded, changed, CHOSEN)
    return replace(chosen, remarks=(*loaded.remarks, _reason(best, others, len(found.fitting), ground.timed)))


def layouts_of(loaded: Loaded, ground: Ground) -> Found:
    """The layouts that a configuration may have on a fleet, best first; a plan and a start ask it alike."""
    return search(loaded, ground, kept_settings(loaded))


def kept_settings(loaded: Loaded) -> list[str]:
    """Of `PATHS`, what a start leaves as it is: none of them where `parallel.layout` is given, as a search is
    then for other layouts; where it is auto, what is given, and always the micro-batch."""
    if loaded.config.parallel.layout == "given":
        return []
    return [path for path in PATHS if path == MICRO_BATCH or _is_given(loaded, path)]


def _nothing_fits(loaded: Loaded, fleet: Fleet, nearest: Candidate) -> str:
    """What the layout that lacks least memory needs, and what to do."""
    memory, device = nearest.memory, fleet.device
    host = ""
    if memory.host:
        host = f", and {show_bytes(memory.host_bytes)} of its host of {show_bytes(memory.host_available)}"
    text = (
        f"parallel.layout=auto ({loaded.origins['parallel.layout']}): no layout fits {fleet.size} x "
        f"{device.name}: the nearest one ({_described(nearest)}) needs {show_bytes(memory.device_bytes)} a "
        f"process of {show_bytes(memory.available)}{host}; take more processes, a smaller model, or a "
        "smaller micro-batch or data.sequence_length"
    )
    if device.architecture == "cpu":
        return text
    where = f"--device {device.name} --gpus-per-node {fleet.devices_per_node} --nodes {fleet.nodes}"
    return f"{text} (`llmkit plan {loaded.path} {where}` says more)"


def _is_given(loaded: Loaded, path: str) -> bool:
    """Whether a setting has a value that was asked for."""
    section, _, name = path.partition(".")
    given = loaded.origins.get(path, "default") != "default"
    return given and getattr(getattr(loaded.config, section), name) != "auto"


def _reason(best: Candidate, others: list[Candidate], count: int, timed: bool) -> str:
    """What was chosen, and what comes next."""
    text = f"parallel.layout=auto: {_described(best)}"
    if not timed:
        return f"{text}, the plainest of {count} layouts that fit by estimate"
    text += f", the fastest of {count} layouts that fit: a step of {best.time.seconds:.3g} s by estimate"
    if others:
        near = [f"{_described(each)} {each.time.seconds:.3g} s" for each in others[:2]]
        text += f"; next: {listed(near)}"
    return text


def _described(candidate: Candidate) -> str:
    layout = candidate.plan.layout
    again = layout.activation_checkpointing
    offload = ", offloaded" * (layout.offload != "none")
    return layout_text(layout) + offload + (f", {again} activation checkpointing" if again != "none" else "")
