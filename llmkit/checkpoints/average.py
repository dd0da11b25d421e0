"""`llmkit checkpoint average`: the mean of several weights, as weights of their own.

Averages of the newest checkpoints of a run: Vaswani et al. 2017, section 6.1; of several runs from the same
start: Wortsman et al. 2022, "Model soups".
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch

from llmkit.checkpoint import format as fmt
from llmkit.checkpoint import index_file
from llmkit.checkpoint.aside import built_aside, refuse_existing, require_room
from llmkit.checkpoint.commit import finish
from llmkit.checkpoint.pieces import Piece
from llmkit.checkpoint.stage import Snapshot
from llmkit.checkpoint.writer import Writer
from llmkit.checkpoints.members import Choice, Member, check_alike, choose, shared_out
from llmkit.checkpoints.slabs import slabs
from llmkit.command_line import print_json, printer, show
from llmkit.config.memory import show_bytes
from llmkit.errors import UserError
from llmkit.parallel.slices import full_box
from llmkit.weights.adapted import AdaptedCheckpoint
from llmkit.weights.checkpoint import CheckpointWeights

OF_THE_RUN = ("data", "started_in", "init_from", "precision", "updates")
"""What an average takes over of the state of its newest member, beside the progress."""


def average_command(
    paths: Sequence[Path], out: Path, choice: Choice, decay: float | None, *, as_json: bool = False
) -> int:
    """Writes a checkpoint of averaged weights alone, in fp32: see `choose` and `shared_out` for of what.

    as_json: lines for people go to standard error, and an object tells what was written.

    Raises UserError where the weights are of different models, or there is something at `out`.
    """
    refuse_existing(out)
    if fmt.FOLDER.fullmatch(out.name):
        raise UserError(f"{out}: that is the name of a checkpoint of a run; choose another name")
    members = shared_out(choose(paths, choice), decay)
    check_alike(members)
    newest = members[-1].weights
    size = 4 * sum(prod(newest.shape(name)) for name in newest.names())
    require_room(out, size)
    tell = printer(as_json)
    for member in members:
        loss = "" if member.heldout is None else f", held-out loss {member.heldout:.4f}"
        tell(f"{100 * member.share:6.2f} %  {member.weights.path}{loss}")
    with built_aside(out) as aside:
        writer = Writer(out)
        assert writer.folder == aside
        writer.write_pieces(averaged(members))
        snapshot = Snapshot(
            members[-1].step, (), _state(members, decay), dict(newest.model), _config(members[-1]),
            newest.tokenizer().files(),
        )  # fmt: skip
        finish(writer, [index_file.encode(writer.index())], snapshot)
    if as_json:
        of = [
            {"path": str(each.weights.path), "step": each.step, "share": each.share, "heldout": each.heldout}
            for each in members
        ]
        print_json({"path": str(out), "tensors": len(newest.names()), "bytes": size, "of": of})
        return 0
    show(f"average    of {len(members)}: {out}, {len(newest.names())} tensors, {show_bytes(size)}")
    command = "evaluate" if newest.config else "generate"
    print(f"try        llmkit {command} {shlex.quote(str(out))}", flush=True)  # to be copied, so not wrapped
    return 0


def averaged(members: Sequence[Member]) -> Iterator[Piece]:
    """Each tensor of the average, fp32, from sums in fp64 of a few rows at a time.

    Raises UserError where a value is no finite number.
    """
    first = members[0].weights
    for name in first.names():
        shape = first.shape(name)
        data = torch.empty(prod(shape))
        for part, box in slabs(shape):
            total = torch.zeros(part.stop - part.start, dtype=torch.float64)
            for member in members:
                values = member.weights.read(name, box).flatten().double()
                if not values.isfinite().all():
                    raise UserError(
                        f"{member.weights.path}: {name} holds values that are no finite numbers; leave that "
                        "checkpoint out"
                    )
                total.add_(values, alpha=member.share)
            data[part] = total.float()
        yield Piece(name, "master", shape, full_box(shape), (0, len(data)), data)


def _state(members: Sequence[Member], decay: float | None) -> dict[str, Any]:
    """That of the newest member, as far as it holds for the average, and what that is of."""
    weights = members[-1].weights
    state = weights.checkpoint.state if isinstance(weights, CheckpointWeights) else {}
    kept = {name: state[name] for name in OF_THE_RUN if name in state}
    if "progress" in state:  # whose losses are of other weights
        kept["progress"] = state["progress"] | {"evaluated_step": None, "eval_loss": None}
    of = [
        {
            "path": str(member.weights.path.absolute()), "digest": member.weights.digest(),
            "step": member.step, "share": member.share, "heldout": member.heldout,
        }
        for member in members
    ]  # fmt: skip
    return kept | {"average": {"decay": decay, "of": of}}


def _config(newest: Member) -> dict[str, Any]:
    """The settings of the newest member's run; adapters are merged, so that the result has none."""
    config = dict(newest.weights.config)
    if isinstance(newest.weights, AdaptedCheckpoint):
        config["train"] = {**config["train"], "lora": {**config["train"]["lora"], "rank": 0}}
    return config
