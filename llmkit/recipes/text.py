"""What `--data` and `--tokenizer` name, as settings."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from llmkit.config.schema import BPE_LARGEST, BYTES_VOCABULARY
from llmkit.config.schema import Tokenizer as TokenizerSettings
from llmkit.data.sources.formats import type_of_files
from llmkit.errors import UserError
from llmkit.files import may_exist

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_BPE = re.compile(r"bpe(:(?P<size>\d{1,20}))?")


def source(data: str | None) -> dict[str, Any]:
    """The source of a path, a URL, or a dataset of the hub; Python's own library for None.

    Raises UserError for what is none of them.
    """
    if data is None or data == "stdlib":
        return {"type": "stdlib"}
    path = os.path.expanduser(data)
    if may_exist(path) or "://" in data or re.search(r"[*?\[]", data):
        return {"type": type_of_files(path), "path": data}
    if data.count("/") == 1 and _HUB_ID.fullmatch(data):
        return {"type": "hub", "dataset": data}
    raise UserError(
        f"new: --data {data[:200]!r}: there is no such file or folder, and a dataset of the hub has a "
        "name such as HuggingFaceFW/fineweb-edu"
    )


def tokenizer(asked: str | None) -> tuple[dict[str, Any], int | None]:
    """The settings of a tokenizer, and how many tokens it has; None for one that is trained to any size.

    asked: bpe, bpe:SIZE, bytes, a tokenizer.json, or a model of the hub, whose tokenizer is then fetched.
    Raises UserError for what is none of them.
    """
    asked = "bpe" if asked is None else asked
    if found := _BPE.fullmatch(asked):
        size = int(found["size"]) if found["size"] else None
        if size is not None and not BYTES_VOCABULARY <= size <= BPE_LARGEST:
            raise UserError(
                f"new: --tokenizer {asked}: a bpe tokenizer has from {BYTES_VOCABULARY} to "
                f"{BPE_LARGEST:,} tokens"
            )
        return {"type": "bpe"}, size
    if asked == "bytes":
        return {"type": "bytes"}, BYTES_VOCABULARY
    path = Path(os.path.expanduser(asked))
    settings: dict[str, Any]
    if may_exist(path):
        file = path / "tokenizer.json" if path.is_dir() else path
        settings = {"type": "file", "path": str(file)}
    elif _HUB_ID.fullmatch(asked):
        settings = {"type": "hub", "name": asked}
    else:
        raise UserError(
            f"new: --tokenizer {asked[:200]!r}: there is no such file; name a tokenizer.json, a model of "
            "the hub such as openai-community/gpt2, bytes, bpe or bpe:SIZE"
        )
    from llmkit.data.tokens.make_tokenizer import make_tokenizer

    return settings, make_tokenizer(TokenizerSettings.model_validate(settings), ()).vocab_size
