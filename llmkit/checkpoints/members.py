"""The weights that an average is made of."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llmkit.checkpoint import format as fmt
from llmkit.checkpoint.files import OpenFiles
from llmkit.checkpoint.keeping import step_of
from llmkit.checkpoint.named import named
from llmkit.checkpoint.read import Checkpoint, folders, load
from llmkit.checkpoints.found import Found, find
from llmkit.checkpoints.recorded import Recorded
from llmkit.config.mistakes import display, listed
from llmkit.config.resume_rules import RESUME_POLICIES
from llmkit.errors import UserError
from llmkit.parallel.slices import Shape
from llmkit.weights import Weights, model_of, open_weights, weights_of

SHOWN = 5
"""Names that a message lists at most."""


@dataclass(frozen=True)
class Choice:
    """Which checkpoints of those that are named. steps: of a run those of these steps; last: its newest ones.

    best: of all of them, those with the lowest held-out loss. None = all.
    """

    steps: list[int] | None = None
    last: int | None = None
    best: int | None = None


@dataclass(frozen=True)
class Member:
    """Weights that are averaged. share: of the average. step: 0 for an import. heldout: nats a target, where
    that is known."""

    weights: Weights
    step: int
    heldout: float | None
    share: float = 0.0


def choose(paths: Sequence[Path], choice: Choice) -> list[Member]:
    """The weights at these paths that are chosen, in the order of their steps.

    Raises UserError where there are fewer than two, one is named twice, or it is not known how good one is.
    """
    opened = OpenFiles()
    found = (member for path in paths for member in _at(path, choice, opened))
    members = sorted(found, key=lambda member: member.step)
    places = [member.weights.path.resolve() for member in members]
    if twice := next((place for place in places if places.count(place) > 1), None):
        raise UserError(f"average: {twice} is named twice; name it once")
    if choice.best is not None:
        members = _best(members, choice.best)
    if len(members) < 2:
        raise UserError(
            f"average: {listed([str(path) for path in paths], SHOWN)} gives one checkpoint, an average needs "
            "two; name more of them, or a run with several"
        )
    return members


def shared_out(members: Sequence[Member], decay: float | None) -> list[Member]:
    """The members with their shares: equal ones, or each `decay` times that of the next newer one."""
    parts = [(decay or 1.0) ** age for age in reversed(range(len(members)))]
    return [replace(each, share=part / sum(parts)) for each, part in zip(members, parts, strict=True)]


def check_alike(members: Sequence[Member]) -> None:
    """Raises UserError unless all are weights of one model, with one tokenizer."""
    first, *others = (member.weights for member in members)
    tokenizer = first.tokenizer().hash
    for other in others:
        differ = _differences(first, other)
        if not differ and other.tokenizer().hash != tokenizer:
            differ = ["they have different tokenizers"]
        if differ:
            raise UserError(
                f"average: {first.path} and {other.path} are not of one model: {listed(differ, SHOWN)}; name "
                "checkpoints of the same model"
            )


def _differences(one: Weights, other: Weights) -> list[str]:
    """What two models differ in: settings that decide what weights compute, and tensors."""
    mine, theirs = model_of(one), model_of(other)
    if type(mine) is not type(theirs):
        return ["one of them is a registered model"]
    there = theirs.to_dict()
    found = [
        f"{name} {display(value)} -> {display(there[name])}"
        for name, value in mine.to_dict().items()
        if value != there[name] and not _of_no_weight(name)
    ]
    shapes, others = ({name: each.shape(name) for name in each.names()} for each in (one, other))
    return found + [
        f"{name} {_shape(shapes.get(name))} -> {_shape(others.get(name))}"
        for name in {**shapes, **others}
        if shapes.get(name) != others.get(name)
    ]


def _shape(shape: Shape | None) -> str:
    return "absent" if shape is None else str(list(shape))


def _of_no_weight(name: str) -> bool:
    """Whether trained weights mean the same whatever this setting of the model was."""
    rule = RESUME_POLICIES.get(f"model.{name}")
    initial = name.endswith("initializer_range") or name == "residual_init"
    return initial or (rule is not None and rule.kind == "free")


def _at(path: Path, choice: Choice, opened: OpenFiles) -> list[Member]:
    """The weights at a path. opened: keeps files of all of them open."""
    path = named(path)
    if not ((path / "checkpoints").is_dir() or folders(path) or os.path.lexists(path / fmt.MANIFEST)):
        return [Member(open_weights(path), 0, None)]
    found = find(path)
    recorded = Recorded(found.run)
    chosen = found.folders if found.single else _chosen(found, choice)
    checkpoints = [load(folder, opened) for folder in chosen]
    return [_member(weights_of(checkpoint), checkpoint, recorded) for checkpoint in checkpoints]


def _member(weights: Weights, checkpoint: Checkpoint, recorded: Recorded) -> Member:
    averaged = "average" in checkpoint.state
    heldout = None if averaged else recorded.heldout(checkpoint.step, checkpoint)
    return Member(weights, checkpoint.step, heldout)


def _chosen(found: Found, choice: Choice) -> list[Path]:
    there = {step_of(folder): folder for folder in found.folders}
    wanted = list(there) if choice.steps is None else choice.steps
    if missing := [str(step) for step in wanted if step not in there]:
        raise UserError(
            f"average: {found.root} has no checkpoint of step {listed(missing, SHOWN)}, but of "
            f"{listed([str(step) for step in there], 20)}"
        )
    chosen = [folder for step, folder in there.items() if step in wanted]
    return chosen if choice.last is None else chosen[-choice.last :]


def _best(members: Sequence[Member], count: int) -> list[Member]:
    """Those with the lowest held-out losses, in the order of their steps."""
    if unknown := [member.weights.path.name for member in members if member.heldout is None]:
        raise UserError(
            "average: --best needs the held-out loss of each, and none is on record for "
            f"{listed(unknown, SHOWN)}: the run has not evaluated at that step; leave it out by --steps, or "
            "leave --best out"
        )
    best = sorted(members, key=lambda member: (member.heldout, -member.step))[:count]
    return [member for member in members if member in best]
