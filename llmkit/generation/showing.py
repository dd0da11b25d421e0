"""Answers as `llmkit generate` prints them: as text, or as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from llmkit.data.tokens.tokenizer import Tokenizer
from llmkit.generation.prompt_file import Messages
from llmkit.generation.sampling import Sampling
from llmkit.generation.text import Completion
from llmkit.prompts import Prompt


@dataclass(frozen=True)
class Task:
    """One answer to make. given: the prompt as it was written. sample: its number among those of a prompt."""

    given: str | Messages
    prompt: Prompt
    sample: int
    sampling: Sampling


def texts(tasks: Sequence[Task], answers: Iterable[tuple[int, Completion]]) -> Iterator[str]:
    """Each prompt with its answer, in order, as the answers grow."""
    found: dict[int, Completion] = {}
    current = shown = 0
    if tasks:
        yield tasks[0].prompt.shown
    for number, answer in answers:
        found[number] = answer
        while current in found:
            if fresh := found[current].text[shown:]:
                yield fresh
            shown = len(found[current].text)
            if found[current].end is None:
                break
            del found[current]
            current, shown = current + 1, 0
            yield "\n" if current == len(tasks) else f"\n\n{tasks[current].prompt.shown}"


def json_lines(
    tasks: Sequence[Task], answers: Iterable[tuple[int, Completion]], tokenizer: Tokenizer
) -> Iterator[str]:
    """A JSON object a line for each answer, in order."""
    done: dict[int, Completion] = {}
    current = 0
    for number, answer in answers:
        if answer.end is not None:
            done[number] = answer
        while current in done:
            yield json.dumps(_row(tasks[current], done.pop(current), tokenizer), ensure_ascii=False) + "\n"
            current += 1


def _row(task: Task, answer: Completion, tokenizer: Tokenizer) -> dict[str, Any]:
    """An answer as JSON."""
    key = "prompt" if isinstance(task.given, str) else "messages"
    row: dict[str, Any] = {key: task.given, "sample": task.sample, "text": answer.text}
    row["tokens"] = [token.id for token in answer.tokens if token.end != "stop"]
    row["finish_reason"] = answer.end
    if answer.tokens[0].logprob is not None:
        row["logprobs"] = [
            {
                **_scored(token.id, token.logprob, tokenizer),
                "top": [_scored(id, logprob, tokenizer) for id, logprob in token.top],
            }
            for token in answer.tokens
        ]
    return row


def _scored(id: int, logprob: float | None, tokenizer: Tokenizer) -> dict[str, Any]:
    return {"id": id, "text": tokenizer.shown(id), "logprob": logprob}
