"""The tokenizer beside a model in Hugging Face's format."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from llmkit.config import schema
from llmkit.data.tokens.chat import ChatTemplate
from llmkit.data.tokens.make_tokenizer import make_tokenizer
from llmkit.data.tokens.tokenizer import Tokenizer, named_tokens
from llmkit.data.tokens.tokenizer_json import parse
from llmkit.errors import UserError
from llmkit.files import read_json

REMEDY = "copy the model's tokenizer files again"
OTHERS = ("tokenizer.model", "vocab.json", "spiece.model", "tekken.json", "vocab.txt")
"""Files of tokenizers in formats that are not read."""


def read_tokenizer(
    folder: Path, config: Mapping[str, Any], vocab_size: int, ends: Collection[int] = ()
) -> Tokenizer:
    """The tokenizer of a folder. config: its config.json. vocab_size: tokens that the weights know. ends: see
    `end_ids`.

    Raises UserError where there is none, where its files or its chat template are broken, and where it has
    ids that the weights do not know.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        other = next((name for name in OTHERS if (folder / name).is_file()), None)
        raise UserError(
            f"{folder}: there is no tokenizer.json in it"
            + (
                f", only {other}; `AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)` of "
                "transformers writes one"
                if other
                else "; copy the model's tokenizer files into it"
            )
        )
    end = end_of_text(folder, config)
    try:
        made = make_tokenizer(schema.Tokenizer(type="file", path=str(path), end_of_text=end), ())
        if made.chat_template is not None:
            ChatTemplate(made.chat_template, origin="its chat template")
        made.open_as_published()
    except UserError as error:
        why = re.sub(r"^data\.tokenizer(\.\w+)?: ", "", str(error))
        raise UserError(f"{folder}: its tokenizer cannot be used: {why}") from error
    if made.vocab_size > vocab_size:
        raise UserError(
            f"{folder}: the tokenizer has ids up to {made.vocab_size - 1}, but the model knows only "
            f"{vocab_size} tokens: were tokens added without resizing the embedding?"
        )
    made.ends |= frozenset(ends) & frozenset(made.known_ids.tolist())  # no other can be made
    return made


def end_ids(folder: Path, config: Mapping[str, Any]) -> frozenset[int]:
    """The ids that end an answer of the model in a folder, by generation_config.json, else by config.json.

    Raises UserError where that is neither an id nor a list of ids.
    """
    file = folder / "generation_config.json"
    found = read_json(file, REMEDY).get("eos_token_id") if file.is_file() else None
    origin = file if found is not None else folder / "config.json"
    found = config.get("eos_token_id") if found is None else found
    ids = found if isinstance(found, list) else [] if found is None else [found]
    if not all(isinstance(each, int) and not isinstance(each, bool) for each in ids):
        raise UserError(
            f"{origin}: eos_token_id = {json.dumps(found):.80} is no id of a token, nor a list of them"
        )
    return frozenset(ids)


def note_on_template(tokenizer: Tokenizer) -> str | None:
    """Says what looks like control tokens in the chat template of a published model, and is none of the
    tokenizer's; None where there is nothing to say. A model that llmkit has trained may know them as text."""
    found = re.findall(r"<\|\w+\|>", tokenizer.chat_template or "") if tokenizer.is_foreign else []
    unknown = [token for token in dict.fromkeys(found) if token not in tokenizer.control_tokens]
    if not unknown:
        return None
    return (
        f"note: the chat template writes {', '.join(unknown)}, which is no token of this tokenizer; "
        "was the template made for another model?"
    )


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
    file = folder / "tokenizer.json"
    spec = parse(file.read_bytes().decode(errors="replace"), str(file))
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
