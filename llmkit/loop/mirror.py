"""The mirror of a run to Weights & Biases, from its first step to the end of its record."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from llmkit.loop.launch import Launch
from llmkit.monitor.wandb_mirror import Mirror

if TYPE_CHECKING:
    from llmkit.loop.trainer import Trainer


def open_mirror(t: Trainer, launch: Launch, stack: ExitStack) -> Mirror:
    """The mirror, which follows rank 0's record: not before that is cut back.

    `stack` ends it, when the end of the run is on record too, with the exit code that it has then.
    """
    path = t.folder.path
    if t.mesh.rank > 0:
        return Mirror(path, "")
    settings, public = launch.config.monitor.wandb, launch.config.model_dump(mode="json")
    mirror = Mirror.start(
        path, settings, public, environment=launch.environment, origins=launch.loaded.origins
    )
    if mirror.message:
        t.console.note(mirror.message)
    stack.callback(_end, mirror, t)
    return mirror


def _end(mirror: Mirror, t: Trainer) -> None:
    if problem := mirror.finish():
        t.console.note(problem)
