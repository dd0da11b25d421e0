"""The answers of a request, from the worker's thread to the server's event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from llmkit.generation.text import Piece
from llmkit.serve.asks import Ask
from llmkit.serve.errors import ApiError
from llmkit.serve.replies import Part, Usage
from llmkit.serve.worker import Job, Worker


class Answers:
    """What a worker makes of some asks. Made in an event loop, where its methods are to be called.

    prompts: how many different prompts the asks have, each the same number of times. echo: each answer
    begins with its prompt. Raises ApiError where the worker takes no more.
    """

    def __init__(self, worker: Worker, asks: Sequence[Ask], prompts: int, echo: bool = False) -> None:
        self._asks, self._echo = asks, echo
        self._prompt_tokens = sum(len(ask.prompt.ids) for ask in asks[:: len(asks) // prompts])
        self._made = 0
        self._lengths = [len(ask.prompt.shown) if echo else 0 for ask in asks]  # in characters, so far
        self._arrived: asyncio.Queue[tuple[int, Piece | ApiError]] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def emit(number: int, item: Piece | ApiError) -> None:
            loop.call_soon_threadsafe(self._arrived.put_nowait, (number, item))

        self._job = Job(asks, emit)
        if self._generates:
            worker.submit(self._job)

    @property
    def _generates(self) -> bool:
        return self._asks[0].max_new_tokens > 0

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
                if not self._generates:
                    yield Part(number, shown, end="length")
                elif shown:
                    yield Part(number, shown)
            left = len(self._asks) if self._generates else 0
            while left:
                number, item = await self._arrived.get()
                if isinstance(item, ApiError):
                    raise item
                left -= item.end is not None
                yield self._part(number, item)
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

    def _part(self, number: int, piece: Piece) -> Part:
        self._made += 1
        tokens = None
        if self._asks[number].logprobs is not None:  # a token that is no part of the text has none
            tokens = [] if piece.token.end == "stop" else [(piece.token, self._lengths[number])]
        self._lengths[number] += len(piece.text)
        return Part(number, piece.text, tokens, piece.end)
