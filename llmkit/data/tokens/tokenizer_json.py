"""The content of a tokenizer.json, and what is changed in it before text is encoded."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from tokenizers import Tokenizer as HFTokenizer

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
    model = spec["model"] | ({"dropout": None} if spec["model"].get("dropout") else {})
    changes = {"truncation": None, "padding": None, "post_processor": None, "model": model}
    return spec | changes | {"added_tokens": _special(spec, {end_of_text})}


def with_special(content: str, names: Collection[str], origin: str) -> str:
    """The same tokenizer.json with these of its added tokens as special ones, as transformers takes them.

    Raises UserError, naming `origin`, for what is no tokenizer.json.
    """
    spec = parse(content, origin)
    return json.dumps(spec | {"added_tokens": _special(spec, names)})


def _special(spec: dict[str, Any], names: Collection[str]) -> list[dict[str, Any]]:
    added = spec.get("added_tokens") or []
    return [token | {"special": True} if token.get("content") in names else token for token in added]


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
        found = HFTokenizer.from_str(json.dumps(bare)).encode("a")
    except Exception as error:  # the library raises no narrower type
        raise UserError(f"{origin}: its post_processor is not valid ({error})") from error
    text = found.special_tokens_mask.index(0)
    return found.ids[:text], found.ids[text + 1 :]


def opening_with(spec: dict[str, Any], token: str, id: int) -> dict[str, Any]:
    """The same tokenizer.json with a post-processor that puts this token before a text, and nothing else."""
    step = spec.get("post_processor") or {}
    steps = step["processors"] if step.get("type") == "Sequence" else [step]
    first, a, b = (
        {"SpecialToken": {"id": token, "type_id": 0}},
        *({"Sequence": {"id": name, "type_id": 0}} for name in "AB"),
    )
    template = {
        "type": "TemplateProcessing",
        "single": [first, a],
        "pair": [first, a, b],
        "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]}},
    }
    kept = [each for each in steps if each.get("type") == "ByteLevel"]  # which adds nothing
    whole = {"type": "Sequence", "processors": [*kept, template]} if kept else template
    return spec | {"post_processor": whole}


def unknown_token(model: dict[str, Any]) -> str | None:
    """The token of a model for what it has no other token for."""
    if model.get("type") == "Unigram":
        index = model.get("unk_id")
        return None if index is None else model["vocab"][index][0]
    return model.get("unk_token")


def byte_symbols() -> list[str]:
    """The character that stands for each byte in byte-level vocabularies (Radford et al. 2019, GPT-2).

    "a" for 97, "\u0120" for 32, a space, "\u010a" for 10, a line's end, "\u00c3" for 195.
    """
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("\xa1"), ord("\xac") + 1), *range(ord("\xae"), 256)]
    symbols = {byte: chr(byte) for byte in shown}
    for byte in range(256):
        symbols.setdefault(byte, chr(256 + len(symbols) - len(shown)))
    return [symbols[byte] for byte in range(256)]


def bytes_of_ids(spec: dict[str, Any], vocabulary: dict[str, int]) -> dict[int, bytes] | None:
    """Bytes of each id of a byte-level vocabulary; None for other kinds, whose text depends on neighbours.

    spec: a tokenizer.json. Ids that stand for no bytes are left out.
    """
    if (spec.get("decoder") or {}).get("type") != "ByteLevel":
        return None
    added = {token["content"] for token in spec.get("added_tokens") or []}
    byte_of = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
    return {
        id: token.encode() if token in added else bytes(byte_of[symbol] for symbol in token)
        for token, id in vocabulary.items()
        if token in added or all(symbol in byte_of for symbol in token)
    }
