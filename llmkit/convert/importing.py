"""`llmkit import`: a checkpoint made of a model in Hugging Face's format."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from llmkit.checkpoint import format as fmt
from llmkit.checkpoint import index_file
from llmkit.checkpoint.aside import built_aside, refuse_existing, require_room
from llmkit.checkpoint.commit import finish
from llmkit.checkpoint.pieces import Piece
from llmkit.checkpoint.stage import Snapshot
from llmkit.checkpoint.writer import Writer
from llmkit.errors import UserError
from llmkit.hf.folder import HFFolder
from llmkit.hf.tokenizer_files import note_on_template
from llmkit.parallel.slices import full_box
from llmkit.weights import open_weights


def import_command(source: Path, out: Path) -> int:
    """`llmkit import`: writes a checkpoint of the weights alone, in the types in which they are stored.

    It can be used wherever a checkpoint can: for a run to start from, to generate, to evaluate, to export.
    Raises UserError for a model that llmkit does not compute, or a folder that is not complete.
    """
    refuse_existing(out)
    if fmt.FOLDER.fullmatch(out.name):
        raise UserError(
            f"{out}: that is the name of a checkpoint of a run; choose another name for the import"
        )
    weights = open_weights(source)
    if not isinstance(weights, HFFolder):
        raise UserError(f"{source}: is a checkpoint of llmkit already; it can be used as it is")
    folder, tokenizer = weights, weights.tokenizer()
    if (note := note_on_template(tokenizer)) is not None:
        print(note)
    shape = folder.model_shape
    require_room(out, folder.nbytes)
    with built_aside(out) as aside:
        writer = Writer(out)
        assert writer.folder == aside
        writer.write_pieces(_pieces(folder))
        state = {"imported": {"class": folder.architecture.class_name, "folder": source.resolve().name}}
        snapshot = Snapshot(0, (), state, dict(folder.model), {}, tokenizer.files())
        finish(writer, [index_file.encode(writer.index())], snapshot)
    print(f"imported   {source}: {folder.architecture.class_name}, {shape.num_parameters:,} weights")
    print(f"to         {out}: {len(folder.names())} tensors, {folder.nbytes / 1e9:.3f} GB")
    print(f"try        llmkit generate {out} --prompt 'Once upon a time'")
    print(f"           llmkit train CONFIG train.init_from={out}")
    return 0


def _pieces(folder: HFFolder) -> Iterator[Piece]:
    for name in folder.names():
        shape = folder.shape(name)
        box = full_box(shape)
        data = folder.read(name, box).flatten()
        if not data.isfinite().all():
            raise UserError(
                f"{folder.path}: {name} holds values that are no finite numbers, so the model computes "
                "nothing; download the folder again, or take weights of before the training broke down"
            )
        yield Piece(name, "master", shape, box, (0, len(data)), data)
