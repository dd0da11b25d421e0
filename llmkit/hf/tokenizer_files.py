"""The tokenizer files beside a model in Hugging Face's format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmkit.data.tokens.tokenizer import named_tokens
from llmkit.data.tokens.tokenizer_json import parse
from llmkit.errors import UserError
from llmkit.files import read_json

REMEDY = "copy the model's tokenizer files again"


def end_of_text(folder: Path, config: Mapping[str, Any]) -> str:
    """The token that ends a text: eos_token of the tokenizer's files, else the one of config.json's id.

    Raises UserError where none is named.
    """
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            named = named_tokens(read_json(folder / name, REMEDY))
            if "eos_token" in named:
                return named["eos_token"]
    number = config.get("eos_token_id")
    number = number[0] if isinstance(number, list) and number else number
    spec = parse((folder / "tokenizer.json").read_text(), str(folder / "tokenizer.json"))
    vocabulary = spec["model"].get("vocab")
    added = {token.get("content"): token.get("id") for token in spec.get("added_tokens") or []}
    entries = {**(vocabulary if isinstance(vocabulary, dict) else {}), **added}
    for token, known in entries.items():
        if known == number and number is not None:
            return str(token)
    raise UserError(
        f"{folder}: neither tokenizer_config.json (eos_token) nor config.json (eos_token_id) names the token "
        "that ends a text; add one of both"
    )
