"""What records say of themselves: which messages and which token ids are learned."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from llmkit.data.sources.records import UnusableError

BAD_MASK = "chat with a mask that is not known"
OTHERS_LEARNED = "chat with a message to learn that is not the assistant's"
BAD_LABELS = "ids with labels or masks that do not fit"
NO_IDS = "no list of token ids"
"""Reasons to skip a record."""

MESSAGE_MASKS = ("weight", "train", "training", "loss")
"""Keys of a message that say whether it is learned: 0 or false = no, 1 or true = yes."""
LABELS, IGNORED = "labels", -100
"""Field beside token ids, as transformers has it: the ids that are learned, and what stands for others."""
ID_MASKS = ("completion_mask", "assistant_masks", "loss_mask")
"""Fields beside token ids that are 1 where an id is learned, as trl and transformers have them."""
PADDING = "attention_mask"
"""Field beside token ids that is 0 where an id only fills up the list, as tokenizers have it."""
BESIDE_IDS = (LABELS, PADDING, *ID_MASKS)
"""Fields that are read beside token ids. Labels that are no list name a class, not tokens to learn."""


def message_is_learned(message: Mapping[str, Any], what: str) -> bool:
    """Whether a message is learned, if it is the assistant's. what: stands for it in the UnusableError."""
    given = {key: message[key] for key in MESSAGE_MASKS if message.get(key) is not None}
    for key, value in given.items():
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            detail = f"{what}.{key} is {preview(value)}: only 0 and 1, or false and true, are known"
            raise UnusableError(BAD_MASK, detail)
    if message.get("train_detail"):
        raise UnusableError(BAD_MASK, f"{what}.train_detail masks parts of a message, which is not known")
    values = {bool(value) for value in given.values()}
    if len(values) > 1:
        raise UnusableError(BAD_MASK, f"{what} contradicts itself: {preview(given)}")
    if True in values and message["role"] != "assistant":
        detail = f"{what} has {preview(given)}, but only messages of the role assistant are learned"
        raise UnusableError(OTHERS_LEARNED, detail)
    return False not in values


def learned_ids(ids: np.ndarray, beside: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray | None]:
    """The ids that do not only fill up the list, and which of them are learned; None = all.

    ids: (count,) int64. beside: values of `BESIDE_IDS`, None where there is none. Raises UnusableError.

    >>> learned_ids(np.array([5, 6, 7, 0]), {"labels": [-100, 6, 7, 0], "attention_mask": [1, 1, 1, 0]})
    (array([5, 6, 7]), array([False,  True,  True]))
    """
    given = {name: value for name, value in beside.items() if value is not None}
    if not isinstance(given.get(LABELS), list | np.ndarray):
        given.pop(LABELS, None)
    if not given:
        return ids, None
    learned = np.ones(ids.shape, dtype=bool)
    if LABELS in given:
        labels = integers(given[LABELS], f"field {LABELS!r}")
        learned &= labels != IGNORED if labels.shape == ids.shape else False
        if labels.shape != ids.shape or (labels[learned] != ids[learned]).any():
            raise UnusableError(
                BAD_LABELS,
                f"field {LABELS!r} does not hold the very ids, or {IGNORED} where one is not to be learned",
            )
    for name in ID_MASKS:
        if name in given:
            learned &= _mask(given[name], name, ids)
    if PADDING in given:
        kept = _mask(given[PADDING], PADDING, ids)
        ids, learned = ids[kept], learned[kept]
    return ids, None if learned.all() else learned


def integers(value: Any, what: str) -> np.ndarray:
    """A list of whole numbers as (count,) int64; raises UnusableError for anything else."""
    if isinstance(value, list) and all(type(one) is int for one in value):
        try:
            value = np.array(value, dtype=np.int64)
        except OverflowError:
            raise UnusableError(NO_IDS, f"{what} holds a number beyond 64 bits") from None
    if not isinstance(value, np.ndarray):
        raise UnusableError(NO_IDS, f"{what} is {preview(value)}, not a list of whole numbers")
    return value


def _mask(value: Any, name: str, ids: np.ndarray) -> np.ndarray:
    is_array = isinstance(value, np.ndarray)
    plain = isinstance(value, list) and all(type(one) in (int, bool) for one in value)
    mask = np.asarray(value if is_array or plain else ())
    if mask.shape != ids.shape or mask.dtype.kind not in "bui" or (mask.astype(bool) != mask).any():
        raise UnusableError(BAD_LABELS, f"field {name!r} is not a list of as many 0 and 1 as there are ids")
    return mask.astype(bool)


def preview(value: Any) -> str:
    """The beginning of a value, as JSON."""
    try:
        return f"{json.dumps(value, default=repr):.40}"
    except RecursionError:
        return f"a deeply nested {type(value).__name__}"
