"""Records to token ids and loss targets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from xxhash import xxh64_hexdigest

from llmkit.data.sources.records import EMPTY, Chat, Ids, LeftOut, Pair, Record, Text
from llmkit.data.tokens.chat import CHATML, ChatTemplate, RefusedError
from llmkit.data.tokens.tokenizer import Tokenizer
from llmkit.errors import UserError

REFUSED = "refused by the chat template"
NO_TARGETS = "without words to learn"
"""Reasons to leave a record out; counters of what was read use them as keys."""


class Encoded(NamedTuple):
    """The ids of a record.

    tokens: (count,) int32, without end-of-text. targets: (count,) bool, which of them the loss counts; None =
    all. text_bytes: UTF-8 bytes of the text that is to be learned, by which bits per byte are counted.
    end_is_target: whether the end-of-text that will follow is one.
    """

    tokens: np.ndarray
    targets: np.ndarray | None
    text_bytes: int
    end_is_target: bool = True


class RecordEncoder:
    """Encodes records; cheap to send to another process.

    Of ids that end in end-of-text one is taken away, as every record gets one where it is stored.

    chat_template: Jinja template of chats; default: the tokenizer's, else ChatML.
    """

    def __init__(self, tokenizer: Tokenizer, chat_template: str | None = None) -> None:
        self.tokenizer = tokenizer
        self.chat_template = chat_template or tokenizer.chat_template or CHATML

    def __reduce__(self) -> tuple[Any, ...]:
        return RecordEncoder, (self.tokenizer, self.chat_template)

    @property
    def key(self) -> str:
        """Hash of what decides the ids and targets of records, chats among them."""
        parts = [self.tokenizer.hash, self.chat_template, *map(str, sorted(self._variables.items()))]
        return xxh64_hexdigest("\0".join(parts).encode())

    def encode(
        self,
        records: Sequence[Record],
        threads: bool = False,
        place: Callable[[int], str] = "record {}".format,
    ) -> list[Encoded | LeftOut]:
        """Ids and targets of each record, in order; LeftOut for one that has nothing to learn.

        threads: spread the texts over the process's cores. place: where the record with this index comes
        from, for messages. Raises UserError for ids beyond the vocabulary and a template that is no Jinja.
        """
        texts = [record.text for record in records if isinstance(record, Text)]
        ids = iter(self.tokenizer.encode_batch(texts, threads) if texts else ())
        found: list[Encoded | LeftOut] = []
        for number, record in enumerate(records):
            match record:
                case Text(text):
                    found.append(_whole(next(ids), _utf8_size(text)))
                case Chat(messages):
                    found.append(self._chat(messages))
                case Pair(prompt, completion):
                    text = prompt + completion
                    found.append(self._spans(text, [(len(prompt), len(text))], []))
                case Ids(given):
                    tokens = self._checked(given, number, place)
                    found.append(_whole(tokens, self.tokenizer.count_bytes(tokens)))
        return found

    @property
    def _variables(self) -> dict[str, str]:
        return {**self.tokenizer.named_tokens, "eos_token": self.tokenizer.end_of_text}

    @cached_property
    def _template(self) -> ChatTemplate:
        # Where text may spell control tokens, none has to be told apart.
        controls = () if self.tokenizer.control_tokens_in_text else self.tokenizer.control_tokens
        return ChatTemplate(self.chat_template, controls, self._variables)

    def _chat(self, messages: Sequence[dict[str, str]]) -> Encoded | LeftOut:
        try:
            rendered = self._template.render(messages)
        except RefusedError as error:
            return LeftOut(REFUSED, f"the chat template refuses the chat: {error}")
        return self._spans(rendered.text, rendered.assistant, rendered.controls)

    def _spans(
        self, text: str, spans: list[tuple[int, int]], controls: list[tuple[int, int]]
    ) -> Encoded | LeftOut:
        tokens, targets = self.tokenizer.encode_spans(text, spans, controls)
        if not targets.any():
            return LeftOut(NO_TARGETS, "no token of the record is to be learned")
        learned = sum(_utf8_size(text[start:end]) for start, end in spans)
        return Encoded(tokens, targets, learned, bool(targets[-1]))

    def _checked(self, given: np.ndarray, number: int, place: Callable[[int], str]) -> np.ndarray:
        wrong = given[(given < 0) | (given >= self.tokenizer.vocab_size)]
        if wrong.size:
            raise UserError(
                f"{place(number)}: holds the token id {wrong[0]}, but the ids of data.tokenizer go from 0 to "
                f"{self.tokenizer.vocab_size - 1}; were the ids made with another tokenizer?"
            )
        ended = given.size > 0 and given[-1] == self.tokenizer.end_of_text_id
        return (given[:-1] if ended else given).astype(np.int32)


def text_of(record: Record) -> str:
    """The words of a record, to train a tokenizer on; empty for ids."""
    match record:
        case Text(text):
            return text
        case Chat(messages):
            return "\n".join(message["content"] for message in messages)
        case Pair(prompt, completion):
            return prompt + completion
    return ""


def _whole(tokens: np.ndarray, text_bytes: int) -> Encoded | LeftOut:
    return Encoded(tokens, None, text_bytes) if tokens.size else LeftOut(EMPTY, "the text has no tokens")


def _utf8_size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())
