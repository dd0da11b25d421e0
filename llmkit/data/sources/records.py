"""What a record of a source holds, and how it is taken out of bytes, JSON objects and table rows.

A candidate that holds nothing usable is no exception to the program: it becomes a LeftOut and is counted.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic_core import from_json

from llmkit.config import schema
from llmkit.data.sources.record_masks import (
    BESIDE_IDS,
    UnusableError,
    learned_ids,
    message_is_learned,
    numbers,
    shown,
)

MAX_RECORD_BYTES = 256 << 20
"""What a line, or a document of text, may have unpacked: it is in memory as a whole, and more than once."""

MOST_DIGITS = 4000
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_UTF16 = "it is UTF-16, as its mark or its zero bytes show: convert the file (iconv -f UTF-16 -t UTF-8)"

EMPTY = "empty"
NOT_UTF8 = "not UTF-8"
BROKEN_JSON = "broken JSON"
NO_OBJECT = "no JSON object"
NO_FIELD = "without the field"
NO_STRING = "no string"
NO_MESSAGES = "no list of {role, content}"
NO_PROMPT = "answers without a prompt"
SAME_ANSWERS = "with the same answer chosen and rejected"
TOO_LONG = f"longer than {MAX_RECORD_BYTES >> 20} MiB"
TOOL_CALLS = "chat with tool calls"
MENDED = "mended with U+FFFD"
SPELLED_END = "with the letters of end-of-text at the end, which stay text (take them away there)"
"""Keys of the counters; all but the last two are candidates left out."""

Messages = tuple[dict[str, str], ...]
Policy = Literal["skip", "replace", "raise"]
"""What to do with a bad candidate (data.errors)."""


class Text(NamedTuple):
    """A text; every token of it is learned."""

    text: str


class Chat(NamedTuple):
    """A conversation: messages of {"role": ..., "content": ...}, all strings.

    context: numbers of the assistant's messages that are not learned.
    """

    messages: tuple[dict[str, str], ...]
    context: frozenset[int] = frozenset()


class Pair(NamedTuple):
    """A prompt, which may be empty, and the completion that is learned."""

    prompt: str
    completion: str


class Ids(NamedTuple):
    """Token ids.

    ids: (count,) int64, not yet compared with a vocabulary. learned: (count,) bool; None = all.
    """

    ids: np.ndarray
    learned: np.ndarray | None = None


class Preference(NamedTuple):
    """Two answers to the same prompt, both of the same type; only the answers are learned."""

    chosen: Chat | Pair
    rejected: Chat | Pair


Record = Text | Chat | Pair | Preference | Ids


class LeftOut(NamedTuple):
    """A candidate that is not used. reason: key of the counters. detail: what exactly is wrong with it."""

    reason: str
    detail: str


class Extracted(NamedTuple):
    """What became of a candidate. mended: U+FFFD stands for bytes that are no text."""

    record: Record | LeftOut
    mended: bool = False


def left_out_summary(left_out: Counter[str]) -> str:
    """Counters as one line: "5 documents left out: 3 empty, 2 not UTF-8"; empty if there are none."""
    used = (MENDED, SPELLED_END)
    reasons = {reason: count for reason, count in left_out.most_common() if reason not in used}
    parts = []
    if reasons:
        total = sum(reasons.values())
        listed = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
        parts.append(f"{total} document{'s' * (total > 1)} left out: {listed}")
    parts += [f"{left_out[what]} {what}" for what in used if left_out[what]]
    return "; ".join(parts)


def fields_of(spec: schema.Source) -> dict[str, str]:
    """The fields that a record of this source is made of: the setting that names each, and the name."""
    settings = {
        "text": ("text_field",),
        "chat": ("messages_field",),
        "prompt_completion": ("prompt_field", "completion_field"),
        "preference": ("chosen_field", "rejected_field"),
        "ids": ("ids_field",),
    }[spec.record]
    return {setting: getattr(spec, setting) for setting in settings}


def extras_of(spec: schema.Source) -> tuple[str, ...]:
    """Fields that are read, too, where a record has them."""
    return {"ids": BESIDE_IDS, "preference": (spec.prompt_field,)}.get(spec.record, ())


class Extractor:
    """Takes records out of candidates. mend: put U+FFFD for what is no UTF-8 instead of leaving it out."""

    def __init__(self, spec: schema.Source, mend: bool) -> None:
        self._mend = mend
        self._fields, self._extras = tuple(fields_of(spec).values()), extras_of(spec)
        makers: dict[str, Callable[..., Record]] = {
            "text": self._text,
            "chat": self._chat,
            "prompt_completion": self._pair,
            "preference": self._preference,
            "ids": self._ids,
        }
        self._make = makers[spec.record]
        self._mended = False

    def from_text(self, content: bytes) -> Extracted:
        """The record of a document that is all text."""
        return self._extract(lambda: self._text(self._decode(content)))

    def from_json(self, line: bytes) -> Extracted:
        """The record of a line of JSON."""
        return self._extract(lambda: self._make(*self._json_values(line)))

    def from_values(self, values: tuple[Any, ...]) -> Extracted:
        """The record of a table's row. values: of `fields_of` and `extras_of`, text as str or as bytes."""
        return self._extract(lambda: self._make(*values))

    def _extract(self, make: Callable[[], Record]) -> Extracted:
        self._mended = False
        try:
            return Extracted(make(), self._mended)
        except UnusableError as error:
            return Extracted(LeftOut(error.reason, error.detail))

    def _decode(self, content: bytes) -> str:
        content = content.removeprefix(b"\xef\xbb\xbf")  # the mark that some programs begin UTF-8 with
        head = content[:64]
        if content.startswith(_UTF16_MARKS) or 3 * head.count(0) > len(head):
            raise UnusableError(NOT_UTF8, _UTF16)
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            if not self._mend:
                raise UnusableError(NOT_UTF8, f"byte {error.start} is no UTF-8") from None
        self._mended = True
        return content.decode(errors="replace")

    def _json_values(self, line: bytes) -> list[Any]:
        text = self._decode(line)
        try:
            record = _parsed(text)
        except (ValueError, RecursionError) as error:
            if not text.strip():
                raise UnusableError(EMPTY, "the line is empty") from None
            if "\0" in text:  # which JSON cannot hold; a line of UTF-16 may begin in the middle of a letter
                raise UnusableError(NOT_UTF8, _UTF16) from None
            raise UnusableError(BROKEN_JSON, f"broken JSON ({error})") from None
        if not isinstance(record, dict):
            raise UnusableError(NO_OBJECT, f"the line holds {text.strip()[:40]!r:.40}, not a JSON object")
        for field in self._fields:
            if field not in record:
                only = f"; it has {', '.join(map(repr, record))}"[:100] if record else ""
                raise UnusableError(NO_FIELD, f"the record has no field {field!r}{only}")
        return [*(record[field] for field in self._fields), *map(record.get, self._extras)]

    def _string(self, value: Any, what: str) -> str:
        if isinstance(value, bytes):
            value = self._decode(value)
        if not isinstance(value, str):
            raise UnusableError(NO_STRING, f"{what} is {shown(value)}, not a string")
        if value.isascii():
            return value
        try:
            value.encode()
        except UnicodeEncodeError:
            if not self._mend:
                detail = f"{what} holds a lone surrogate, which no UTF-8 can hold"
                raise UnusableError(NOT_UTF8, detail) from None
            self._mended = True
            value = "".join("\ufffd" if "\ud800" <= char <= "\udfff" else char for char in value)
        return value

    def _text(self, value: Any) -> Text:
        text = self._string(value, f"field {self._fields[0]!r}")
        if not text or text.isspace():
            raise UnusableError(EMPTY, "there is no text")
        return Text(text)

    def _pair(self, prompt: Any, completion: Any) -> Pair:
        first, second = (
            self._string(value, f"field {field!r}")
            for field, value in zip(self._fields, (prompt, completion), strict=True)
        )
        if not second.strip():
            raise UnusableError(EMPTY, "the completion is empty")
        return Pair(first, second)

    def _chat(self, value: Any) -> Chat:
        messages, context = self._messages(value, self._fields[0])
        if not any(message["content"].strip() for message in messages):
            raise UnusableError(EMPTY, "no message has any text")
        return Chat(messages, context)

    def _messages(self, value: Any, field: str) -> tuple[Messages, frozenset[int]]:
        """The messages of a list, and the numbers of the assistant's that are not learned."""
        if not isinstance(value, list):
            raise UnusableError(NO_MESSAGES, f"field {field!r} is {shown(value)}, not a list of messages")
        messages = tuple(self._message(message, f"{field}[{i}]") for i, message in enumerate(value))
        learned = [message_is_learned(message, f"{field}[{i}]") for i, message in enumerate(value)]
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        return messages, frozenset(i for i in answers if not learned[i])

    def _preference(self, chosen: Any, rejected: Any, prompt: Any) -> Preference:
        answers = dict(zip(self._fields, (chosen, rejected), strict=True))
        if any(isinstance(answer, list) for answer in answers.values()) or isinstance(prompt, list):
            return self._preferred_chat(answers, prompt)
        texts = [self._string(answer, f"field {field!r}") for field, answer in answers.items()]
        if prompt is None:
            detail = f"there is no field {self._extras[0]!r}, the prompt of both answers (it may be empty)"
            raise UnusableError(NO_PROMPT, detail)
        asked = self._string(prompt, f"field {self._extras[0]!r}")
        if not all(text.strip() for text in texts):
            raise UnusableError(EMPTY, "an answer is empty")
        return self._different(*(Pair(asked, text) for text in texts))

    def _preferred_chat(self, answers: dict[str, Any], prompt: Any) -> Preference:
        """Two chats: of both, only what follows the prompt is learned.

        The prompt is a list of messages; or a string, before answers that begin with the assistant; else it
        is what both chats begin with.
        """
        found = []
        for field, answer in answers.items():
            if isinstance(answer, str | bytes) and isinstance(prompt, list):
                answer = [{"role": "assistant", "content": answer}]
            found.append(self._messages(answer, field))
        (chosen, _), (rejected, _) = found
        before: Messages = ()
        if isinstance(prompt, list):
            before, _ = self._messages(prompt, self._extras[0])
        elif prompt is not None and all(each[:1] and each[0]["role"] == "assistant" for each, _ in found):
            before = ({"role": "user", "content": self._string(prompt, f"field {self._extras[0]!r}")},)
        known = len(before)
        if not known:
            pairs = zip(chosen, rejected, strict=False)
            shorter = min(len(chosen), len(rejected))
            known = next((i for i, (one, other) in enumerate(pairs) if one != other), shorter)
        chats = []
        for messages, context in found:
            whole = (*before, *messages)
            earlier = {i for i, each in enumerate(whole[:known]) if each["role"] == "assistant"}
            chats.append(Chat(whole, frozenset(earlier | {i + len(before) for i in context})))
        return self._different(*chats)

    def _different(self, chosen: Chat | Pair, rejected: Chat | Pair) -> Preference:
        if chosen == rejected:
            raise UnusableError(SAME_ANSWERS, "the chosen and the rejected answer are the same")
        return Preference(chosen, rejected)

    def _message(self, message: Any, what: str) -> dict[str, str]:
        if not isinstance(message, dict):
            raise UnusableError(NO_MESSAGES, f"{what} is {shown(message)}, not {{role, content}}")
        for name in ("tool_calls", "function_call"):
            if message.get(name):  # without them, the model would learn a turn that was never so
                raise UnusableError(TOOL_CALLS, f"{what} has {name}, of which no tokens are made")
        if not {"role", "content"} <= message.keys():
            hint = "; rename from to role and value to content" if {"from", "value"} <= message.keys() else ""
            detail = f"{what} has the fields {', '.join(message)}, not role and content{hint}"
            raise UnusableError(NO_MESSAGES, detail)
        return {key: self._string(message[key], f"{what}.{key}") for key in ("role", "content")}

    def _ids(self, value: Any, *beside: Any) -> Ids:
        ids = numbers(value, f"field {self._fields[0]!r}")
        ids, learned = learned_ids(ids, dict(zip(self._extras, beside, strict=True)))
        if not len(ids):
            raise UnusableError(EMPTY, "there are no ids")
        return Ids(ids, learned)


def _parsed(text: str) -> Any:
    """What a JSON text holds; raises what json raises, which is the slower parser."""
    try:
        return from_json(text)
    except ValueError:
        return json.loads(text, parse_int=_number)


def _number(digits: str) -> int | float:
    """A whole number; Python makes none of more than 4,300 digits, which are infinite for our purposes."""
    return int(digits) if len(digits) <= MOST_DIGITS else float(digits)
