"""Where the assistant's turns are in a rendered chat, for templates that do not mark them.

With a template that writes "U:" or "A:" before what is said and "." behind it, the messages "hi", "yo", "ok"
and "go" become "U:hi.A:yo.U:ok.A:go.". The second is what "U:hi.A:yo.", of the first two, adds to "U:hi.A:",
of the first with the prompt that asks for an answer: the span (7, 10), "yo.". The fourth is (17, 20).
"""

from __future__ import annotations

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
    messages: Sequence[Message], output: str, render: Render, ending: str
) -> list[tuple[int, int]]:
    """(start, end) in `output` of each message of the role "assistant", in order.

    A turn is what the message adds to the prompt that asks for it. output: what the template writes for all
    the messages. ending: what it writes behind them only where the chat ends and no prompt follows.
    Raises RefusedError where a prompt is no beginning of the output, or the template refuses a part of the
    chat.
    """
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns:
        return []

    def unclosed(part: Sequence[Message], asks: bool) -> str:
        if not asks and len(part) == len(messages):
            return output.removesuffix(ending)
        text = render(part, asks)
        return text if asks else text.removesuffix(ending)

    try:
        spans = _find(messages, turns, output, unclosed, WINDOW)
    except RefusedError:  # what it writes for a turn may depend on all that precedes it
        if len(turns) <= WINDOW:
            raise
        spans = _find(messages, turns, output, unclosed, len(turns))
    if turns[-1] + 1 == len(messages):
        spans[-1] = (spans[-1][0], len(output))
    return spans


def _find(
    messages: Sequence[Message], turns: Sequence[int], output: str, render: Render, window: int
) -> list[tuple[int, int]]:
    """The spans of the turns at these indices.

    A turn is rendered behind the messages before the first one, and those from the first turn of its window
    on, of which a window holds `window`. All that is rendered must be in the output, right behind what was
    found before: so nothing depends on what lies further back.
    """
    head, first = messages[: turns[0]], turns[0]
    begin = shift = done = 0  # text[begin:] of the window is output[begin + shift:]
    spans: list[tuple[int, int]] = []

    def end_of(text: str, turn: int) -> int:
        """Where a text of this window ends in the output."""
        end = shift + len(text)
        known = text.startswith(output[:begin]) and output.startswith(text[begin:], begin + shift)
        if end < done or not known:
            raise _not_found(turn)
        return end

    for count, turn in enumerate(turns):
        if turn > 0:
            done = end_of(render([*head, *messages[first:turn]], True), turn)
        if count and count % window == 0:
            first, begin, shift = turn, spans[0][0], done - spans[0][0]
        answered = render([*head, *messages[first : turn + 1]], False)
        if turn == 0:
            done = _length_of_first_prompt(messages[0], answered, render)
        spans.append((done, end_of(answered, turn)))
        done = spans[-1][1]
    return spans


def _length_of_first_prompt(message: Message, answered: str, render: Render) -> int:
    """Characters of `answered`, which ends in a first message of the assistant, that come before its words.

    Many templates need a first message: how they ask is then seen behind this one.
    """
    asked, alone = render([message], True), render([message], False)
    prompt = asked[len(alone) :]
    if not asked.startswith(alone) or prompt not in answered:
        raise _not_found(0)
    return answered.index(prompt) + len(prompt)


def _not_found(turn: int) -> RefusedError:
    return RefusedError(
        f"what it writes for message {turn + 1} does not begin with its prompt for it, or changes with "
        "later messages, so that the assistant's words cannot be told apart; mark them in the template by "
        "{% generation %} and {% endgeneration %}"
    )
