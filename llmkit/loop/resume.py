"""Going on from a checkpoint: which one, whether it fits, and where it leaves the run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from llmkit.checkpoint.adapters import CheckpointAdapters, has_adapters
from llmkit.checkpoint.commit import tidy
from llmkit.checkpoint.format import FOLDER, folder_name
from llmkit.checkpoint.read import Checkpoint, folders, newest
from llmkit.config.adapters import trained_tensors
from llmkit.config.custom_model import AnyModel, CustomModel, stored_model
from llmkit.config.derive import resolved_model
from llmkit.config.load import Loaded
from llmkit.config.mistakes import listed
from llmkit.config.resume import Differences, compare
from llmkit.config.resume_rules import RESUME_POLICIES
from llmkit.config.schema import Config
from llmkit.config.stored import read_stored
from llmkit.data.state import Fingerprint, read_data_state
from llmkit.errors import RunFault, UserError
from llmkit.loop.branch import begun_as_branch, check_same_origin, open_origin
from llmkit.loop.failed_starts import check_progress
from llmkit.loop.options import Options
from llmkit.loop.state import TrainState
from llmkit.model.build import build_model
from llmkit.model.initial import InitialWeights
from llmkit.monitor.events import EventLog
from llmkit.monitor.jsonlines import JsonLines, Row
from llmkit.parallel.agreement import on_rank_zero
from llmkit.parallel.mesh import Mesh
from llmkit.run_folder import RunFolder


@dataclass(frozen=True)
class ResumePoint:
    """Where a run goes on. checkpoint: None for a new run. was_done: the run was finished. passed_over: why
    newer checkpoints are not used, a line each. begins_branch: the run is new, and the checkpoint one of
    another run."""

    checkpoint: Checkpoint | None
    was_done: bool
    passed_over: list[str]
    begins_branch: bool = False


def find_resume_point(
    loaded: Loaded, mesh: Mesh, folder: RunFolder, options: Options, note: Callable[[str], None],
    *, bounded: bool = False,
) -> ResumePoint:  # fmt: skip
    """Where the run stands, with the checkpoint to go on from; all ranks call it, and verify a share each.

    bounded: whether somebody else bounds the starts that fail, as `slurm/train.sbatch` does.
    Raises UserError on all of them where the folder holds another run, or one that would have to start over.
    """
    passed_over: list[str] = []
    on_rank_zero(mesh, lambda: _tidy(folder))
    checkpoint = newest(folder.checkpoints, passed_over.append, mesh)

    def check() -> str:
        """On rank 0, refuses another run than that of the folder; what a `ResumePoint` says, as JSON."""
        for line in passed_over:
            note(line)
        if not bounded:
            check_progress(EventLog(folder.path / "events.jsonl").rows())
        if checkpoint is None:
            _check_new_run(folder, options)
        else:
            check_same_origin(checkpoint, options, folder)
            _check_same_run(checkpoint, loaded, options, folder, note)
            passed_over.extend(_vanished(checkpoint, folder, note))
        return json.dumps([folder.is_done, passed_over])

    was_done, passed_over = json.loads(on_rank_zero(mesh, check))
    if checkpoint is not None or options.branch is None:
        return ResumePoint(checkpoint, was_done, passed_over)
    origin = open_origin(options, folder, mesh, note)
    on_rank_zero(mesh, lambda: _check_settings_of_branch(origin, loaded, options, note))
    return ResumePoint(origin, False, [], begins_branch=True)


def _tidy(folder: RunFolder) -> str:
    """Removes what earlier starts were writing: it can then not become a checkpoint any more."""
    try:
        tidy(folder.checkpoints)
    except OSError as error:
        raise RunFault(f"{folder.checkpoints} holds what an interrupted save left: {error}") from error
    return ""


def _vanished(checkpoint: Checkpoint, folder: RunFolder, note: Callable[[str], None]) -> list[str]:
    """A line on a newer checkpoint that the events tell of and that is not there; it is noted, too."""
    saved = _last_saved(EventLog(folder.path / "events.jsonl").rows())
    if saved is None or saved <= folder_name(checkpoint.step) or os.path.lexists(folder.checkpoints / saved):
        return []
    line = f"{saved} was saved, but is not in {folder.checkpoints} any more"
    note(line)
    return [line]


def _check_new_run(folder: RunFolder, options: Options) -> None:
    """Raises UserError if the folder without a usable checkpoint is that of a run which has had one."""
    if damaged := folders(folder.checkpoints):
        raise UserError(
            f"none of the {len(damaged)} checkpoints in {folder.checkpoints} is usable; "
            "bring a good one back, or choose another run.name to start anew"
        )
    events = EventLog(folder.path / "events.jsonl").rows()
    saved = _last_saved(events)
    if folder.is_done or saved is not None or (not events and _has_rows(folder)):
        link = f" (a link to {os.readlink(folder.checkpoints)})" if folder.checkpoints.is_symlink() else ""
        raise UserError(
            f"{folder.path} is the record of a run whose checkpoints are gone: "
            f"{folder.checkpoints}{link} holds none{f', and {saved} was saved' if saved else ''}. Bring them "
            "back (is their disk mounted?), or choose another run.name, or move the folder away to start anew"
        )
    if options.branch is None and (origin := begun_as_branch(events)) is not None:
        raise UserError(
            f"{folder.path} was begun as a branch of {origin}, and was ended before it had a checkpoint of "
            f"its own: start it as before, with --from {origin}, or choose another run.name"
        )


def _has_rows(folder: RunFolder) -> bool:
    """Whether there is a record of training, of which it may not be known whether it was saved."""
    return bool(JsonLines(folder.path / "metrics.jsonl").rows())


def _last_saved(events: list[Row]) -> str | None:
    """The folder's name of the last checkpoint that the events tell of; None if they tell of none."""
    saved: Any = None
    for row in events:
        if row.get("event") == "save":
            saved = row.get("path")
        elif row.get("event") == "rollback" and isinstance(row.get("to_step"), int):
            saved = folder_name(row["to_step"])  # those after it were deleted
    return saved if isinstance(saved, str) and FOLDER.fullmatch(saved) else None


def changed_settings(checkpoint: Checkpoint, loaded: Loaded) -> Differences:
    """The settings that are others than the checkpoint's.

    Where a setting of the model is written otherwise but comes to the same, such as the number of heads
    instead of "as many as query heads", nothing has changed.
    """
    config = loaded.config
    found = compare(checkpoint.config, config.model_dump(mode="json"), loaded.origins, type(config))
    old = stored_model(checkpoint.model, checkpoint.origin)
    new = resolved_model(config, old.vocab_size)
    if type(old) is not type(new):
        return found
    same = {f"model.{name}" for name, value in old.to_dict().items() if getattr(new, name) == value}
    return Differences([difference for difference in found.all if difference.path not in same])


def check_same_model(checkpoint: Checkpoint, shape: AnyModel) -> None:
    """Raises UserError where the checkpoint holds the weights of another model."""
    old = stored_model(checkpoint.model, checkpoint.origin)
    if isinstance(old, CustomModel) or isinstance(shape, CustomModel):
        _check_same_tensors(checkpoint, shape)
        return
    rules = {name: RESUME_POLICIES.get(f"model.{name}") for name in old.to_dict()}
    decisive = [name for name, rule in rules.items() if rule is not None and rule.kind == "fixed"]
    if old.position_embedding == "learned":
        decisive.append("max_position_embeddings")
    changed = [
        f"{name} {getattr(old, name)} -> {getattr(shape, name)}"
        for name in decisive
        if getattr(old, name) != getattr(shape, name)
    ]
    if changed:
        raise UserError(
            f"{checkpoint.path} holds another model: {', '.join(changed)}; put the settings back, or start a "
            "new run under another run.name"
        )


def _check_same_tensors(checkpoint: Checkpoint, shape: AnyModel) -> None:
    """The same by the names and shapes of the tensors, which are all that is known of a registered model."""
    if has_adapters(checkpoint):
        adapters = trained_tensors(shape.tensors, CheckpointAdapters(checkpoint).settings)
        new = {each.name: each.shape for each in adapters}
    else:
        with torch.device("meta"):
            new = InitialWeights(build_model(shape), 0).shapes
    old = {name: checkpoint.shape(name, "master") for name in checkpoint.names("master")}
    changed = [
        f"{name} {old.get(name, 'absent')} -> {new.get(name, 'absent')}"
        for name in dict.fromkeys([*old, *new])
        if old.get(name) != new.get(name)
    ]
    if changed:
        raise UserError(
            f"{checkpoint.path} holds another model: {listed(changed, 5)}; put the settings (or the code) "
            "back, or start a new run under another run.name"
        )


def settings_of(checkpoint: Checkpoint) -> Config:
    """The settings of a checkpoint, as this version understands them; see `read_stored`."""
    return read_stored(checkpoint.config, checkpoint.origin, lambda line: None)


def resumed_state(
    checkpoint: Checkpoint, config: Config, fingerprint: Fingerprint, note: Callable[[str], None]
) -> TrainState:
    """The counters of the checkpoint under today's settings: more steps let a finished run go on, fewer than
    it has made end it where it stands.

    fingerprint: of the data of now. Where other text is held out, or in other rows, the losses from before
    are not compared with those to come.
    """
    state = TrainState.from_json(checkpoint.state["progress"], checkpoint.origin)
    if config.train.max_steps is not None:
        wanted = max(config.train.max_steps, state.step)
        if wanted != state.max_steps:  # else the run goes on through its schedule as it did
            state.max_steps, state.pace = wanted, None
    before = read_data_state(checkpoint.state["data"]).fingerprint
    if state.best_eval_loss is not None and _held_out(before) != _held_out(fingerprint):
        note("other text is held out than before: early stopping begins to compare anew")
        state.best_eval_loss, state.best_eval_step, state.evaluations_without_gain = None, None, 0
        state.evaluated_step = state.eval_loss = None
    state.apply_patience(config.evaluate.early_stopping)
    return state


def _held_out(fingerprint: Fingerprint) -> list[Any]:
    """What decides a held-out loss, beside the model."""
    sources = {source.name: source.heldout for source in fingerprint.sources if source.heldout}
    return [sources, fingerprint.sequence_length, fingerprint.document_masks]


def _check_same_run(
    checkpoint: Checkpoint, loaded: Loaded, options: Options, folder: RunFolder, note: Callable[[str], None]
) -> None:
    if options.fresh:
        raise UserError(
            f"--fresh: {folder.path} holds checkpoints up to step {checkpoint.step}; "
            "choose another run.name, or delete the folder yourself"
        )
    differences = changed_settings(checkpoint, loaded)
    differences.raise_if_fixed(folder.path, options.allow_data_change)
    _note_changes(differences, note)


def _check_settings_of_branch(
    origin: Checkpoint, loaded: Loaded, options: Options, note: Callable[[str], None]
) -> str:
    """The same for a branch; where it begins the data anew it may have others, in another order."""
    anew = options.begins_data_anew
    differences = changed_settings(origin, loaded)
    decisive = [each for each in differences.all if not (anew and each.path == "run.seed")]
    remedy = "Put the old values back, or start from the weights alone (train.init_from)"
    if not anew:
        remedy += "; with --data-position new, settings of the data and run.seed may change"
    Differences(decisive).raise_if_fixed(origin.path, anew or options.allow_data_change, remedy)
    _note_changes(differences, note)
    return ""


def _note_changes(differences: Differences, note: Callable[[str], None]) -> None:
    """Says what has changed: a line for each setting that decides what is computed, one for all others."""
    for difference in differences.of("warned", "data"):
        note(f"changed since the checkpoint: {difference}: {difference.rule.reason}")
    free = [str(each) for each in differences.of("free") if not each.path.startswith("run.")]
    if free:
        note(f"changed since the checkpoint, and free to change: {listed(free, 10)}")
