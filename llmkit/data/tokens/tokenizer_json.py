"""The content of a tokenizer.json, and what is changed in it before text is encoded."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from tokenizers import Tokenizer as Encoder
from tokenizers import models

from llmkit.errors import UserError


def parse(content: str, origin: str) -> dict[str, Any]:
    """A tokenizer.json; raises UserError, naming `origin`, for anything else."""
    try:
        spec = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{origin}: is not valid JSON ({error})") from error
    if not isinstance(spec, dict) or not isinstance(spec.get("model"), dict):
        raise UserError(f"{origin}: is not a tokenizer.json: it has no model")
    return spec


def canonical(spec: dict[str, Any]) -> str:
    """The same text for the same tokenizer, whatever the layout of its file."""
    return json.dumps(spec, sort_keys=True, separators=(",", ":"))


def plain(spec: dict[str, Any], end_of_text: str) -> dict[str, Any]:
    """The same tokenizer without what would drop, add or vary tokens of a training text."""
    added = [
        token | {"special": True} if token.get("content") == end_of_text else token
        for token in spec.get("added_tokens") or []
    ]
    changes = {"truncation": None, "padding": None, "post_processor": None, "added_tokens": added}
    model = spec["model"] | ({"dropout": None} if spec["model"].get("dropout") else {})
    return spec | changes | {"model": model}


def with_special(content: str, names: Collection[str], origin: str) -> str:
    """The same tokenizer.json with these of its added tokens as special ones, as transformers takes them.

    Raises UserError, naming `origin`, for what is no tokenizer.json.
    """
    spec = parse(content, origin)
    added = [
        token | {"special": True} if token.get("content") in names else token
        for token in spec.get("added_tokens") or []
    ]
    return json.dumps(spec | {"added_tokens": added})


def continuing(spec: dict[str, Any]) -> dict[str, Any]:
    """The same tokenizer for text that goes on: without the space that some put before a text."""
    changed = dict(spec)
    for key, parts in (("normalizer", "normalizers"), ("pre_tokenizer", "pretokenizers")):
        step = spec.get(key)
        if step and step.get("type") == "Sequence":
            first, *rest = step[parts]  # later steps see words, not the text
            kept = _without_space(first)
            changed[key] = step | {parts: [*([kept] if kept else []), *rest]}
        elif step:
            changed[key] = _without_space(step)
    return changed


def _without_space(step: dict[str, Any]) -> dict[str, Any] | None:
    """A step of a tokenizer.json without the space that it puts first; None if it does nothing else."""
    if step.get("type") == "Prepend":
        return None
    changes = {"prepend_scheme": "never", "add_prefix_space": False}
    return step | {key: value for key, value in changes.items() if key in step}


def added_around(spec: dict[str, Any], origin: str) -> tuple[list[int], list[int]]:
    """The ids that a tokenizer.json puts before and behind a text by its post-processor.

    Raises UserError, naming `origin`, for a post-processor that is not valid.
    """
    if not spec.get("post_processor"):
        return [], []
    model = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
    bare = {"version": "1.0", "model": model, "added_tokens": [], "post_processor": spec["post_processor"]}
    try:
        found = Encoder.from_str(json.dumps(bare)).encode("a")
    except Exception as error:  # the library raises no narrower type
        raise UserError(f"{origin}: its post_processor is not valid ({error})") from error
    place = found.special_tokens_mask.index(0)
    return found.ids[:place], found.ids[place + 1 :]


def opening_with(spec: dict[str, Any], token: str, number: int) -> dict[str, Any]:
    """The same tokenizer.json with a post-processor that puts this token before a text, and nothing else."""
    step = spec.get("post_processor") or {}
    steps = step["processors"] if step.get("type") == "Sequence" else [step]
    first, a, b = {"SpecialToken": {"id": token, "type_id": 0}}, *(
        {"Sequence": {"id": name, "type_id": 0}} for name in "AB"
    )
    template = {
        "type": "TemplateProcessing",
        "single": [first, a],
        "pair": [first, a, b],
        "special_tokens": {token: {"id": token, "ids": [number], "tokens": [token]}},
    }
    kept = [each for each in steps if each.get("type") == "ByteLevel"]  # which adds nothing
    whole = {"type": "Sequence", "processors": [*kept, template]} if kept else template
    return spec | {"post_processor": whole}


def unknown_token(model: dict[str, Any]) -> str | None:
    """The token of a model for what it has no other token for."""
    if model.get("type") == "Unigram":
        number = model.get("unk_id")
        return None if number is None else model["vocab"][number][0]
    return model.get("unk_token")


def merges_of(model: dict[str, Any]) -> list[tuple[str, str]]:
    """The merges of a BPE model in order; older files hold "left right", newer ones [left, right]."""
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model.get("merges") or [])
    return [(left, right) for left, right in pairs]


def model_only(model: dict[str, Any]) -> models.Model:
    """The model of a tokenizer.json by itself."""
    return Encoder.from_str(json.dumps({"version": "1.0", "model": model, "added_tokens": []})).model
