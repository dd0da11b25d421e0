"""The JSON documents that clients get: https://platform.openai.com/docs/api-reference."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from llmkit.data.tokens.tokenizer import Tokenizer
from llmkit.generation.session import Token


@dataclass
class Part:
    """A part of an answer, or all of it.

    offset: characters of the answer that precede it. tokens: with their log-probabilities, each with the
    number of characters that were complete before it; None where they are not asked for. end: why the answer
    ends with this part.
    """

    index: int
    text: str = ""
    tokens: list[tuple[Token, int]] | None = None
    end: Literal["stop", "length"] | None = None

    def add(self, other: Part) -> None:
        """Makes one part of two, the other being the later one."""
        self.text += other.text
        self.end = other.end
        if other.tokens is not None:
            self.tokens = [*(self.tokens or []), *other.tokens]


@dataclass(frozen=True)
class Usage:
    """Tokens of the prompts, and of the answers, those that ended them included."""

    prompt: int
    completion: int

    @property
    def document(self) -> dict[str, int]:
        """As clients get it."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
        }


@dataclass(frozen=True)
class Reply:
    """Writes the documents of one request.

    chat: of /v1/chat/completions, else of /v1/completions.
    """

    chat: bool
    model: str
    tokenizer: Tokenizer
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, answers: Sequence[Part], usage: Usage) -> dict[str, Any]:
        """The document of all answers."""
        choices = [self._choice(each) | self._content(each.text, whole=True) for each in answers]
        return self._document("chat.completion", choices) | {"usage": usage.document}

    def begin(self, index: int) -> dict[str, Any]:
        """What precedes the parts of an answer in a chat: who speaks."""
        choice = self._choice(Part(index)) | {"delta": {"role": "assistant", "content": ""}}
        return self._document("chat.completion.chunk", [choice])

    def part(self, part: Part) -> dict[str, Any]:
        """The document of a part of one answer."""
        return self._document(
            "chat.completion.chunk", [self._choice(part) | self._content(part.text, whole=False)]
        )

    def usage(self, usage: Usage) -> dict[str, Any]:
        """The last document of a stream whose client asked for the numbers of tokens."""
        return self._document("chat.completion.chunk", []) | {"usage": usage.document}

    def _document(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": f"{'chatcmpl' if self.chat else 'cmpl'}-{self.id}",
            "object": kind if self.chat else "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }

    def _choice(self, part: Part) -> dict[str, Any]:
        logprobs = self._chat_logprobs if self.chat else self._completion_logprobs
        return {
            "index": part.index,
            "finish_reason": part.end,
            "logprobs": None if part.tokens is None else logprobs(part.tokens),
        }

    def _content(self, text: str, whole: bool) -> dict[str, Any]:
        if not self.chat:
            return {"text": text}
        if whole:
            return {"message": {"role": "assistant", "content": text, "refusal": None}}
        return {"delta": {"content": text} if text else {}}

    def _chat_logprobs(self, tokens: Sequence[tuple[Token, int]]) -> dict[str, Any]:
        content = [
            self._token(token.id, token.logprob)
            | {"top_logprobs": [self._token(id, logprob) for id, logprob in token.top]}
            for token, _ in tokens
        ]
        return {"content": content, "refusal": None}

    def _token(self, id: int, logprob: float | None) -> dict[str, Any]:
        found = self.tokenizer.bytes_of(id)
        return {
            "token": self.tokenizer.shown(id),
            "logprob": logprob,
            "bytes": None if found is None else list(found),
        }

    def _completion_logprobs(self, tokens: Sequence[tuple[Token, int]]) -> dict[str, Any]:
        return {
            "tokens": [self.tokenizer.shown(token.id) for token, _ in tokens],
            "token_logprobs": [token.logprob for token, _ in tokens],
            "top_logprobs": [self._alternatives(token) for token, _ in tokens],
            "text_offset": [offset for _, offset in tokens],
        }

    def _alternatives(self, token: Token) -> dict[str, float] | None:
        """The likeliest tokens by their text; of two with the same text the likelier one."""
        return {self.tokenizer.shown(id): logprob for id, logprob in reversed(token.top)} or None


def event(document: dict[str, Any]) -> bytes:
    """A document as an event of a stream (server-sent events, HTML Living Standard 9.2)."""
    return b"data: " + json.dumps(document).encode() + b"\n\n"


LAST_EVENT = b"data: [DONE]\n\n"
"""What ends a stream of OpenAI's API."""
