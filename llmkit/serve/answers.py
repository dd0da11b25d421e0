"""The answers of a request, from the worker's thread to the server's event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from llmkit.data.tokens.tokenizer import Tokenizer
from llmkit.generation.text import Piece
from llmkit.serve.asks import Ask
from llmkit.serve.errors import ApiError
from llmkit.serve.replies import Part, Usage
from llmkit.serve.worker import Job, Scores, Worker


class Answers:
    """What a worker makes of some asks. Made in an event loop, where its methods are to be called.

    prompts: how many different prompts the asks have, each the same number of times. echo: each answer
    begins with its prompt. Raises ApiError where the worker takes no more.
    """

    def __init__(
        self, worker: Worker, tokenizer: Tokenizer, asks: Sequence[Ask], prompts: int, echo: bool = False
    ) -> None:
        self._tokenizer, self._asks, self._echo = tokenizer, asks, echo
        self._prompt_tokens = sum(len(ask.prompt.ids) for ask in asks[:: len(asks) // prompts])
        self._made = 0
        self._lengths = [len(ask.prompt.shown) if echo else 0 for ask in asks]  # in characters, so far
        self._works = asks[0].max_new_tokens > 0 or asks[0].scored_from is not None  # all asks are alike
        self._arrived: asyncio.Queue[tuple[int, Piece | Scores | ApiError]] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def emit(number: int, item: Piece | Scores | ApiError) -> None:
            loop.call_soon_threadsafe(self._arrived.put_nowait, (number, item))

        self._job = Job(asks, emit)
        if self._works:
            worker.submit(self._job)

    @property
    def usage(self) -> Usage:
        """The tokens so far."""
        return Usage(self._prompt_tokens, self._made)

    async def parts(self) -> AsyncIterator[Part]:
        """The answers piece by piece, those of all asks as they come, each up to a part with an `end`.

        Whoever leaves early cancels what is not made yet. Raises ApiError where the worker fails.
        """
        try:
            for number, ask in enumerate(self._asks):
                shown = ask.prompt.shown if self._echo else ""
                if not self._works:
                    yield Part(number, shown, end="length")
                elif shown and ask.scored_from is None:
                    yield Part(number, shown)
            left = len(self._asks) if self._works else 0
            while left:
                number, item = await self._arrived.get()
                if isinstance(item, ApiError):
                    raise item
                left -= item.end is not None
                yield self._scored(number, item) if isinstance(item, Scores) else self._part(number, item)
        finally:
            self._job.cancelled = True

    async def whole(self) -> list[Part]:
        """Each answer in one part. Raises ApiError where the worker fails."""
        answers = [Part(number) for number in range(len(self._asks))]
        async for part in self.parts():
            answers[part.index].add(part)
        return answers

    def cancel(self) -> None:
        """Ends what nobody waits for."""
        self._job.cancelled = True

    def _scored(self, number: int, scores: Scores) -> Part:
        """The prompt of an ask, with the log-probabilities of its tokens."""
        prompt, decoder = self._asks[number].prompt, self._tokenizer.stream()
        tokens, offset = [], 0
        for token in scores.tokens[self._asks[number].scored_from :]:
            tokens.append((token, offset))
            offset += len(decoder.push(token.id))
        return Part(number, prompt.shown, tokens, scores.end)

    def _part(self, number: int, piece: Piece) -> Part:
        self._made += 1
        tokens = None
        if self._asks[number].logprobs is not None:  # a token that is no part of the text has none
            tokens = [] if piece.token.end == "stop" else [(piece.token, self._lengths[number])]
        self._lengths[number] += len(piece.text)
        return Part(number, piece.text, tokens, piece.end)
