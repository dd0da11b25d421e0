"""What a request asks of the model: one `Ask` for each answer."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from llmkit.data.tokens.tokenizer import Tokenizer
from llmkit.errors import UserError
from llmkit.generation.sampling import Sampling
from llmkit.prompts import Prompt, messages_prompt, text_prompt
from llmkit.serve.bodies import Body, ChatBody, CompletionBody
from llmkit.serve.errors import ApiError

DEFAULT_TOKENS = 16
"""Of /v1/completions, as OpenAI has it; an answer in a chat may take what is left of the context."""


@dataclass(frozen=True)
class Ask:
    """One answer to make. max_new_tokens: 0 = none, where only the prompt is to be echoed. stops: strings
    that end it. logprobs: see `generation.session.Request`. scored_from: the first id of the prompt whose
    log-probability is wanted, too; None = of none."""

    prompt: Prompt
    max_new_tokens: int
    sampling: Sampling
    stops: Sequence[str] = ()
    logprobs: int | None = None
    scored_from: int | None = None


class Reader:
    """Makes asks of requests.

    context: most tokens of a prompt with its answer. most_new: most tokens of an answer; None = what the
    context has room for. scores: whether log-probabilities of prompts can be had.
    """

    def __init__(
        self, tokenizer: Tokenizer, context: int, most_new: int | None = None, scores: bool = False
    ) -> None:
        self.tokenizer, self.context, self.most_new, self.scores = tokenizer, context, most_new, scores
        self._known = frozenset(tokenizer.known_ids.tolist())

    def asks(self, body: Body) -> list[Ask]:
        """The answers that a request is for, `n` of each prompt one after the other.

        Raises ApiError where a prompt is none of this model, or does not fit into its context.
        """
        seed = secrets.randbelow(2**62) if body.seed is None else body.seed
        samplings = [
            Sampling(
                body.temperature, body.top_k, body.top_p, body.repetition_penalty, (seed + number) % 2**63
            )
            for number in range(body.n)
        ]
        return [
            Ask(prompt, self._most_new(body, prompt), sampling, body.stops, body.alternatives, scored_from)
            for prompt, scored_from in self._prompts(body)
            for sampling in samplings
        ]

    def _prompts(self, body: Body) -> list[tuple[Prompt, int | None]]:
        """The prompts, each with its `Ask.scored_from`."""
        if isinstance(body, ChatBody):
            return [(self._chat(body), None)]
        assert isinstance(body, CompletionBody)
        scored = body.echo and body.logprobs is not None
        if scored and not self.scores:
            raise ApiError(
                "this model gives no log-probabilities of its prompt; leave out echo or logprobs",
                param="logprobs",
                code="unsupported_parameter",
            )
        # A text stands behind an end-of-text, which is no part of what is echoed.
        return [(self._prompt(each), int(isinstance(each, str)) if scored else None) for each in body.prompts]

    def _prompt(self, given: str | list[int]) -> Prompt:
        """A prompt of text, which opens a document, or of ids, which are taken as they are."""
        if isinstance(given, str):
            try:
                return text_prompt(self.tokenizer, given)
            except UserError as error:
                raise ApiError(f"prompt: {error}", param="prompt") from error
        unknown = next((token for token in given if token not in self._known), None)
        if unknown is not None:
            raise ApiError(f"prompt: {unknown} is no token id of this model", param="prompt")
        return Prompt(self.tokenizer.decode(given), given, self.tokenizer.ends)

    def _chat(self, body: ChatBody) -> Prompt:
        if self.tokenizer.chat_template is None:
            raise ApiError(
                "this model has no chat template, as it was not trained on chats; use /v1/completions",
                param="messages",
                code="unsupported_endpoint",
            )
        try:
            return messages_prompt(self.tokenizer, [message.as_record for message in body.messages])
        except UserError as error:
            why = error.__cause__ or error
            raise ApiError(f"the chat template refuses the messages: {why}", param="messages") from error

    def _most_new(self, body: Body, prompt: Prompt) -> int:
        """Most tokens of the answer. Raises ApiError where what is asked for does not fit."""
        name, asked = _asked(body)
        here = "messages" if isinstance(body, ChatBody) else "prompt"
        room = self.context - len(prompt.ids)
        if room < (1 if asked is None else asked):
            wanted = "" if asked is None else f", and {asked} are asked for as its answer ({name})"
            raise ApiError(
                f"this model's maximum context length is {self.context} tokens; the {here} has "
                f"{len(prompt.ids)}{wanted}",
                param=here if room < 1 or asked is None else name,
                code="context_length_exceeded",
            )
        if asked is not None and self.most_new is not None and asked > self.most_new:
            raise ApiError(f"{name} is {asked}, and this server allows {self.most_new} at most", param=name)
        if asked is None:
            asked = room if isinstance(body, ChatBody) else DEFAULT_TOKENS
        return min(asked, room, self.most_new or room)


def _asked(body: Body) -> tuple[str, int | None]:
    """The parameter that limits the answer, and its value."""
    if isinstance(body, ChatBody) and body.max_completion_tokens is not None:
        return "max_completion_tokens", body.max_completion_tokens
    assert isinstance(body, (ChatBody, CompletionBody))
    return "max_tokens", body.max_tokens
