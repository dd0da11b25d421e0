"""Records taken out of bytes, JSON objects and table rows.

A record that cannot be used is no exception to the program: it becomes a Skipped and is counted.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from pydantic_core import from_json

from llmkit.config import schema
from llmkit.data.sources.record_masks import BESIDE_IDS, integers, learned_ids, message_is_learned, preview
from llmkit.data.sources.records import (
    EMPTY,
    Chat,
    Ids,
    Messages,
    Preference,
    PromptCompletion,
    Record,
    Skipped,
    Text,
    UnusableError,
)

NOT_UTF8 = "not UTF-8"
BROKEN_JSON = "broken JSON"
NO_OBJECT = "no JSON object"
NO_FIELD = "without the field"
NO_STRING = "no string"
NO_MESSAGES = "no list of {role, content}"
NO_PROMPT = "answers without a prompt"
SAME_ANSWERS = "with the same answer chosen and rejected"
TOOL_CALLS = "chat with tool calls"
"""Reasons to skip a record."""

MOST_DIGITS = 4000
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_UTF16 = "it is UTF-16, as its mark or its zero bytes show: convert the file (iconv -f UTF-16 -t UTF-8)"

Extracted = tuple[Record | Skipped, bool]
"""A record, or why there is none; and whether U+FFFD stands in it for bytes that are no text."""


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
    """Makes records. repair: put U+FFFD for what is no UTF-8, instead of skipping the record.

    >>> extractor = Extractor(schema.Source(type="jsonl", record="prompt_completion"), repair=False)
    >>> extractor.from_json(b'{"prompt": "2+2=", "completion": "4"}')
    (PromptCompletion(prompt='2+2=', completion='4'), False)
    >>> extractor.from_json(b'{"prompt": "2+2="}')[0].detail
    "the record has no field 'completion'; it has 'prompt'"
    """

    def __init__(self, spec: schema.Source, repair: bool) -> None:
        self._repair, self._repaired = repair, False
        self._fields, self._extras = tuple(fields_of(spec).values()), extras_of(spec)
        self._labels = [f"field {field!r}" for field in self._fields]
        makers: dict[str, Callable[..., Record]] = {
            "text": self._text,
            "chat": self._chat,
            "prompt_completion": self._prompt_completion,
            "preference": self._preference,
            "ids": self._ids,
        }
        self._make = makers[spec.record]

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
        self._repaired = False
        try:
            return make(), self._repaired
        except UnusableError as error:
            return error.skipped, False

    def _decode(self, content: bytes) -> str:
        content = content.removeprefix(b"\xef\xbb\xbf")  # the mark that some programs begin UTF-8 with
        head = content[:64]
        if content.startswith(_UTF16_MARKS) or 3 * head.count(0) > len(head):
            raise UnusableError(NOT_UTF8, _UTF16)
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            if not self._repair:
                raise UnusableError(NOT_UTF8, f"byte {error.start} is no UTF-8") from None
        self._repaired = True
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
            raise UnusableError(NO_STRING, f"{what} is {preview(value)}, not a string")
        if value.isascii():
            return value
        try:
            value.encode()
        except UnicodeEncodeError:
            if not self._repair:
                detail = f"{what} holds a lone surrogate, which no UTF-8 can hold"
                raise UnusableError(NOT_UTF8, detail) from None
            self._repaired = True
            value = "".join("\ufffd" if "\ud800" <= char <= "\udfff" else char for char in value)
        return value

    def _strings(self, *values: Any) -> list[str]:
        return [self._string(*each) for each in zip(values, self._labels, strict=True)]

    def _text(self, value: Any) -> Text:
        text = self._string(value, self._labels[0])
        if not text or text.isspace():
            raise UnusableError(EMPTY, "there is no text")
        return Text(text)

    def _prompt_completion(self, prompt: Any, completion: Any) -> PromptCompletion:
        record = PromptCompletion(*self._strings(prompt, completion))
        if not record.completion.strip():
            raise UnusableError(EMPTY, "the completion is empty")
        return record

    def _chat(self, value: Any) -> Chat:
        messages, context = self._messages(value, self._fields[0])
        if not any(message["content"].strip() for message in messages):
            raise UnusableError(EMPTY, "no message has any text")
        return Chat(messages, context)

    def _messages(self, value: Any, field: str) -> tuple[Messages, frozenset[int]]:
        """The messages of a list, and the indices of the assistant's that are not learned."""
        if not isinstance(value, list):
            raise UnusableError(NO_MESSAGES, f"field {field!r} is {preview(value)}, not a list of messages")
        messages = tuple(self._message(message, f"{field}[{i}]") for i, message in enumerate(value))
        learned = [message_is_learned(message, f"{field}[{i}]") for i, message in enumerate(value)]
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        return messages, frozenset(i for i in answers if not learned[i])

    def _preference(self, chosen: Any, rejected: Any, prompt: Any) -> Preference:
        if any(isinstance(value, list) for value in (chosen, rejected, prompt)):
            return self._preferred_chat(dict(zip(self._fields, (chosen, rejected), strict=True)), prompt)
        answers = self._strings(chosen, rejected)
        if prompt is None:
            detail = f"there is no field {self._extras[0]!r}, the prompt of both answers (it may be empty)"
            raise UnusableError(NO_PROMPT, detail)
        prompt = self._string(prompt, f"field {self._extras[0]!r}")
        if not all(answer.strip() for answer in answers):
            raise UnusableError(EMPTY, "an answer is empty")
        return self._different(*(PromptCompletion(prompt, answer) for answer in answers))

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
        shared = len(before)
        if not shared:
            pairs = zip(chosen, rejected, strict=False)
            shorter = min(len(chosen), len(rejected))
            shared = next((i for i, (one, other) in enumerate(pairs) if one != other), shorter)
        chats = []
        for messages, context in found:
            whole = (*before, *messages)
            earlier = {i for i, each in enumerate(whole[:shared]) if each["role"] == "assistant"}
            chats.append(Chat(whole, frozenset(earlier | {i + len(before) for i in context})))
        return self._different(*chats)

    def _different(self, chosen: Chat | PromptCompletion, rejected: Chat | PromptCompletion) -> Preference:
        if chosen == rejected:
            raise UnusableError(SAME_ANSWERS, "the chosen and the rejected answer are the same")
        return Preference(chosen, rejected)

    def _message(self, message: Any, what: str) -> dict[str, str]:
        if not isinstance(message, dict):
            raise UnusableError(NO_MESSAGES, f"{what} is {preview(message)}, not {{role, content}}")
        for name in ("tool_calls", "function_call"):
            if message.get(name):  # without them, the model would learn a turn that was never so
                raise UnusableError(TOOL_CALLS, f"{what} has {name}, of which no tokens are made")
        if not {"role", "content"} <= message.keys():
            hint = "; rename from to role and value to content" if {"from", "value"} <= message.keys() else ""
            detail = f"{what} has the fields {', '.join(message)}, not role and content{hint}"
            raise UnusableError(NO_MESSAGES, detail)
        return {key: self._string(message[key], f"{what}.{key}") for key in ("role", "content")}

    def _ids(self, value: Any, *beside: Any) -> Ids:
        ids = integers(value, self._labels[0])
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
