"""Going on from a checkpoint: which one, whether it fits, and where it leaves the run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from llmkit.checkpoint.read import Checkpoint, folders, newest
from llmkit.checkpoint.read import load as load_checkpoint
from llmkit.config.resume import compare
from llmkit.config.schema import Config
from llmkit.config.shape import ModelShape
from llmkit.data.tokens.tokenizer import Tokenizer
from llmkit.errors import UserError
from llmkit.loop.progress import Progress
from llmkit.parallel.agreement import first_only, together
from llmkit.parallel.mesh import Mesh
from llmkit.run_folder import RunFolder


@dataclass(frozen=True)
class Options:
    """How the command was called. fresh: refuse a run folder that has checkpoints. allow_data_change: go
    on with other data, or other weights of the sources, than the checkpoint was made with."""

    fresh: bool = False
    allow_data_change: bool = False


def shared_checkpoint(
    config: Config, mesh: Mesh, folder: RunFolder, options: Options, note: Callable[[str], None]
) -> tuple[Checkpoint | None, bool]:
    """The checkpoint that rank 0 has chosen, opened by this rank; whether the run was finished."""

    def choose() -> str:
        found = find_checkpoint(config, folder, options, note)
        return json.dumps([found.path.name if found else "", folder.is_done])

    name, was_done = json.loads(first_only(mesh, choose))
    with together(mesh):
        return load_checkpoint(folder.checkpoints / name) if name else None, was_done


def find_checkpoint(
    config: Config, folder: RunFolder, options: Options, note: Callable[[str], None]
) -> Checkpoint | None:
    """The checkpoint to go on from, or None for a new run.

    Raises UserError where the folder holds another run, or one that would have to start over.
    """
    checkpoint = newest(folder.checkpoints, note)
    if checkpoint is not None:
        _check_same_run(checkpoint, config, options, folder, note)
    elif damaged := folders(folder.checkpoints):
        raise UserError(
            f"none of the {len(damaged)} checkpoints in {folder.checkpoints} is usable; "
            "bring a good one back, or choose another run.name to start anew"
        )
    elif folder.is_done:
        raise UserError(
            f"{folder.path} is the record of a finished run whose checkpoints are gone; "
            "choose another run.name to start anew, or move the folder away"
        )
    return checkpoint


def check_same_model(
    checkpoint: Checkpoint, shape: ModelShape, tokenizer: Tokenizer, options: Options
) -> None:
    """Raises UserError where the checkpoint holds another model, or one of another tokenizer."""
    old, new = dict(checkpoint.model), shape.to_dict()
    if old.get("position_embedding") == new["position_embedding"] == "rope":
        # No weight depends on it: a run may go on with longer rows.
        old["max_position_embeddings"] = new["max_position_embeddings"]
    changed = [
        f"{key} {old.get(key)} -> {new.get(key)}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]
    if changed:
        raise UserError(f"{checkpoint.path} holds another model: {', '.join(changed)}")
    stored = checkpoint.state["data"]["fingerprint"].get("tokenizer")
    if stored != tokenizer.hash and not options.allow_data_change:
        raise UserError(
            f"{checkpoint.path} was trained with another tokenizer (hash {stored}, now {tokenizer.hash}): "
            "its token ids mean other text"
        )


def resumed_progress(checkpoint: Checkpoint, config: Config) -> Progress:
    """The counters of the checkpoint under today's settings: more steps let a finished run go on."""
    progress = Progress.from_json(checkpoint.state["progress"])
    if config.train.max_steps is not None:
        progress.max_steps = config.train.max_steps
    patience = config.evaluate.early_stopping
    progress.stopped_early = patience is not None and progress.evaluations_without_gain >= patience
    return progress


def _check_same_run(
    checkpoint: Checkpoint, config: Config, options: Options, folder: RunFolder, note: Callable[[str], None]
) -> None:
    if options.fresh:
        raise UserError(
            f"--fresh: {folder.path} holds checkpoints up to step {checkpoint.step}; "
            "choose another run.name, or delete the folder yourself"
        )
    differences = compare(checkpoint.config, config.model_dump(mode="json"))
    differences.raise_if_fixed(folder.path, options.allow_data_change)
    for line in differences.warned + differences.data:
        note(f"changed since the checkpoint: {line}")
