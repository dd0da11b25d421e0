"""Random mixtures, resumed on random numbers of ranks, against one process that nothing stops.

    python -m tests.drills.data_fuzz --minutes 30 [--first 1000]

A case is a number: the same number is the same mixture, on any machine. Prints what differs, and how much was
tried. Exit code 1 where something differs.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections import Counter
from random import Random
from typing import Any, NamedTuple

from llmkit.config import schema
from llmkit.data.live.source import LiveSource
from llmkit.data.sources.records import PromptCompletion, Skipped
from tests.data.live.fakes import live
from tests.data.test_loader import Job
from tests.data.toy import ToyRows, toy

WORLDS = (1, 2, 3, 4, 6, 8)
RECORD_LENGTHS = (0, 1, 2, 6, 7, 8, 9, 15, 16, 17, 30)
"""Characters; rows have 8 tokens. 0 = a record that is skipped."""
WORKERS_EVERY = 25
"""Cases of which one tokenizes in processes of its own: they take a second to start."""


class Case(NamedTuple):
    """data: what a loader reads. starts: ranks and steps of each start of the run."""

    data: tuple[Any, schema.Data]
    batch_rows: int
    micro: int
    starts: list[tuple[int, int]]
    workers: int

    def __str__(self) -> str:
        return (
            f"{self.batch_rows} rows a step, micro-batches of {self.micro}, {self.workers} workers, "
            f"starts (ranks, steps) {self.starts}"
        )


def make(number: int) -> Case:
    """The case of that number."""
    draw = Random(number)
    characters = (chr(code) for code in itertools.count(0x4E00))  # each occurs once in a mixture
    sources: dict[str, Any] = {}
    epochs: dict[str, int] = {}
    for name in ("a", "b")[: draw.randint(0, 2)]:
        first = 1 + 20_000 * len(sources)
        sources[name] = ToyRows(draw.choice((40, 300, 4000)), first, draw.choice((0, 0, 5)))
    for name in ("v", "w", "x")[: draw.randint(0 if sources else 1, 3)]:
        limit = draw.choice((None, None, None, 1, 2))
        sources[name] = _live(draw, characters, limit)
        if limit is not None:
            epochs[name] = limit
    weights = {name: draw.choice((0.01, 0.3, 1.0, 3.0)) for name in sources}
    steps = sorted(draw.sample(range(2, 15), draw.choice((0, 0, 1, 2))))
    stages = [
        schema.Stage(step=step, weights={draw.choice([*sources]): draw.choice((0.1, 1.0, 4.0))})
        for step in steps
    ]
    data = toy(sources, weights, curriculum=stages, max_epochs=epochs, document_masks=draw.random() < 0.3)
    starts = [(draw.choice(WORLDS), draw.randint(1, 6)) for _ in range(draw.randint(1, 5))]
    workers = 1 if number % WORKERS_EVERY == WORKERS_EVERY - 1 else 0
    return Case(data, draw.randint(1, 9), draw.randint(1, 3), starts, workers)


def _live(draw: Random, characters: Any, max_epochs: int | None) -> LiveSource:
    """A source tokenized while training, of texts or of prompts with completions."""
    has_prompts = draw.random() < 0.3

    def record(length: int) -> str | PromptCompletion | Skipped:
        text = "".join(itertools.islice(characters, length))
        if not text:
            return Skipped("bad", "a record that is skipped")
        return PromptCompletion(text[: length // 3], text[length // 3 :]) if has_prompts else text

    splits = [
        [record(draw.choice(RECORD_LENGTHS)) for _ in range(draw.randint(0, 8))]
        for _ in range(draw.randint(1, 7))
    ]
    splits[0].append(record(3))
    return live(
        splits,
        lane_limit=draw.choice((1, 2, 3, 4, 6, 8)),
        window=draw.choice((1, 2, 3, 50)),
        heldout_every=draw.choice((0, 0, 3)),
        record="prompt_completion" if has_prompts else "text",
        max_epochs=max_epochs,
    )


def difference(case: Case) -> str:
    """How a run of several starts differs from one of one start on one rank; "" where it does not."""
    straight = Job(case.data, case.batch_rows, 1).run(1, sum(steps for _, steps in case.starts))
    job = Job(case.data, case.batch_rows, case.micro)
    resumed: list[Any] = []
    for world, steps in case.starts:
        resumed += job.run(world, steps, workers=case.workers)
    if len(resumed) != len(straight):
        return f"{len(straight)} steps on one rank, {len(resumed)} in several starts"
    other = [step for step, pair in enumerate(zip(straight, resumed, strict=True), 1) if pair[0] != pair[1]]
    return f"the rows of the steps {other} differ" if other else ""


def main() -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    options = parser.parse_args()
    end = time.monotonic() + 60.0 * options.minutes
    tried: Counter[str] = Counter()
    for number in itertools.count(options.first):
        if time.monotonic() >= end:
            break
        case = make(number)
        tried["cases"] += 1
        tried["starts"] += len(case.starts)
        tried["steps"] += sum(steps for _, steps in case.starts)
        if found := difference(case):
            tried["that differ"] += 1
            print(f"case {number}: {found}; {case}", flush=True)
    print(", ".join(f"{count:,} {what}" for what, count in tried.items()))
    return int(tried["that differ"] > 0)


if __name__ == "__main__":
    sys.exit(main())
