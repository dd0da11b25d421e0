"""Commands to try once a run has ended."""

from __future__ import annotations

import re
import shlex

import numpy as np

from llmkit.config.schema import Config, Source
from llmkit.data.inspect import printable
from llmkit.data.prepared import PreparedData
from llmkit.data.source import Source as DataSource
from llmkit.data.tokens.tokenizer import Tokenizer
from llmkit.errors import RunFault, UserError

PROMPT_TOKENS = 64
"""Tokens of a document in which a prompt is looked for."""
PROMPT_CHARACTERS = 100
"""What a prompt of the data may have to be suggested whole."""


def generate_options(config: Config, data: PreparedData) -> list[str]:
    """Options of `llmkit generate` that fit the data of a run."""
    chats = [is_of_chats(spec, data.tokenizer) for spec in config.data.sources]
    found = ["--chat --prompt 'Hello'"] if any(chats) else []
    if not all(chats):
        texts = [source for source, chat in zip(data.sources, chats, strict=True) if not chat]
        prompt = config.monitor.sample or next(filter(None, (_prompt(one, data) for one in texts)), "The")
        found.append(f"--prompt {shlex.quote(prompt)}")
    return found


def is_of_chats(spec: Source, tokenizer: Tokenizer) -> bool:
    """Whether the model is asked by a chat template after training on a source."""
    return spec.record == "chat" or (spec.record == "preference" and tokenizer.chat_template is not None)


def _prompt(source: DataSource, data: PreparedData) -> str:
    """A prompt of a source, or the first words of a document, held out if it can be; "" if none is there."""
    reader = source.heldout or source.stored
    if reader is None:
        return ""
    try:
        tokens = reader.read(1, min(reader.tokens, 1 + PROMPT_TOKENS))
        targets = reader.read_targets(1, 1 + tokens.size)
    except (UserError, RunFault):  # the run has ended well: that its files are gone by now is no fault of it
        return ""
    learned = 0 if targets is None or not targets.any() else int(targets.argmax())
    if learned:
        prompt = data.tokenizer.decode(tokens[:learned])
        if len(prompt) <= PROMPT_CHARACTERS and prompt == printable(prompt) and "\n" not in prompt:
            return prompt
    end = np.flatnonzero(tokens == data.tokenizer.end_of_text_id)
    text = data.tokenizer.decode(tokens[: end[0]] if end.size else tokens)
    words = re.match(r"\s*((?:[^\s\ufffd]+[ ]?){1,3})", text)
    return printable(words[1].strip())[:PROMPT_CHARACTERS] if words else ""
