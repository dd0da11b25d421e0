"""The files beside the weights of an export: config.json, generation_config.json, the tokenizer's files."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import torch

from llmkit.config.shape import ModelShape
from llmkit.data.tokens.tokenizer import Tokenizer
from llmkit.errors import UserError
from llmkit.hf.architectures import Architecture
from llmkit.prompts import chat_prompt


def config_files(
    architecture: Architecture, shape: ModelShape, dtype: torch.dtype, tokenizer: Tokenizer
) -> dict[str, bytes]:
    """config.json and generation_config.json. dtype: of the weights, or of most of them.

    The form of transformers 4, which 5 reads too.
    """
    ids = special_ids(tokenizer)
    absent = {"bos_token_id": None, "pad_token_id": None}  # else the class has some of its own
    config = {
        **architecture.write(shape),
        **absent,
        **ids,
        "eos_token_id": tokenizer.end_of_text_id,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
    return {"config.json": _encoded(config), "generation_config.json": _encoded(ids)}


def special_ids(tokenizer: Tokenizer) -> dict[str, Any]:
    """The ids of special tokens, as generation_config.json has them.

    The end of a text, whatever else ends an answer, and where a chat template ends the assistant's turn by
    another token, that one too.
    """
    ends = tokenizer.ends
    if tokenizer.chat_template is not None:
        with contextlib.suppress(UserError):  # a template that refuses this chat
            ends = chat_prompt(tokenizer, "Hello").stops
    first = tokenizer.end_of_text_id
    eos = [first, *sorted(ends - {first})]
    found: dict[str, Any] = {}
    for name in ("bos_token", "pad_token"):
        number = tokenizer.control_tokens.get(tokenizer.named_tokens.get(name, ""))
        if number is not None:
            found[f"{name}_id"] = number
    return {**found, "eos_token_id": eos if len(eos) > 1 else first}


def tokenizer_files(tokenizer: Tokenizer, context: int) -> dict[str, bytes]:
    """tokenizer.json and tokenizer_config.json, for AutoTokenizer; the chat template is in the second.

    See `Tokenizer.files_for_others`. context: most tokens of a text.
    """
    files = tokenizer.files_for_others()
    config = json.loads(files["tokenizer_config.json"])
    config.pop("answer_ends", None)  # generation_config.json has them
    # Text comes back as it was; transformers 4 would else take out spaces before signs.
    config |= {"model_max_length": context, "clean_up_tokenization_spaces": False}
    return {"tokenizer.json": files["tokenizer.json"], "tokenizer_config.json": _encoded(config)}


def _encoded(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n"
