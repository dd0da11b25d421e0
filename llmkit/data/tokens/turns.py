"""Where the assistant's turns are in a rendered chat, for templates that do not mark them.

With a template that writes "U:" or "A:" before what is said and "." behind it, the messages "hi", "yo", "ok"
and "go" become "U:hi.A:yo.U:ok.A:go.". The second is what "U:hi.A:yo.", of the first two, adds to "U:hi.A:",
of the first with the prompt that asks for an answer: the span (7, 10), "yo.". The fourth is (17, 20).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence

Message = Mapping[str, str]
Render = Callable[[Sequence[Message], bool], str]
"""What a template writes for messages, with or without the prompt that asks the assistant to go on."""

WINDOW = 16
"""Turns that are found by rendering all that precedes them in their window, a prefix a turn. In a single
window the time grows with the square of the number of turns, in windows of a fixed size in proportion."""


class RefusedError(Exception):
    """A chat that the template does not take; the message says why."""


def find_turns(
    messages: Sequence[Message], output: str, render: Render, closing: Callable[[str], str]
) -> list[tuple[int, int]]:
    """(start, end) in `output` of each message of the role "assistant", in order.

    A turn is what the message adds to the prompt that asks for it. output: what the template writes for all
    the messages. closing: what it writes only at the end of a chat that no prompt follows, as the end of
    `output`, given what it writes with a prompt; asked for only where the turns are not found without it.
    Raises RefusedError where a prompt is no beginning of the output, or the template refuses a part of the
    chat.
    """
    try:
        return _find(messages, output, render)
    except RefusedError:
        ending = closing(render(messages, True))
        if not ending:
            raise

    def unclosed(part: Sequence[Message], asks: bool) -> str:
        text = render(part, asks)
        return text if asks else text.removesuffix(ending)

    spans = _find(messages, output.removesuffix(ending), unclosed)
    if messages[-1]["role"] == "assistant":
        spans[-1] = (spans[-1][0], len(output))
    return spans


def _find(messages: Sequence[Message], output: str, render: Render) -> list[tuple[int, int]]:
    """The same, for a template that writes nothing only because the chat ends."""
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if len(turns) > WINDOW:
        with contextlib.suppress(RefusedError):  # what it writes for a turn depends on all that precedes it
            return _by_windows(messages, turns, output, render)
    return _by_prefixes(messages, turns, output, render, whole=True)


def _by_prefixes(
    messages: Sequence[Message], turns: Sequence[int], output: str, render: Render, *, whole: bool
) -> list[tuple[int, int]]:
    """The turns at these indices. whole: `output` has no prompt at its end."""
    spans, done = [], 0
    for turn in turns:
        ends = whole and turn + 1 == len(messages)
        answered = output if ends else render(messages[: turn + 1], False)
        start = _prompt_length(messages, turn, answered, render)
        if start < done or not output.startswith(answered):
            raise _not_found(turn)
        done = len(answered)
        spans.append((start, done))
    return spans


def _by_windows(
    messages: Sequence[Message], turns: Sequence[int], output: str, render: Render
) -> list[tuple[int, int]]:
    """The same, from windows of turns that are rendered behind the messages before the first turn.

    Each window's text begins where that of the one before ends, and all together are the output: so nothing
    depends on what lies further back. Raises RefusedError where that is not so.
    """
    head = list(messages[: turns[0]])
    spans: list[tuple[int, int]] = []
    done = 0
    for first in range(0, len(turns), WINDOW):
        begin = turns[first]
        last = first + WINDOW >= len(turns)
        stop = len(messages) if last else turns[first + WINDOW]
        part = [*head, *messages[begin:stop]]
        text = render(part, not last)
        shifted = [len(head) + turn - begin for turn in turns[first : first + WINDOW]]
        found = _by_prefixes(part, shifted, text, render, whole=last)
        known = found[0][0] if first else 0
        if not output.startswith(text[known:], done):
            raise _not_found(begin)
        spans += [(done + start - known, done + end - known) for start, end in found]
        done += len(text) - known
    if done != len(output):
        raise _not_found(turns[-1])
    return spans


def _prompt_length(messages: Sequence[Message], turn: int, answered: str, render: Render) -> int:
    """Characters of `answered`, which ends in message `turn`, that come before the assistant's words."""
    if turn > 0:
        asked = render(messages[:turn], True)
        if answered.startswith(asked):
            return len(asked)
        raise _not_found(turn)
    # Many templates need a first message: how they ask is then seen behind this one.
    asked = render(messages[:1], True)
    alone = render(messages[:1], False)
    prompt = asked[len(alone) :]
    if not asked.startswith(alone) or prompt not in answered:
        raise _not_found(turn)
    return answered.index(prompt) + len(prompt)


def _not_found(turn: int) -> RefusedError:
    return RefusedError(
        f"what it writes for message {turn + 1} does not begin with its prompt for it, or changes with "
        "later messages, so that the assistant's words cannot be told apart; mark them in the template by "
        "{% generation %} and {% endgeneration %}"
    )
