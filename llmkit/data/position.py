"""Where a run stands in its data, as it is kept in a checkpoint."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llmkit.errors import UserError

Weight = Annotated[float, Field(gt=0.0)]


class SourcePrint(BaseModel):
    """What a source's training tokens are known by."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    tokens: int
    digest: str
    heldout: str | None
    """Digest of the held-out tokens, None if there are none."""


class Fingerprint(BaseModel):
    """What the order of the rows depends on, beside the seed and the weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    tokenizer: str
    sequence_length: int
    document_masks: bool
    sources: list[SourcePrint]


class Position(BaseModel):
    """rows: consumed so far. segments: (first position, weights of the sources from there on)."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    version: Literal[1] = 1
    rows: Annotated[int, Field(ge=0)]
    seed: int
    segments: Annotated[list[tuple[int, list[Weight]]], Field(min_length=1)]
    fingerprint: Fingerprint


def check_position(state: dict[str, Any], seed: int, fingerprint: dict[str, Any]) -> Position:
    """The position in `state`; raises UserError if it is no position in the data of this run.

    The message names each difference of the seed and the fingerprint.
    """
    try:
        position = Position.model_validate(state)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"the checkpoint's data position is not usable: {where}: {first['msg']}") from error
    now = Fingerprint.model_validate(fingerprint)
    starts = [start for start, _ in position.segments]
    sizes = {len(weights) for _, weights in position.segments}
    if starts != sorted(starts) or starts[0] != 0 or starts[-1] > position.rows:
        raise UserError(f"the checkpoint's data position is not usable: segments start at {starts}")
    if sizes != {len(position.fingerprint.sources)}:
        raise UserError("the checkpoint's data position is not usable: it has not one weight a source")
    differences = [f"run.seed was {position.seed}, is {seed}"] if position.seed != seed else []
    differences += _differences(position.fingerprint, now)
    if differences:
        raise UserError(
            "the checkpoint was made with other data, so the run cannot go on exactly: "
            + "; ".join(differences)
            + "; restore the settings and files, or start a new run"
        )
    return position


def _differences(then: Fingerprint, now: Fingerprint) -> list[str]:
    found = []
    if then.tokenizer != now.tokenizer:
        found.append(f"data.tokenizer had hash {then.tokenizer}, has {now.tokenizer}")
    if then.sequence_length != now.sequence_length:
        found.append(f"data.sequence_length was {then.sequence_length}, is {now.sequence_length}")
    if then.document_masks != now.document_masks:
        found.append(f"data.document_masks was {then.document_masks}, is {now.document_masks}")
    names_then, names_now = [s.name for s in then.sources], [s.name for s in now.sources]
    if names_then != names_now:
        found.append(f"data.sources were {', '.join(names_then)}, are {', '.join(names_now)}")
        return found
    for old, new in zip(then.sources, now.sources, strict=True):
        if old.tokens != new.tokens:
            found.append(f"source {old.name} had {old.tokens} training tokens, has {new.tokens}")
        elif old.digest != new.digest:
            found.append(f"source {old.name} has other text of the same length")
        if old.heldout != new.heldout:
            found.append(f"source {old.name} has other held-out text")
    return found
