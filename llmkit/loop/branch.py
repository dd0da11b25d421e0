"""A branch: a new run that begins with a checkpoint of another one (`llmkit train CONFIG --from RUN@1000`).

It goes on with the weights, the optimizer's state and the counters of that checkpoint, in a run folder of its
own, and saves them there before its first step: from then on it is a run like any other, and `--from` is
only compared with what it began with.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmkit.checkpoint import format as fmt
from llmkit.checkpoint.named import named, split_name
from llmkit.checkpoint.read import Checkpoint, Damaged, load_verified, newest
from llmkit.checkpoints.found import run_of
from llmkit.config.load import Loaded
from llmkit.config.mistakes import printable
from llmkit.errors import UserError
from llmkit.loop.options import Options
from llmkit.loop.state import TrainState
from llmkit.parallel.agreement import on_rank_zero
from llmkit.parallel.mesh import Mesh
from llmkit.run_folder import RunFolder
from llmkit.weights import CheckpointWeights


def open_origin(options: Options, folder: RunFolder, mesh: Mesh, note: Callable[[str], None]) -> Checkpoint:
    """The checkpoint that a branch begins with, every byte of it verified, a share by each rank. Collective.

    folder: of the branch. Raises UserError on all ranks where there is none, it is of the branch itself, it
    is damaged, or has no state of an optimizer.
    """
    name = options.branch or ""

    def find() -> str:
        _require_other_run(name, folder)
        return str(named(Path(name)))

    place = Path(on_rank_zero(mesh, find))
    if os.path.lexists(place / fmt.MANIFEST) and not (place / "checkpoints").is_dir():
        checkpoint = _verified(place, mesh)
    else:
        below = place / "checkpoints"
        root = below if below.is_dir() else place
        found = newest(root, note, mesh)
        if found is None:
            raise UserError(f"--from {name}: there is no good checkpoint in {root}; name a run that has one")
        checkpoint = found
    state = checkpoint.state
    if "average" in state or not {"progress", "data", "updates"} <= state.keys():
        raise UserError(
            f"--from {name}: {checkpoint.path} holds weights alone, and a branch needs the optimizer's "
            f"state; name a checkpoint of a run, or start from the weights: train.init_from={place}"
        )
    return checkpoint


def _verified(place: Path, mesh: Mesh) -> Checkpoint:
    try:
        return load_verified(place, mesh)
    except Damaged as error:
        raise UserError(f"--from: the checkpoint is damaged: {error}; name another one") from error


def _require_other_run(name: str, folder: RunFolder) -> None:
    place = Path(os.path.realpath(split_name(name)[0]))
    if (run := Path(os.path.realpath(folder.path))) in (place, *place.parents):
        raise UserError(
            f"--from {name}: that is the run's own folder, {run}; give the branch another name (run.name=...)"
        )


def origin_record(checkpoint: Checkpoint, options: Options) -> dict[str, Any]:
    """What a branch keeps of where it began: the checkpoint, the folder of its run, and the data's position.

    In its checkpoints, its first event and manifest.json, as `branched_from`.
    """
    path = Path(os.path.abspath(checkpoint.path))
    run = run_of(path.parent)
    return {
        "run": None if run is None else str(run),
        "path": str(path),
        "step": checkpoint.step,
        "digest": CheckpointWeights(checkpoint).digest(),
        "data_position": options.data_position or "keep",
    }


def check_same_origin(checkpoint: Checkpoint, options: Options, folder: RunFolder) -> None:
    """Raises UserError where a run that goes on is not the branch that `--from` asks for.

    checkpoint: its own. The other run need not be there any more.
    """
    if options.branch is None:
        return
    began, name = checkpoint.state.get("branched_from"), options.branch
    _require_other_run(name, folder)
    if began is None:
        raise UserError(
            f"--from {name}: the run in {folder.path} has checkpoints and did not begin as a branch; give "
            "the branch another name (run.name=...), or leave --from out to go on with that run"
        )
    asked, which = split_name(name)
    path = Path(os.path.realpath(began["path"]))
    same = Path(os.path.realpath(asked)) in (path, path.parent, path.parent.parent)
    if which not in ("", "best"):
        same = same and int(which.removeprefix("step-")) == began["step"]
    if not same or options.data_position not in (None, began["data_position"]):
        raise UserError(
            f"--from {name}: the run in {folder.path} is another branch: it began with {began['path']} and "
            f"--data-position {began['data_position']}; give the new branch another name (run.name=...), or "
            "leave --from and --data-position out to go on with that one"
        )


def begun_as_branch(events: list[dict[str, Any]]) -> str | None:
    """Where the run of these events began, if it is a branch: the path of a checkpoint."""
    for event in events:
        began = event.get("branched_from")
        if event.get("event") == "start" and isinstance(began, dict):
            return printable(str(began.get("path")), 500)
    return None


def begin_branch(state: TrainState, loaded: Loaded) -> None:
    """Makes the counters of the other run those of a branch, which compares its evaluations with its own.

    Raises UserError where there is no step left to do.
    """
    state.evaluated_step = state.eval_loss = state.best_eval_loss = state.best_eval_step = None
    state.evaluations_without_gain, state.stopped_early = 0, False
    if state.finished():
        raise UserError(
            f"--from: the checkpoint has made {state.step} steps, and the branch ends after as many "
            f"({loaded.settings.describe('train.max_steps')}); set train.max_steps to more than {state.step}"
        )
