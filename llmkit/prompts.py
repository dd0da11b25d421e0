"""What a model is asked: the ids that stood before its answers in training, and what ends an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmkit.data.tokens.encode import RecordEncoder
from llmkit.data.tokens.tokenizer import Tokenizer
from llmkit.data.tokens.turns import RefusedError
from llmkit.errors import UserError


@dataclass(frozen=True)
class Prompt:
    """shown: what stands before the answer, for people. ids: the prompt, which opens a document. stops: ids
    that end the answer. stop_texts: texts that end it, too."""

    shown: str
    ids: list[int]
    stops: frozenset[int]
    stop_texts: tuple[str, ...] = ()


def text_prompt(tokenizer: Tokenizer, text: str, control_tokens: bool = False) -> Prompt:
    """A text to go on with. control_tokens: those that it spells are meant.

    Raises UserError for a text that is no UTF-8.
    """
    ids = tokenizer.encode_with_controls(text) if control_tokens else tokenizer.encode(text)
    return Prompt(text, _opened(tokenizer, ids.tolist()), tokenizer.ends)


def chat_prompt(tokenizer: Tokenizer, question: str, system: str | None = None) -> Prompt:
    """A question to the assistant, as the tokenizer's chat template puts it. system: message before it.

    Raises UserError where the tokenizer has no template, or the template refuses the chat.
    """
    messages = [{"role": "user", "content": question}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return messages_prompt(tokenizer, messages)


def messages_prompt(tokenizer: Tokenizer, messages: Sequence[dict[str, str]]) -> Prompt:
    """A chat so far (`role` and `content` of each message) that the assistant is to go on with.

    Raises UserError as `chat_prompt`.
    """
    if tokenizer.chat_template is None:
        raise UserError(
            f"{tokenizer.origin}: has no chat template, as the run was not trained on chats; ask without "
            "--chat"
        )
    encoder = RecordEncoder(tokenizer)
    try:
        ids, (stop, stop_text) = encoder.prompt(messages), encoder.end_of_turn(messages)
    except RefusedError as error:
        raise UserError(
            f"{tokenizer.origin}: its chat template refuses the chat: {error}; ask in another way"
            + (", or without --system" if messages[0]["role"] == "system" else "")
        ) from error
    shown = "".join(f"{message['role']}: {message['content']}\n" for message in messages) + "assistant: "
    stops = tokenizer.ends if stop is None else tokenizer.ends | {stop}
    opened = ids.tolist()
    if tokenizer.opens_chats or not opened:
        opened = _opened(tokenizer, opened)
    return Prompt(shown, opened, stops, (stop_text,) if stop_text else ())


def _opened(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """The ids behind one of the tokens that begin a text."""
    first = tokenizer.opening_id
    start = next((place for place, id in enumerate(ids) if id != first), len(ids))
    return [first, *ids[start:]]
