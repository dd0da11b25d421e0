"""The figures of the data benchmark as a Markdown page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.data_contenders import Contender
from benchmarks.data_corpus import END_OF_TEXT, LENGTH, ROWS, VOCAB_SIZE, Facts
from benchmarks.data_turn import START_BATCHES
from benchmarks.timing import reason
from llmkit import __version__

HEAD = (
    "contender", "data", "order", "gives", "Mtok per CPU-s: median (range)", "x llmkit", "Mtok/s wall",
    "Mtok in a window", "first batch ms", "CPU ms to start", "memory MB",
)  # fmt: skip
TEXT_COLUMNS = 4
BESIDE = (
    "contender", "before: Mtok per CPU-s", "now", "now / before, turn by turn: median (range)",
    "before: first batch ms", "now", "before: CPU ms to start", "now", "before: memory MB", "now",
)  # fmt: skip


@dataclass
class Outcome:
    """A contender and what its turns gave. before: the checkout that it is of, if another than this one.

    failed: why it has no figures.
    """

    key: str
    contender: Contender
    before: Path | None = None
    rounds: list[dict[str, Any]] = field(default_factory=list)
    failed: str | None = None

    @property
    def label(self) -> str:
        """Its key, with what tells it from the same contender of another checkout."""
        return f"{self.key}, before" if self.before else self.key

    def take(self, result: dict[str, Any]) -> None:
        """Adds what a turn left; the turn of a writer that went well leaves nothing."""
        if "missing" in result:
            self.failed = f"not installed ({result['missing']})"
        elif "failed" in result:
            why = reason(RuntimeError(result["failed"])).removeprefix("RuntimeError: ")
            self.failed = f"did not run: {why}"
        elif result:
            self.rounds.append(result)

    def rates(self) -> list[float]:
        """Mtok per CPU-second of each round."""
        return [each["tokens"] / each["cpu"] / 1e6 for each in self.rounds]


def page(outcomes: Sequence[Outcome], facts: Facts, conditions: Mapping[str, str], title: str) -> str:
    """The whole page. conditions: on what and when it was measured."""
    seen: dict[str, str] = {}
    for each in outcomes:
        for result in each.rounds:
            seen |= result["versions"]
    versions = ", ".join(f"{name} {version}" for name, version in sorted(seen.items()))
    lines = [f"# {title}", "", *(f"- {name}: {value}" for name, value in conditions.items())]
    lines += [f"- versions: llmkit {__version__}, {versions}"]
    lines += [
        f"- corpus: {facts.text_bytes / 1e6:.1f} MB in {facts.documents:,} documents, {facts.text_tokens:,} "
        f"tokens; the data that is read: {facts.tokens:,} tokens",
        "",
    ]
    sections = {
        "reading": ("Reading tokens", "own"),
        "live": ("Tokenizing while reading", "own-live"),
        "size": ("llmkit's loader over data of two sizes", "own-1x"),
    }
    for kind, (heading, base) in sections.items():
        chosen = [each for each in outcomes if each.contender.kind == kind and not each.before]
        if chosen:
            own = next((each for each in chosen if each.key == base and not each.failed), None)
            lines += [f"## {heading}", "", *_table(chosen, own), ""]
    if any(each.before for each in outcomes):
        lines += ["## Beside the commit before", "", *_comparison(outcomes), ""]
    return "\n".join([*lines, "## How to read this", "", *(f"- {note}" for note in NOTES)]) + "\n"


def _comparison(outcomes: Sequence[Outcome]) -> list[str]:
    """A row for each contender of both checkouts."""
    now = {each.key: each for each in outcomes if not each.before}
    rows = []
    for old in (each for each in outcomes if each.before):
        new = now[old.key]
        name = f"{old.contender.name} (`{old.key}`)"
        failed = new.failed or old.failed
        if failed:
            rows.append([name, failed.replace("|", "\\|"), *["-"] * (len(BESIDE) - 2)])
            continue
        ratios = [a / b for a, b in zip(new.rates(), old.rates(), strict=True)]
        cells = [_short(median(each.rates())) for each in (old, new)]
        cells.append(f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        for measure, factor in (("first", 1e3), ("start_cpu", 1e3), ("memory", 1e-6)):
            cells += [_middle(each, measure, factor) for each in (old, new)]
        rows.append([name, *cells])
    rule = ["---"] + ["--:"] * (len(BESIDE) - 1)
    return [f"| {' | '.join(cells)} |" for cells in (BESIDE, rule, *rows)]


def _table(outcomes: Sequence[Outcome], own: Outcome | None) -> list[str]:
    rule = ["---"] * TEXT_COLUMNS + ["--:"] * (len(HEAD) - TEXT_COLUMNS)
    rows = [_cells(each, own) for each in outcomes]
    return [f"| {' | '.join(cells)} |" for cells in (HEAD, rule, *rows)]


def _cells(each: Outcome, own: Outcome | None) -> list[str]:
    contender = each.contender
    cells = [contender.name, contender.data, contender.order]
    if each.failed or not each.rounds:
        reason = (each.failed or "no figures").replace("|", "\\|")
        return [*cells, reason, *["-"] * (len(HEAD) - TEXT_COLUMNS)]
    rates = each.rates()
    wall = median(result["tokens"] / result["wall"] / 1e6 for result in each.rounds)
    ratio = "-"
    if own is not None:
        ratio = f"{median(a / b for a, b in zip(rates, own.rates(), strict=True)):.2f}"
    return [
        *cells,
        each.rounds[0]["dtype"],
        f"{_short(median(rates))} ({_short(min(rates))} to {_short(max(rates))})",
        "1" if each is own else ratio,
        _short(wall),
        f"{median(result['tokens'] for result in each.rounds) / 1e6:.1f}",
        _middle(each, "first", 1e3),
        _middle(each, "start_cpu", 1e3),
        _middle(each, "memory", 1e-6),
    ]


def _middle(each: Outcome, name: str, factor: float) -> str:
    values = [result[name] * factor for result in each.rounds]
    return f"{median(values):.0f} ({min(values):.0f} to {max(values):.0f})"


def _short(value: float) -> str:
    """Three digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


NOTES = (
    f"A batch: {ROWS} rows of {LENGTH} inputs and as many labels on the host, int32 or int64 as the column "
    "'gives' says; what gives uint16 is widened to int32, since no embedding takes it. No model runs beside.",
    "A turn is a process of its own; the contenders take turns, A-B-C-A-B-C. The tables have the medians of "
    "the turns, with the least and the most in brackets.",
    "CPU-s: processor time of the process, its threads and its workers in the window. Where other programs "
    "use the machine wall time suffers more than this. 'x llmkit': Mtok per CPU-second as a multiple of "
    "llmkit's first row in the table, compared turn by turn.",
    f"A window opens after {START_BATCHES['reading']} batches, or {START_BATCHES['live']} where text is "
    "tokenized, so that threads and workers are under way, and ends when its tokens are there or the time is "
    "up; what was cut short has fewer 'Mtok in a window'. No window comes far past the half of a pass over "
    "the data, so that as much is read ahead at its end as at its beginning.",
    "First batch: wall time from opening the data, after the imports, to the first batch. CPU to start: "
    "until the window opens, so also what is done in advance, such as checksums. Readers of tokens have "
    "loaded no tokenizer; llmkit's is loaded before the clock starts. Those that tokenize load theirs after "
    "it.",
    "Memory: the most that is held beside what the imports took: anonymous and shared memory of the process "
    "and its workers, shared pages by their shares (Pss_Anon and Pss_Shmem of /proc/PID/smaps_rollup), "
    "watched after the window while batches are taken at the pace of a fast training step. Mapped files do "
    "not count.",
    "Every file is in the page cache; nothing comes over a network. Each format was written by the "
    "contender's own writer where it has one.",
    "Checked in every turn, in the first and the last batch: shapes, types, labels one further than inputs, "
    "ids of the vocabulary, rows that the corpus has. llmkit checks a checksum of every block that it "
    "reads first; of the peers none does, as set up here.",
    f"Text: sources of Python's library and of the installed packages, cut into documents of log-normal "
    f"length; a byte-level BPE of up to {VOCAB_SIZE:,} tokens trained on a part of it. Texts with "
    f"{END_OF_TEXT} in them are left out, since tokenizers differ in what they make of it.",
    "Orders: 'buffer' shuffles among what the buffer holds; 'global' is a permutation of all rows.",
)
