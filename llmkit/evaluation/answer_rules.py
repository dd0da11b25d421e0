"""How a task of lm-eval wants answers to be written: its generation_kwargs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from llmkit.errors import UserError
from llmkit.generation.sampling import Sampling

MAX_NEW_TOKENS = 256
"""Tokens of an answer where the task says nothing, as in lm-eval."""
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names of the largest length of an answer; the first one counts."""
SAMPLING = ("temperature", "top_k", "top_p", "repetition_penalty")
"""Names of `Sampling` that a task may use."""


class AnswerRules(NamedTuple):
    """stops: strings that end an answer. sampling: arguments of `Sampling`."""

    max_new_tokens: int
    stops: list[str]
    sampling: dict[str, float]


def read_rules(settings: Mapping[str, Any], context_length: int) -> AnswerRules:
    """What generation_kwargs mean to a model that can see so many tokens.

    Raises UserError for what is not known here or cannot be done.
    """
    asked = dict(settings)
    until = asked.pop("until", None) or []
    stops = [until] if isinstance(until, str) else list(until)
    lengths = [asked.pop(name) for name in LENGTHS if asked.get(name) is not None]
    most = int(lengths[0]) if lengths else MAX_NEW_TOKENS
    samples = bool(asked.pop("do_sample", float(asked.get("temperature") or 0.0) > 0.0))
    sampling = {name: asked.pop(name) for name in SAMPLING if asked.get(name) is not None}
    if unknown := sorted(name for name, value in asked.items() if value is not None):
        raise UserError(f"generation_kwargs of a task: {unknown[0]} is not known here; leave it out")
    if not 0 < most < context_length:
        raise UserError(
            f"a task asks for answers of {most} tokens, and the model can see {context_length}; set "
            "max_gen_toks in the generation_kwargs of the task"
        )
    sampling = {"temperature": 1.0, **sampling} if samples else {"temperature": 0.0}
    Sampling(**sampling)  # raises for values out of range
    return AnswerRules(most, stops, sampling)
