"""Records to token ids and loss targets.

The chat of a user who says "hi" and an assistant who says "yo", in ChatML by a tokenizer that has its two
control tokens, with S for <|im_start|> and E for <|im_end|>:

    text     S user \\n hi E \\n S assistant \\n yo E \\n
    targets  0 0    0  0  0 0  0 0         0  1  1 1

and the end-of-text that follows is a target, too. What asks for the answer has the same ids as when a model
is asked: no token stands for characters on both sides of its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from xxhash import xxh64_hexdigest

from llmkit.data.sources.records import EMPTY, Chat, Ids, Preference, PromptCompletion, Record, Skipped, Text
from llmkit.data.tokens.chat import CHATML, ChatTemplate, Rendered
from llmkit.data.tokens.control_tokens import Span
from llmkit.data.tokens.tokenizer import Tokenizer
from llmkit.data.tokens.turns import RefusedError

REFUSED = "refused by the chat template"
NO_TARGETS = "without words to learn"
UNKNOWN_IDS = "with token ids outside the vocabulary"
NO_ASSISTANT = "without a message of the role assistant"
PAIR_TOO_LONG = "longer than data.sequence_length"
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
    """Encodes records; cheap to send to another process. Chats by the tokenizer's template, else by ChatML.

    Where records are stored, an end-of-text stands before and after each: those that a record has itself at
    both ends are taken away.

    pair_length: tokens of each sequence of a pair; only for preferences.
    """

    def __init__(self, tokenizer: Tokenizer, pair_length: int | None = None) -> None:
        self.tokenizer, self.pair_length = tokenizer, pair_length
        self.chat_template = tokenizer.chat_template or CHATML

    def __reduce__(self) -> tuple[Any, ...]:
        return RecordEncoder, (self.tokenizer, self.pair_length)

    def key_of(self, record: str) -> str:
        """Hash of what decides the ids and targets of records; record: their kind in a source's settings."""
        if record == "text" and not self.tokenizer.control_tokens_in_text:
            return self.tokenizer.hash
        template = self.template_key if record in ("chat", "preference") else ""
        if record == "chat" and self._template.ending:  # before, their chats of several turns were left out
            template += "\0closed"
        parts = [f"version {VERSION}", self.tokenizer.hash, template]
        if record == "preference":
            parts.append(f"pairs {self.pair_length}")
        return xxh64_hexdigest("\0".join(parts).encode())

    @property
    def template_key(self) -> str:
        """Hash of the chat template and of what it sees beside the messages."""
        parts = [self.chat_template, *map(str, sorted(self.tokenizer.named_tokens.items()))]
        return xxh64_hexdigest("\0".join(parts).encode())

    def encode(self, records: Sequence[Record], threads: bool = False) -> list[Encoded | Skipped]:
        """Ids and targets of each record, in order; Skipped for one that cannot be used.

        threads: spread the texts over the process's cores. Raises UserError for a template that is no Jinja.
        """
        texts = [record.text for record in records if isinstance(record, Text)]
        ids = iter(self.tokenizer.encode_batch(texts, threads) if texts else ())
        found: list[Encoded | Skipped] = []
        for record in records:
            match record:
                case Text(text):
                    found.append(self._finish(next(ids), None, self.tokenizer.text_bytes(text)))
                case Chat(messages, context):
                    found.append(self._chat(messages, context))
                case PromptCompletion(prompt, completion):
                    text, size = prompt + completion, self.tokenizer.text_bytes(completion)
                    spans = [(len(prompt), len(text))]
                    found.append(self._finish(*self._encode_spans(Rendered(text, [], spans), spans), size))
                case Preference():
                    found.append(self._preference(record))
                case Ids(given, learned):
                    found.append(self._ids(given, learned))
        return found

    def spells_end(self, record: Record) -> bool:
        """Whether what is learned ends in text that only spells end-of-text, as its author marked ends."""
        match record:
            case Text(text) | PromptCompletion(_, text):
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
        return self._encode_spans(self._template.render(messages, asks=True), ())[0]

    def end_of_turn(self, messages: Sequence[dict[str, str]]) -> tuple[int | None, str]:
        """What ends the assistant's answer to `messages`: a control token, and a text that comes before it.

        None and "" where there is none.
        Raises RefusedError where the chat template does not take the chat.
        """
        text, controls, _ = self._template.end_of_turn(messages)
        if not controls and self.tokenizer.control_tokens_in_text:
            controls = self.tokenizer.spelled_controls(text)
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
        controls = [] if self.tokenizer.control_tokens_in_text else self.tokenizer.control_tokens
        return ChatTemplate(self.chat_template, controls, self.tokenizer.named_tokens)

    def _chat(self, messages: Sequence[dict[str, str]], context: frozenset[int]) -> Encoded | Skipped:
        """context: indices of messages of the assistant that are not to be learned."""
        answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        if not answers:
            return _no_assistant(messages)
        if not any(messages[index]["content"].strip() for index in answers if index not in context):
            return Skipped(NO_TARGETS, "no message of the assistant that is to be learned has any text")
        try:
            rendered = self._without_end(self._template.render(messages))
        except RefusedError as error:
            return Skipped(REFUSED, f"the chat template refuses the chat: {error}")
        text, controls, spans = rendered
        learned = spans
        if len(spans) == len(answers):
            learned = [span for span, index in zip(spans, answers) if index not in context]
            said = [messages[index]["content"] for index in answers if index not in context]
            size = sum(map(self.tokenizer.text_bytes, said))
        elif context:
            detail = f"it marks {len(spans)} parts of {len(answers)} messages of the assistant"
            return Skipped(REFUSED, f"the chat template hides which message is not to be learned: {detail}")
        else:
            size = sum(self.tokenizer.text_bytes(text[start:end]) for start, end in spans)
            size -= sum(len(text[a:b].encode()) for a, b in controls if any(s <= a < e for s, e in spans))
        return self._finish(*self._encode_spans(rendered, learned), size)

    def _preference(self, record: Preference) -> Encoded | Skipped:
        """A pair as a document of 2 L - 1 tokens at a sequence length of L, so that a row of 2 L + 1 tokens
        is a pair. With "." for end-of-text, L = 4 and the answers "ab" and "x", that row is `.ab..x...`:
        tokens 0 to L are inputs and labels of the chosen sequence, tokens L to 2 L those of the rejected
        one.

        Skipped where a sequence does not fit: an answer without its end is another answer.
        """
        length = self.pair_length
        assert length is not None, "an encoder of pairs needs their length"
        chosen, rejected = self.encode(record)
        if isinstance(chosen, Skipped) or isinstance(rejected, Skipped):
            return chosen if isinstance(chosen, Skipped) else rejected
        longest = 1 + max(chosen.tokens.size, rejected.tokens.size)
        if longest > length:
            detail = f"the prompt with an answer takes {longest} tokens, more than {length}"
            return Skipped(PAIR_TOO_LONG, detail)
        tokens = np.full(2 * length, self.tokenizer.end_of_text_id, dtype=np.int32)
        targets = np.zeros(2 * length, dtype=bool)
        for start, half in ((0, chosen), (length, rejected)):
            end = start + half.tokens.size
            tokens[start:end] = half.tokens
            targets[start:end] = True if half.targets is None else half.targets
            targets[end] = half.end_is_target
        return Encoded(tokens[:-1], targets[:-1], chosen.text_bytes + rejected.text_bytes, bool(targets[-1]))

    def _without_end(self, rendered: Rendered) -> Rendered:
        """The chat without white space behind an end-of-text, which ends it where it is stored."""
        text = rendered.text.rstrip()
        meant = self.tokenizer.control_tokens_in_text or any(end == len(text) for _, end in rendered.controls)
        if not (meant and text.endswith(self.tokenizer.end_of_text)):
            return rendered
        spans = [(start, min(end, len(text))) for start, end in rendered.assistant if start < len(text)]
        return Rendered(text, rendered.controls, spans)

    def _encode_spans(self, rendered: Rendered, learned: Sequence[Span]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of a text, (count,) int32, and which of them are learned, (count,) bool.

        No token stands for characters on both sides of where the assistant's words begin or end. learned:
        some of these spans.
        """
        cuts = sorted({bound for span in rendered.assistant for bound in span} - {0, len(rendered.text)})
        parts = self.tokenizer.encode_parts(rendered.text, cuts, rendered.controls)
        starts = {start for start, end in learned if start < end}
        targets = np.repeat([start in starts for start in (0, *cuts)], [part.size for part in parts])
        return np.concatenate(parts), targets

    def _ids(self, given: np.ndarray, learned: np.ndarray | None) -> Encoded | Skipped:
        wrong = given[(given < 0) | (given >= self.tokenizer.vocab_size)]
        if wrong.size:
            return Skipped(
                UNKNOWN_IDS,
                f"holds the token id {wrong[0]}, but the ids of data.tokenizer go from 0 to "
                f"{self.tokenizer.vocab_size - 1}: were the ids made with another tokenizer?",
            )
        tokens = given.astype(np.int32)
        size = self.tokenizer.count_bytes(tokens if learned is None else tokens[learned])
        return self._finish(tokens, learned, size)

    def _finish(self, tokens: np.ndarray, targets: np.ndarray | None, text_bytes: int) -> Encoded | Skipped:
        """Without end-of-text at both ends; the first one at the end may be a target."""
        end_of_text, first, last = self.tokenizer.end_of_text_id, 0, tokens.size
        while first < last and tokens[first] == end_of_text:
            first += 1
        while first < last and tokens[last - 1] == end_of_text:
            last -= 1
        if first == last:
            return Skipped(EMPTY, "the text has no tokens")
        if targets is None:
            return Encoded(tokens[first:last], None, text_bytes)
        end_is_target = bool(targets[min(last, targets.size - 1)])
        if not (end_is_target or targets[first:last].any()):
            return Skipped(NO_TARGETS, "no token of the record is to be learned")
        return Encoded(tokens[first:last], targets[first:last], text_bytes, end_is_target)


def _no_assistant(messages: Sequence[dict[str, str]]) -> Skipped:
    roles = sorted({message["role"] for message in messages})
    other = next((name for name in OTHER_NAMES if name in roles), None)
    reason = NO_ASSISTANT if other is None else f"{NO_ASSISTANT} (rename the role {other} to it)"
    return Skipped(reason, f"no message has the role assistant, the roles are {', '.join(roles):.80}")


def text_of(record: Record) -> str:
    """The words of a record, to train a tokenizer on; empty for ids."""
    match record:
        case Text(text):
            return text
        case Chat(messages, _):
            return "\n".join(message["content"] for message in messages)
        case PromptCompletion(prompt, completion):
            return prompt + completion
        case Preference(chosen, rejected):
            return f"{text_of(chosen)}\n{text_of(rejected)}"
    return ""
