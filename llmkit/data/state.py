"""The state of a run in its data, as a checkpoint keeps it, and what it means in other data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, JsonValue, ValidationError

from llmkit.data.sampler import VERSION
from llmkit.errors import UserError

Weight = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=0)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SourceFingerprint(_Record):
    """What a source's training tokens are known by."""

    name: str
    kind: Literal["shards", "megatron", "live"]
    tokens: int | None
    """None for a live source: nobody has counted them."""
    digest: str
    heldout: str | None
    """Digest of the held-out tokens, None if there are none."""
    strict_digest: str | None = Field(default=None, exclude=True)
    """Digest of a live source under data.errors: raise, under which no bad record was met: up to there all of
    these settings read the same. Not stored, it is of use only for the data of now."""
    template: str | None = None
    """Hash of the chat template of a source of chats; None for others, and in older checkpoints."""


class Fingerprint(_Record):
    """What the order of the rows depends on, beside the seed and the weights.

    sequence_length: of a row. packing, lanes: of the settings; None in checkpoints of version 2, lanes also
    where no source is live. reference: of pairs, the digest of the model that their log-probabilities are of.
    """

    tokenizer: str
    sequence_length: int
    document_masks: bool
    packing: Literal["concatenate", "best_fit"] | None = None
    lanes: Count | None = None
    reference: str | None = None
    sources: list[SourceFingerprint]

    @property
    def has_live(self) -> bool:
        """Whether a source is tokenized while training."""
        return any(source.kind == "live" for source in self.sources)

    @property
    def length_setting(self) -> int:
        """`data.sequence_length`: half of a row where that is a pair."""
        return self.sequence_length // (1 if self.reference is None else 2)


class Change(_Record):
    """A change of the data in mid-run: the rows consumed before, what differed, the data until then."""

    rows: Count
    differences: list[str]
    fingerprint: Fingerprint


class DataState(_Record):
    """What a checkpoint keeps to go on: rows consumed, seed, weights, cursors of lanes, fingerprint.

    rows: consumed so far. segments: (first position, weights of the sources from there on).

    The present data began at position `start`, where `consumed_before` rows of each source had been consumed;
    `shuffle_ids` stand for the sources in the keys of the order. Without a change of the data that is 0,
    zeros and 0, 1, ... next_shuffle_id: one that no source had. cursors: for a live source where each of its
    lanes stands, by lane; None for other sources. A lane that is not there has not begun.

    omitted: windows of positions that are left out (`llmkit.data.omitted`), also behind `rows`; the weights
    up to the end of the last one are fixed.

    version: of the order. A run of version 2 goes on in its own order, unless that read live sources
    unevenly.
    """

    version: Literal[2, 3]
    rows: Count
    seed: int
    start: Count = 0
    consumed_before: list[Count] = Field(validation_alias=AliasChoices("consumed_before", "carry"))
    shuffle_ids: list[Count] = Field(validation_alias=AliasChoices("shuffle_ids", "numbers"))
    next_shuffle_id: Count = Field(validation_alias=AliasChoices("next_shuffle_id", "next_number"))
    segments: Annotated[list[tuple[int, list[Weight]]], Field(min_length=1)]
    cursors: list[dict[str, JsonValue] | None]
    fingerprint: Fingerprint
    changes: list[Change] = []
    omitted: list[tuple[Count, Count]] = []

    @classmethod
    def at_start(cls, seed: int, weights: Sequence[float], fingerprint: Fingerprint) -> DataState:
        """Before the first row. weights: of each source."""
        count = len(weights)
        return cls(
            version=VERSION, rows=0, seed=seed, consumed_before=[0] * count, shuffle_ids=list(range(count)),
            next_shuffle_id=count, segments=[(0, list(weights))],
            cursors=[{} if source.kind == "live" else None for source in fingerprint.sources],
            fingerprint=fingerprint,
        )  # fmt: skip

    @property
    def weights(self) -> list[Weight]:
        """Those that hold at `rows`."""
        return [weights for start, weights in self.segments if start <= self.rows][-1]

    def without_plans(self) -> DataState:
        """The same without what is fixed of the rows behind it."""
        segments = [segment for segment in self.segments if segment[0] <= self.rows]
        passed = [window for window in self.omitted if window[1] <= self.rows]
        return self.model_copy(update={"segments": segments, "omitted": passed})


def read_data_state(state: dict[str, Any]) -> DataState:
    """The state in this JSON; raises UserError if it contradicts itself."""
    try:
        read = DataState.model_validate(state)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"the checkpoint's data position is not usable: {where}: {first['msg']}; use the version of "
            "llmkit that wrote it"
        ) from error
    starts = [start for start, _ in read.segments]
    fixed = max([read.rows, *(stop for _, stop in read.omitted)])
    if starts != sorted(starts) or starts[0] != read.start or starts[-1] > fixed:
        raise UserError(f"the checkpoint's data position is not usable: segments start at {starts}")
    sizes = {len(weights) for _, weights in read.segments}
    sizes |= {len(read.consumed_before), len(read.shuffle_ids), len(read.cursors)}
    if sizes != {len(read.fingerprint.sources)}:
        raise UserError("the checkpoint's data position is not usable: it has not one value a source")
    return read


def upgraded(state: DataState, now: Fingerprint) -> DataState:
    """`state` in the order of today where that is the same one: that of a live source alone.

    Other states of version 2 go on in the order of that version, if no source of theirs is live.
    """
    then = state.fingerprint
    alone = len(then.sources) == len(state.segments) == 1 and state.start == 0
    if state.version == 2 and then.has_live and alone:
        then = then.model_copy(update={"lanes": now.lanes})
        return state.model_copy(update={"version": 3, "fingerprint": then})
    return state


def mismatch_message(differences: Sequence[str]) -> str:
    """Why a run cannot go on with other data, and what can be done."""
    return (
        "the checkpoint was made with other data, so the run cannot go on exactly: "
        + "; ".join(differences)
        + "; restore the settings and files, start a new run, or go on with the other data from here "
        "(llmkit train --allow-data-change, which is recorded)"
    )


def mixture_difference(state: DataState, names: Sequence[str], weights: Sequence[float]) -> list[str]:
    """What is new in the weights that should hold from `state` on, of sources that were there before."""
    sources = zip(state.fingerprint.sources, state.weights, strict=True)
    then = {source.name: weight for source, weight in sources}
    pairs = [(name, then[name], new) for name, new in zip(names, weights, strict=True) if name in then]
    changed = [f"{name} {old:g} -> {new:g}" for name, old, new in pairs if old != new]
    return [f"the mixture has other weights: {', '.join(changed)}"] if changed else []


def data_differences(state: DataState, now: Fingerprint) -> list[str]:
    """Each difference between the data of `state` and those of now, in words."""
    then = state.fingerprint
    found = []
    if then.tokenizer != now.tokenizer:
        found.append(f"data.tokenizer had hash {then.tokenizer}, has {now.tokenizer}")
    if then.sequence_length != now.sequence_length:
        found.append(f"data.sequence_length was {then.length_setting}, is {now.length_setting}")
    if then.document_masks != now.document_masks:
        found.append(f"data.document_masks was {then.document_masks}, is {now.document_masks}")
    if None not in (then.packing, now.packing) and then.packing != now.packing:
        found.append(f"data.packing was {then.packing}, is {now.packing}")
    if None not in (then.lanes, now.lanes) and then.lanes != now.lanes:
        found.append(f"data.stream_shards was {then.lanes}, is {now.lanes}")
    if state.version == 2 and then.has_live:
        found.append(
            "it was written by an earlier version of llmkit, which read live sources in a mixture unevenly"
        )
    names_then, names_now = [s.name for s in then.sources], [s.name for s in now.sources]
    if names_then != names_now:
        found.append(f"data.sources were {', '.join(names_then)}, are {', '.join(names_now)}")
        return found
    for old, new in zip(then.sources, now.sources, strict=True):
        if old.template != new.template and old.template and new.template:  # the tokens differ by that
            found.append(
                f"source {old.name} has another chat template (data.tokenizer.chat_template, or the "
                "tokenizer's own)"
            )
            continue
        if old.kind != new.kind:
            found.append(f"source {old.name} was read as {old.kind}, is as {new.kind}")
        elif old.tokens != new.tokens:
            found.append(f"source {old.name} had {old.tokens} training tokens, has {new.tokens}")
        elif not _same_text(old, new):
            what = (
                "has other files, or they are cut, read (data.errors) or tokenized otherwise"
                if new.kind == "live"
                else "has other text of the same length"
            )
            found.append(f"source {old.name} {what}")
        if old.heldout != new.heldout:
            found.append(f"source {old.name} has other held-out text")
    return found


def rebase(
    state: DataState, now: Fingerprint, consumed: Sequence[int], weights: Sequence[float]
) -> DataState:
    """`state` in other data: they begin there, and what did not change goes on.

    consumed: rows of each source of before that `state` has behind it. A source with the same text goes
    on where it stood, also under another name; another one begins, under a number that none had before.
    So do stored tokens whose rows are cut or ordered otherwise from here on; the lanes of a live source go on
    with rows of any length. weights: of now, which hold from there on.
    """
    then = state.fingerprint
    version: Literal[2, 3] = 2 if state.version == 2 and not now.has_live else 3
    same_rows = (
        version == state.version
        and then.sequence_length == now.sequence_length
        and (version == 2 or then.packing == now.packing)
    )
    same_ids = then.tokenizer == now.tokenizer
    goes_on = [same_ids and (same_rows or source.kind == "live") for source in then.sources]
    left = {index for index, source_goes_on in enumerate(goes_on) if source_goes_on}
    fresh = state.next_shuffle_id
    consumed_before, shuffle_ids, cursors = [], [], []
    for source in now.sources:
        same = [index for index in sorted(left) if _same_text(then.sources[index], source)]
        same.sort(key=lambda index, name=source.name: then.sources[index].name != name)  # type: ignore[misc]
        if same:
            index = same[0]
            left.remove(index)
            consumed_before.append(int(consumed[index]))
            shuffle_ids.append(state.shuffle_ids[index])
            cursors.append(state.cursors[index])
        else:
            consumed_before.append(0)
            shuffle_ids.append(fresh)
            cursors.append({} if source.kind == "live" else None)
            fresh += 1
    return DataState(
        version=version,
        rows=state.rows,
        seed=state.seed,
        start=state.rows,
        consumed_before=consumed_before,
        shuffle_ids=shuffle_ids,
        next_shuffle_id=fresh,
        segments=[(state.rows, list(weights))],
        cursors=cursors,
        fingerprint=now,
        changes=state.changes,
    )


def restarted_sources(then: DataState, now: DataState) -> list[str]:
    """Of `now`, which `rebase` made of `then`: the sources that begin there, in words."""
    before = {source.name: source for source in then.fingerprint.sources}

    def why(source: SourceFingerprint) -> str:
        if source.name not in before:
            return ""
        same = _same_text(before[source.name], source)
        cut = ": its text is the same, but its rows are cut or ordered otherwise from here on"
        return ", whatever was read of it before" + cut * same

    return [
        f"source {source.name} begins anew{why(source)}"
        for source, shuffle_id in zip(now.fingerprint.sources, now.shuffle_ids, strict=True)
        if shuffle_id >= then.next_shuffle_id
    ]


def _same_text(old: SourceFingerprint, new: SourceFingerprint) -> bool:
    same_size = (old.kind, old.tokens) == (new.kind, new.tokens)
    return same_size and old.digest in (new.digest, new.strict_digest)
