"""Which weights lie at a path."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from llmkit.checkpoint import format as fmt
from llmkit.checkpoint.adapters import has_adapters
from llmkit.checkpoint.named import named, split_name
from llmkit.checkpoint.pieces import EMA
from llmkit.checkpoint.read import Checkpoint, folders, load
from llmkit.checkpoint.read import open as open_checkpoint
from llmkit.config.file_text import similar
from llmkit.config.initial_model import Asked, StoredModel
from llmkit.errors import UserError
from llmkit.files import may_exist
from llmkit.hf.folder import HFFolder, is_hf_folder
from llmkit.hf.peft_adapters import PeftAdapters, base_of, is_peft_folder
from llmkit.parallel.agreement import fail_together, on_rank_zero
from llmkit.parallel.mesh import Mesh
from llmkit.weights.adapted import AdaptedCheckpoint, AdaptedFolder
from llmkit.weights.base import Weights, model_of
from llmkit.weights.checkpoint import CheckpointWeights

Result = TypeVar("Result")
ALONE = Mesh()
"""Of a process that opens weights by itself."""


def weights_of(checkpoint: Checkpoint, mesh: Mesh = ALONE, ema: bool = False) -> Weights:
    """The weights of a checkpoint; of one that holds adapters, those of its base with what they add.

    ema: of the weights that were trained, their moving average. Collective over the ranks of `mesh`. Raises
    UserError where that is not there, or the base is not, or it holds other weights than the adapters were
    trained with.
    """
    if ema and EMA not in checkpoint.kinds():
        raise _no_average(checkpoint.path)
    if has_adapters(checkpoint):
        return AdaptedCheckpoint(checkpoint, open_base(checkpoint, mesh), ema=ema)
    return CheckpointWeights(checkpoint, ema=ema)


def _no_average(path: Path) -> UserError:
    return UserError(
        f"{path} holds no moving average of the weights; leave out --ema, or go on with the run with "
        "train.ema.decay, which keeps one from then on"
    )


def open_base(checkpoint: Checkpoint, mesh: Mesh = ALONE) -> Weights:
    """The weights that the adapters in a checkpoint are for (see `base_path`).

    Collective over the ranks of `mesh`: one of them reads all bytes to compare. Raises UserError where they
    are not there, or have changed.
    """
    base = open_weights(_on_all(mesh, lambda: base_path(checkpoint)), mesh)
    if on_rank_zero(mesh, base.digest) != checkpoint.state["init_from"]["digest"]:
        raise UserError(
            f"{checkpoint.path} holds adapters of other weights than those in {base.path}, which have "
            "changed since; bring the old ones back"
        )
    return base


def base_path(checkpoint: Checkpoint) -> Path:
    """Where the weights lie that the adapters in a checkpoint are for: where they were read; or where that
    folder is not any more, where the settings of the run say, also below where the run lies now.

    Raises UserError where they are in none of these.
    """
    read, asked = Path(checkpoint.state["init_from"]["path"]), checkpoint.config["train"]["init_from"]
    place = split_name(asked)[0]
    places = [read]
    for root in (Path(), *_moved_to(checkpoint)):
        places += [root / place / "checkpoints" / read.name, root / place]
    path = next(filter(may_exist, places), None)
    if path is None:
        raise UserError(
            f"{checkpoint.path} holds adapters alone, and the weights that they are for are not at "
            f"{read} any more; bring them back"
        )
    return path


def _moved_to(checkpoint: Checkpoint) -> Iterator[Path]:
    """The folder in which a run was started, as seen from where its checkpoint lies now."""
    run = Path(checkpoint.config["run"]["dir"], checkpoint.config["run"]["name"])
    folder = checkpoint.path.absolute().parent.parent
    if not run.is_absolute() and folder.parts[-len(run.parts) :] == run.parts:
        yield folder.parents[len(run.parts) - 1]


def open_weights(path: Path, mesh: Mesh = ALONE, *, ema: bool = False) -> Weights:
    """The weights at a path: a run folder (of its newest good checkpoint), RUN@best and the like, a folder of
    checkpoints, a checkpoint, an import, a folder in Hugging Face's format, or an adapter of PEFT.

    ema: of a checkpoint the moving average of the weights (`train.ema`). Collective over the ranks of `mesh`.
    Raises UserError where there are none, and Damaged for a damaged checkpoint, on all ranks.
    """
    found = _on_all(mesh, lambda: _open(path))
    if isinstance(found, Checkpoint):
        return weights_of(found, mesh, ema)
    if ema:
        raise _no_average(path)
    return found


def _on_all(mesh: Mesh, work: Callable[[], Result]) -> Result:
    """What `work` gives on this rank; where it fails on any of them, it does on all."""
    with fail_together(mesh):
        result = work()
    return result


def _open(path: Path) -> Weights | Checkpoint:
    """What is at a path; adapters in a checkpoint are not merged yet."""
    path = named(path)
    if not may_exist(path):
        remedy = similar(path) or f"; name a run folder, a checkpoint or an import{_not_downloaded(path)}"
        raise UserError(f"{path}: no such folder{remedy}")
    if is_peft_folder(path):
        base = open_weights(base_of(path))
        if not isinstance(base, HFFolder):
            raise UserError(f"{path}: its base {base.path} is not in Hugging Face's format")
        return AdaptedFolder(path, base, PeftAdapters(path, base.model_shape, base.architecture))
    return HFFolder(path) if is_hf_folder(path) else open_checkpoint(path)


def look_at(path: Path) -> Weights:
    """The weights at a path as by `open_weights`, of a run its newest checkpoint that can be opened: its
    tensors are not verified yet, nor adapters merged. For what needs no more than their description."""
    path = named(path)
    below = path / "checkpoints"  # a run folder has a manifest.json of its own
    if path.is_dir() and (below.is_dir() or not (path / fmt.MANIFEST).exists()):
        for folder in reversed(folders(below if below.is_dir() else path)):
            with suppress(fmt.Damaged):
                return CheckpointWeights(load(folder))
    return open_weights(path)


def read_model(asked: Asked) -> StoredModel:
    """The model that a configuration starts from: for `llmkit.config.load`.

    A run that has checkpoints goes on from them, and the folder that it began with need not be there.
    Raises UserError where there are no weights, or they are those of the run itself.
    """
    start, run = (Path(os.path.abspath(path)) for path in (split_name(str(asked.init_from))[0], asked.run))
    if start == run or run in start.parents:
        raise UserError(f"{asked.init_from} is the run's own folder; give the new run another run.name")
    resumed = bool(folders(asked.run / "checkpoints"))
    weights = look_at(asked.run if resumed else asked.init_from)
    return StoredModel(model_of(weights), list(weights.config.get("plugins", [])), str(weights.path), resumed)


def _not_downloaded(path: Path) -> str:
    """A hint where the path looks like a URL, or like the name of a model of the hub."""
    is_name = len(path.parts) == 2 and not may_exist(path.parent)
    if not is_name and ":/" not in str(path):
        return ""
    return ". Nothing is downloaded: fetch a model of the hub with `hf download NAME --local-dir FOLDER`"
