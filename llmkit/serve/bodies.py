"""The JSON documents that clients send, checked: https://platform.openai.com/docs/api-reference.

A parameter that would change the answer and is not implemented is refused unless it has the value that
changes nothing; no parameter is ignored that has an effect.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from llmkit.serve.errors import ApiError

MOST_CHOICES = 16
MOST_PROMPTS = 64
MOST_STOPS = 16
MOST_ALTERNATIVES = 20
"""Bounds of `n`, of the prompts of a request, of its stop strings and of `top_logprobs`."""

NO_EFFECT = frozenset(
    {"user", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"}
)
"""Parameters that do not change what a model answers."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none",),
    "tools": ([],),
}
"""Parameters that are not implemented -> the values that ask for nothing."""

_STRICT = ConfigDict(strict=True, extra="forbid", frozen=True)
Stop = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Ids = list[Annotated[int, Field(ge=0)]]


class StreamOptions(BaseModel):
    """include_usage: the last event has the numbers of tokens. Without effect: include_obfuscation."""

    model_config = _STRICT
    include_usage: bool = False
    include_obfuscation: bool = False


class Body(BaseModel):
    """What both kinds of request have. top_k, repetition_penalty: beyond OpenAI's API, as of `Sampling`."""

    model_config = _STRICT
    model: str
    n: int = Field(1, ge=1, le=MOST_CHOICES)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] = []
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    temperature: float = Field(1.0, ge=0.0, le=100.0)
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    top_k: int = Field(0, ge=0)
    repetition_penalty: float = Field(1.0, ge=1e-3, le=1e3)

    @property
    def stops(self) -> list[str]:
        """The stop strings."""
        return [self.stop] if isinstance(self.stop, str) else self.stop

    @property
    def alternatives(self) -> int | None:
        """How many of the likeliest tokens to give beside each token, with log-probabilities; None: none."""
        raise NotImplementedError


class CompletionBody(Body):
    """The body of /v1/completions."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=MOST_PROMPTS)] | Annotated[
        Ids, Field(min_length=1)
    ] | Annotated[list[Annotated[Ids, Field(min_length=1)]], Field(min_length=1, max_length=MOST_PROMPTS)]
    max_tokens: int | None = Field(None, ge=0)
    logprobs: int | None = Field(None, ge=0, le=MOST_ALTERNATIVES)
    echo: bool = False

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt, as text or as ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if all(isinstance(each, int) for each in self.prompt):
            return [self.prompt]  # type: ignore[list-item]
        return self.prompt  # type: ignore[return-value]

    @property
    def alternatives(self) -> int | None:
        """See `Body.alternatives`."""
        return self.logprobs


class TextPart(BaseModel):
    """A part of a message's content."""

    model_config = _STRICT
    type: Literal["text"]
    text: str


class Message(BaseModel):
    """A message of a chat; one that a reply had can be sent back as it is."""

    model_config = _STRICT
    role: str = Field(min_length=1, max_length=64)
    content: str | list[TextPart]

    @model_validator(mode="before")
    @classmethod
    def _without_null(cls, given: Any) -> Any:
        return _without_null(given) if isinstance(given, dict) else given

    @property
    def as_record(self) -> dict[str, str]:
        """The message as chat templates read it."""
        parts = self.content if isinstance(self.content, list) else []
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in parts)
        return {"role": self.role, "content": content}


class ChatBody(Body):
    """The body of /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1, max_length=4096)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MOST_ALTERNATIVES)

    @property
    def alternatives(self) -> int | None:
        """See `Body.alternatives`."""
        return self.top_logprobs if self.logprobs else None


AnyBody = TypeVar("AnyBody", bound=Body)


def read_body(kind: type[AnyBody], data: bytes) -> AnyBody:
    """The request in a body of HTTP. Raises ApiError that names the parameter that is wrong."""
    try:
        found = json.loads(data, parse_constant=_not_json)
    except (ValueError, RecursionError) as error:
        raise ApiError(f"the body is no valid JSON: {error}") from None
    if not isinstance(found, dict):
        raise ApiError("the body must be a JSON object")
    given = {name: value for name, value in _without_null(found).items() if name not in NO_EFFECT}
    for name in [name for name in given if name in NEUTRAL and name not in kind.model_fields]:
        if (value := given.pop(name)) not in NEUTRAL[name]:
            allowed = " or ".join(json.dumps(each) for each in NEUTRAL[name])
            raise ApiError(
                f"{name} is {json.dumps(value):.80}, which this server does not implement; leave it out, or "
                f"send {allowed}",
                param=name,
                code="unsupported_parameter",
            )
    if unknown := [name for name in given if name not in kind.model_fields]:
        raise ApiError(
            f"{unknown[0][:80]!r} is no parameter that this server knows; leave it out",
            param=unknown[0][:80],
            code="unknown_parameter",
        )
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = ".".join(str(part) for part in first["loc"] if _is_place(part))
        got = "" if first["type"] == "missing" else f" (it is {_shown(given, first['loc'][0])})"
        raise ApiError(f"{path}: {first['msg']}{got}", param=path) from None


def _without_null(found: dict[str, Any]) -> dict[str, Any]:
    """Clients send null for what they leave out."""
    return {name: value for name, value in found.items() if value is not None}


def _not_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number in JSON")


def _is_place(part: str | int) -> bool:
    """Whether a part of pydantic's location is a key or an index, not a branch of a union."""
    return isinstance(part, int) or (part.isidentifier() and part not in ("str", "int"))


def _shown(given: dict[str, Any], name: str | int) -> str:
    return f"{json.dumps(given.get(str(name))):.80}"
