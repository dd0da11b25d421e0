"""`llmkit import`: a checkpoint of a model in Hugging Face's format, or of a mixture made of a dense one."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from llmkit.checkpoint import format as fmt
from llmkit.checkpoint import index_file
from llmkit.checkpoint.aside import built_aside, refuse_existing, require_room
from llmkit.checkpoint.commit import finish
from llmkit.checkpoint.pieces import Piece
from llmkit.checkpoint.stage import Snapshot
from llmkit.checkpoint.writer import Writer
from llmkit.command_line import print_json, printer, show
from llmkit.convert.upcycling import Upcycled
from llmkit.errors import UserError
from llmkit.hf.folder import HFFolder
from llmkit.hf.tokenizer_files import note_on_template
from llmkit.parallel.slices import box_size, full_box
from llmkit.weights import Weights, model_of, open_weights


def import_command(
    source: Path, out: Path, experts: int | None = None, per_token: int = 2, *, as_json: bool = False
) -> int:
    """`llmkit import`: writes a checkpoint of the weights alone, in the types in which they are stored.

    It can be used wherever a checkpoint can: for a run to start from, to generate, to evaluate, to export.
    experts: of the mixture that is made of the weights (`Upcycled`), which may be those of a run, too; None:
    they stay as they are. per_token: how many of them a token meets. as_json: an object tells what was
    written.
    Raises UserError for a model that llmkit does not compute, or a folder that is not complete.
    """
    refuse_existing(out)
    if fmt.FOLDER.fullmatch(out.name):
        raise UserError(
            f"{out}: that is the name of a checkpoint of a run; choose another name for the import"
        )
    opened = open_weights(source)
    if experts is None and not isinstance(opened, HFFolder):
        raise UserError(
            f"{source}: is a checkpoint of llmkit already; it can be used as it is (--upcycle makes a "
            "mixture of experts of it)"
        )
    weights: Weights = opened if experts is None else Upcycled(opened, experts, per_token)
    tokenizer, shape = weights.tokenizer(), model_of(weights)
    if (note := note_on_template(tokenizer)) is not None:
        printer(as_json)(note)
    nbytes = sum(_bytes_of(weights, name) for name in weights.names())
    require_room(out, nbytes)
    kind = opened.architecture.class_name if isinstance(opened, HFFolder) else "a model of llmkit"
    with built_aside(out) as aside:
        writer = Writer(out)
        assert writer.folder == aside
        writer.write_pieces(_pieces(weights))
        state = {"imported": {"class": kind, "folder": source.resolve().name}}
        snapshot = Snapshot(0, (), state, dict(weights.model), {}, tokenizer.files())
        finish(writer, [index_file.encode(writer.index())], snapshot)
    if as_json:
        print_json({
            "path": str(out), "source": str(source), "class": kind, "experts": experts,
            "parameters": shape.num_parameters, "tensors": len(weights.names()), "bytes": nbytes,
        })  # fmt: skip
        return 0
    made = "" if experts is None else f", upcycled to {experts} experts, {per_token} for a token"
    show(f"imported   {source}: {kind}{made}, {shape.num_parameters:,} weights")
    show(f"to         {out}: {len(weights.names())} tensors, {nbytes / 1e9:.3f} GB")
    # To be copied, so not wrapped.
    print(f"try        llmkit generate {shlex.quote(str(out))} --prompt 'Once upon a time'")
    print(f"           llmkit train CONFIG {shlex.quote(f'train.init_from={out}')}", flush=True)
    return 0


def _bytes_of(weights: Weights, name: str) -> int:
    """Bytes of a tensor as it is stored."""
    box = full_box(weights.shape(name))
    return box_size(box) * weights.read(name, tuple((0, 1) for _ in box)).element_size()


def _pieces(weights: Weights) -> Iterator[Piece]:
    for name in weights.names():
        shape = weights.shape(name)
        box = full_box(shape)
        data = weights.read(name, box).flatten()
        if not data.isfinite().all():
            raise UserError(
                f"{weights.path}: {name} holds values that are no finite numbers, so the model computes "
                "nothing; download the folder again, or take weights of before the training broke down"
            )
        yield Piece(name, "master", shape, box, (0, len(data)), data)
