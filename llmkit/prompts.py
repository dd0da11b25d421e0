"""What a model is asked: the ids that stood before its answers in training, and what ends an answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from llmkit.data.tokens.encode import RecordEncoder
from llmkit.data.tokens.tokenizer import Tokenizer
from llmkit.data.tokens.turns import RefusedError
from llmkit.errors import UserError


@dataclass(frozen=True)
class Prompt:
    """shown: what stands before the answer, for people. ids: the prompt, which opens a document. stops: ids
    that end the answer. stop_text: text that ends it, too; "" = none."""

    shown: str
    ids: list[int]
    stops: frozenset[int]
    stop_text: str = ""


def text_prompt(tokenizer: Tokenizer, text: str, control_tokens: bool = False) -> Prompt:
    """A text to go on with. control_tokens: those that it spells are meant.

    Raises UserError for a text that is no UTF-8.
    """
    ids = tokenizer.encode_with_controls(text) if control_tokens else tokenizer.encode(text)
    return Prompt(text, _opened(tokenizer, ids), frozenset({tokenizer.end_of_text_id}))


def chat_prompt(tokenizer: Tokenizer, question: str, system: str | None = None) -> Prompt:
    """A question to the assistant, as the tokenizer's chat template puts it. system: message before it.

    Raises UserError where the tokenizer has no template, or the template refuses the chat.
    """
    if tokenizer.chat_template is None:
        raise UserError(
            f"{tokenizer.origin}: has no chat template, as the run was not trained on chats; ask without "
            "--chat"
        )
    messages = [{"role": "user", "content": question}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    encoder = RecordEncoder(tokenizer)
    try:
        ids, (stop, stop_text) = encoder.prompt(messages), encoder.end_of_turn(messages)
    except RefusedError as error:
        raise UserError(
            f"{tokenizer.origin}: its chat template refuses the chat: {error}; ask in another way"
            + (", or without --system" if system is not None else "")
        ) from error
    shown = "".join(f"{message['role']}: {message['content']}\n" for message in messages) + "assistant: "
    stops = frozenset({tokenizer.end_of_text_id} if stop is None else {tokenizer.end_of_text_id, stop})
    return Prompt(shown, _opened(tokenizer, ids), stops, stop_text)


def _opened(tokenizer: Tokenizer, ids: np.ndarray) -> list[int]:
    """The ids behind one end-of-text, as documents begin."""
    found, end = ids.tolist(), tokenizer.end_of_text_id
    while found and found[0] == end:
        del found[0]
    return [end, *found]


def until(texts: Iterator[str], stop: str) -> Iterator[str]:
    """The texts up to `stop`, which is not given out; what may be its beginning is held back. "" = all."""
    held = ""
    for text in texts:
        held += text
        before, found, _ = held.partition(stop) if stop else (held, "", "")
        if found:
            yield before
            return
        kept = next((n for n in range(len(stop) - 1, 0, -1) if before.endswith(stop[:n])), 0)
        if given := before[: len(before) - kept]:
            yield given
        held = before[len(before) - kept :]
    if held:
        yield held
