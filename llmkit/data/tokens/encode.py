"""Records to token ids and loss targets."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from xxhash import xxh64_hexdigest

from llmkit.data.sources.records import EMPTY, Chat, Ids, LeftOut, Pair, Preference, Record, Text
from llmkit.data.tokens.chat import CHATML, ChatTemplate, Rendered
from llmkit.data.tokens.marked import Span
from llmkit.data.tokens.pairs import join_pair
from llmkit.data.tokens.tokenizer import Tokenizer
from llmkit.data.tokens.turns import RefusedError

REFUSED = "refused by the chat template"
NO_TARGETS = "without words to learn"
UNKNOWN_IDS = "with token ids outside the vocabulary"
NO_ASSISTANT = "without a message of the role assistant"
"""Reasons to leave a record out; counters of what was read use them as keys."""

OTHER_NAMES = ("gpt", "model", "bot", "chatbot", "chatgpt", "bing", "bard", "ai")
"""What some collections of chats call the assistant."""

END_CHARACTERS = 200
"""Of a text, in which a spelled end-of-text is looked for: white space may follow it."""

VERSION = 5
"""Changes with anything that makes other ids, targets or sizes of records that are not plain text."""


class Encoded(NamedTuple):
    """The ids of a record.

    tokens: (count,) int32, without end-of-text at both ends. targets: (count,) bool, which of them the loss
    counts; None = all. text_bytes: UTF-8 bytes of the text that is to be learned, by which bits per byte are
    counted: of chats those of the messages, without what the template writes around them; control tokens are
    no text. end_is_target: whether the end-of-text that will follow is one.
    """

    tokens: np.ndarray
    targets: np.ndarray | None
    text_bytes: int
    end_is_target: bool = True


class RecordEncoder:
    """Encodes records; cheap to send to another process.

    Where records are stored, an end-of-text stands before and after each: those that a record has itself at
    both ends are taken away.

    chat_template: Jinja template of chats; default: the tokenizer's, else ChatML. pair_length: tokens of each
    sequence of a pair; only for preferences.
    """

    def __init__(
        self, tokenizer: Tokenizer, chat_template: str | None = None, pair_length: int | None = None
    ) -> None:
        self.tokenizer, self.pair_length = tokenizer, pair_length
        self.chat_template = chat_template or tokenizer.chat_template or CHATML

    def __reduce__(self) -> tuple[Any, ...]:
        return RecordEncoder, (self.tokenizer, self.chat_template, self.pair_length)

    def key_of(self, record: str) -> str:
        """Hash of what decides the ids and targets of records; record: their kind in a source's settings."""
        if record == "text" and not self.tokenizer.control_tokens_in_text:
            return self.tokenizer.hash
        if record == "preference":
            parts = [
                f"version {VERSION}",
                self.tokenizer.hash,
                self.template_key,
                f"pairs {self.pair_length}",
            ]
            return xxh64_hexdigest("\0".join(parts).encode())
        template = self.template_key if record == "chat" else ""
        if record == "chat" and self._template.closes:  # before, their chats of several turns were left out
            template += "\0closed"
        parts = [f"version {VERSION}", self.tokenizer.hash, template]
        return xxh64_hexdigest("\0".join(parts).encode())

    @property
    def template_key(self) -> str:
        """Hash of the chat template and of what it sees beside the messages."""
        parts = [self.chat_template, *map(str, sorted(self.tokenizer.named_tokens.items()))]
        return xxh64_hexdigest("\0".join(parts).encode())

    def encode(self, records: Sequence[Record], threads: bool = False) -> list[Encoded | LeftOut]:
        """Ids and targets of each record, in order; LeftOut for one that cannot be used.

        threads: spread the texts over the process's cores. Raises UserError for a template that is no Jinja.
        """
        texts = [record.text for record in records if isinstance(record, Text)]
        ids = iter(self.tokenizer.encode_batch(texts, threads) if texts else ())
        found: list[Encoded | LeftOut] = []
        for record in records:
            match record:
                case Text(text):
                    found.append(self._whole(next(ids), self.tokenizer.text_bytes(text)))
                case Chat(messages, context):
                    found.append(self._chat(messages, context))
                case Pair(prompt, completion):
                    text, size = prompt + completion, self.tokenizer.text_bytes(completion)
                    spans = [(len(prompt), len(text))]
                    found.append(self._partly(text, spans, spans, [], size))
                case Preference():
                    found.append(self._preference(record))
                case Ids(given, learned):
                    found.append(self._ids(given, learned))
        return found

    def spells_end(self, record: Record) -> bool:
        """Whether what is learned ends in text that only spells end-of-text, as its author marked ends."""
        match record:
            case Text(text) | Pair(_, text):
                said = text
            case Chat(messages, _):
                said = messages[-1]["content"]
            case Preference(chosen, rejected):
                return self.spells_end(chosen) or self.spells_end(rejected)
            case _:
                return False
        in_text = self.tokenizer.control_tokens_in_text
        return not in_text and said[-END_CHARACTERS:].rstrip().endswith(self.tokenizer.end_of_text)

    def prompt(self, messages: Sequence[dict[str, str]]) -> np.ndarray:
        """Ids of what asks the assistant to answer `messages`, (count,) int32, as they are in training.

        Raises RefusedError where the chat template does not take the chat.
        """
        rendered = self._template.prompt(messages)
        cuts = _cuts(rendered.assistant, rendered.text)
        return np.concatenate(self.tokenizer.encode_parts(rendered.text, cuts, rendered.controls))

    def end_of_turn(self, messages: Sequence[dict[str, str]]) -> tuple[int | None, str]:
        """What ends the assistant's answer to `messages`: a control token, and a text that comes before it.

        None and "" where there is none.
        Raises RefusedError where the chat template does not take the chat.
        """
        text, controls, _ = self._template.end_of_turn(messages)
        controls = controls or (
            self.tokenizer.spelled_controls(text) if self.tokenizer.control_tokens_in_text else []
        )
        if controls:
            start, end = controls[0]
            return self.tokenizer.control_tokens[text[start:end]], text[:start].strip()
        return None, text.strip()

    @property
    def splits_chats(self) -> bool:
        """Whether the chat template writes end-of-text between turns, where it begins another document."""
        roles = ("user", "assistant") * 2
        [found] = self.encode([Chat(tuple({"role": role, "content": "text"} for role in roles))])
        return isinstance(found, Encoded) and self.tokenizer.end_of_text_id in found.tokens

    @cached_property
    def _template(self) -> ChatTemplate:
        # Where text may spell control tokens, none has to be told apart.
        controls = () if self.tokenizer.control_tokens_in_text else self.tokenizer.control_tokens
        return ChatTemplate(self.chat_template, controls, self.tokenizer.named_tokens)

    def _chat(self, messages: Sequence[dict[str, str]], context: frozenset[int]) -> Encoded | LeftOut:
        answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        if not answers:
            return _no_assistant(messages)
        if not any(messages[number]["content"].strip() for number in answers if number not in context):
            return LeftOut(NO_TARGETS, "no message of the assistant that is to be learned has any text")
        try:
            rendered = self._without_end(self._template.render(messages))
        except RefusedError as error:
            return LeftOut(REFUSED, f"the chat template refuses the chat: {error}")
        text, controls, spans = rendered
        learned = spans
        if len(spans) == len(answers):
            kept = [(span, number) for span, number in zip(spans, answers) if number not in context]
            learned = [span for span, _ in kept]
            size = sum(self.tokenizer.text_bytes(messages[number]["content"]) for _, number in kept)
        elif context:
            detail = f"it marks {len(spans)} parts of {len(answers)} messages of the assistant"
            return LeftOut(REFUSED, f"the chat template hides which message is not to be learned: {detail}")
        else:
            size = sum(self.tokenizer.text_bytes(text[start:end]) for start, end in spans)
            size -= sum(len(text[a:b].encode()) for a, b in controls if any(s <= a < e for s, e in spans))
        return self._partly(text, spans, learned, controls, size)

    def _preference(self, record: Preference) -> Encoded | LeftOut:
        assert self.pair_length is not None, "an encoder of pairs needs their length"
        chosen, rejected = self.encode(record)
        if isinstance(chosen, LeftOut) or isinstance(rejected, LeftOut):
            return chosen if isinstance(chosen, LeftOut) else rejected
        return join_pair(chosen, rejected, self.pair_length, self.tokenizer.end_of_text_id)

    def _without_end(self, rendered: Rendered) -> Rendered:
        """The chat without white space behind an end-of-text, which ends it where it is stored."""
        text = rendered.text.rstrip()
        meant = self.tokenizer.control_tokens_in_text or any(end == len(text) for _, end in rendered.controls)
        if not (meant and text.endswith(self.tokenizer.end_of_text)):
            return rendered
        spans = [(start, min(end, len(text))) for start, end in rendered.assistant if start < len(text)]
        return Rendered(text, rendered.controls, spans)

    def _partly(
        self, text: str, spans: list[Span], learned: list[Span], controls: list[Span], text_bytes: int
    ) -> Encoded | LeftOut:
        """A text of which some spans are learned. spans: what a model says by itself, these among them."""
        cuts = _cuts(spans, text)
        parts = self.tokenizer.encode_parts(text, cuts, controls)
        starts = {start for start, end in learned if start < end}
        sizes = [part.size for part in parts]
        targets = np.repeat([start in starts for start in (0, *cuts)], sizes)
        return self._whole(np.concatenate(parts), text_bytes, targets)

    def _whole(
        self, tokens: np.ndarray, text_bytes: int, targets: np.ndarray | None = None
    ) -> Encoded | LeftOut:
        document = self._document(tokens, targets, text_bytes)
        if not document.tokens.size:
            return LeftOut(EMPTY, "the text has no tokens")
        if document.targets is not None and not (document.targets.any() or document.end_is_target):
            return LeftOut(NO_TARGETS, "no token of the record is to be learned")
        return document

    def _document(self, tokens: np.ndarray, targets: np.ndarray | None, text_bytes: int) -> Encoded:
        """Without end-of-text at both ends; the first one at the end may be a target."""
        end_of_text, first, last = self.tokenizer.end_of_text_id, 0, tokens.size
        while first < last and tokens[first] == end_of_text:
            first += 1
        while first < last and tokens[last - 1] == end_of_text:
            last -= 1
        if targets is None:
            return Encoded(tokens[first:last], None, text_bytes)
        end_is_target = bool(targets[min(last, targets.size - 1)])
        return Encoded(tokens[first:last], targets[first:last], text_bytes, end_is_target)

    def _ids(self, given: np.ndarray, learned: np.ndarray | None) -> Encoded | LeftOut:
        wrong = given[(given < 0) | (given >= self.tokenizer.vocab_size)]
        if wrong.size:
            return LeftOut(
                UNKNOWN_IDS,
                f"holds the token id {wrong[0]}, but the ids of data.tokenizer go from 0 to "
                f"{self.tokenizer.vocab_size - 1}: were the ids made with another tokenizer?",
            )
        tokens = given.astype(np.int32)
        size = self.tokenizer.count_bytes(tokens if learned is None else tokens[learned])
        return self._whole(tokens, size, learned)


def _cuts(spans: Sequence[Span], text: str) -> list[int]:
    """The characters at which the spans, which are in order, begin and end."""
    return sorted({place for span in spans for place in span} - {0, len(text)})


def _no_assistant(messages: Sequence[dict[str, str]]) -> LeftOut:
    roles = sorted({message["role"] for message in messages})
    other = next((name for name in OTHER_NAMES if name in roles), None)
    reason = NO_ASSISTANT if other is None else f"{NO_ASSISTANT} (rename the role {other} to it)"
    return LeftOut(reason, f"no message has the role assistant, the roles are {', '.join(roles):.80}")


def text_of(record: Record) -> str:
    """The words of a record, to train a tokenizer on; empty for ids."""
    match record:
        case Text(text):
            return text
        case Chat(messages, _):
            return "\n".join(message["content"] for message in messages)
        case Pair(prompt, completion):
            return prompt + completion
        case Preference(chosen, rejected):
            return f"{text_of(chosen)}\n{text_of(rejected)}"
    return ""
