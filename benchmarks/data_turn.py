"""One turn of a contender of the data benchmark, in a process of its own."""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import importlib.util
import itertools
import json
import mmap
import os
import resource
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.data_contenders import Contender, Pair, find
from benchmarks.data_corpus import LENGTH, ROWS, read_facts
from llmkit import proc

START_BATCHES = {"reading": 64, "size": 64, "live": 32}
"""Before the window opens, so that threads and workers are under way and what is read ahead is read."""
WATCH_BATCHES, WATCH_SECONDS = 256, 5.0
"""What is read at most while memory is looked at, after the window."""
SAMPLE_SECONDS, STEP_SECONDS = 0.005, 0.004
PIECE_TOKENS = 32
"""A row must have a run of so many tokens of the corpus."""
DISTRIBUTIONS = (
    "numpy", "torch", "datasets", "pyarrow", "tokenizers", "tiktoken", "zstandard", "litdata",
    "mosaicml-streaming", "grain",
)  # fmt: skip


def run() -> None:
    """What the process does; its workers do not get to see this module, as it imports more than they need."""
    main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # not every library's workers end with an ordinary exit


def main(arguments: list[str]) -> None:
    """Writes a data set, or measures a contender.

    arguments: write or measure, contender, folder of the corpus, folder of the data set, file for one JSON
    object that says what was measured or why it could not be, tokens, seconds.
    """
    what, key, corpus, place, result, tokens, seconds = arguments
    outcome: dict[str, Any]
    try:
        contender = find(key)
        missing = [name for name in contender.needs if importlib.util.find_spec(name) is None]
        if missing:
            outcome = {"missing": missing[0]}
        elif what == "write":
            contender.write(Path(corpus), Path(place))
            outcome = {}
        else:
            outcome = measure(contender, Path(corpus), Path(place), int(tokens), float(seconds))
    except Exception as error:
        outcome = {"failed": f"{type(error).__name__}: {error}"}
    Path(result).write_text(json.dumps(outcome))


def measure(contender: Contender, corpus: Path, place: Path, tokens: int, seconds: float) -> dict[str, Any]:
    """Batches up to `tokens` tokens or `seconds` seconds, after a start that is accounted for by itself."""
    warm(corpus if place == corpus else place)
    open_batches = contender.load(corpus, place)
    gc.collect()
    base, cpu, begin = memory(), cpu_seconds(), time.perf_counter()
    batches = iter(open_batches())
    first = next(batches)
    latency = time.perf_counter() - begin
    for _ in range(START_BATCHES[contender.kind] - 1):
        next(batches)
    start_cpu = cpu_seconds() - cpu
    check(first, contender.kind, corpus)

    delivered, last = 0, first
    cpu, begin = cpu_seconds(), time.perf_counter()
    while delivered < tokens and time.perf_counter() - begin < seconds:
        last = next(batches)
        delivered += last[0].numel()
    wall, cpu = time.perf_counter() - begin, cpu_seconds() - cpu
    children = len(proc.descendants(os.getpid()))
    check(last, contender.kind, corpus)
    return {
        "tokens": delivered,
        "wall": wall,
        "cpu": cpu,
        "first": latency,
        "start_cpu": start_cpu,
        "memory": peak_memory(batches, min(WATCH_BATCHES, delivered // (4 * ROWS * LENGTH))) - base,
        "dtype": str(first[0].dtype).removeprefix("torch."),
        "children": children,
        "sums": [int(first[0].sum()), int(last[0].sum())],
        "versions": versions(),
    }


def warm(folder: Path) -> None:
    """Reads all files, so that the page cache holds them."""
    buffer = bytearray(1 << 22)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass


def check(pair: Pair, kind: str, corpus: Path) -> None:
    """Raises ValueError unless a batch holds real text: the right shape, labels, and tokens of the corpus."""
    inputs, labels = pair
    facts = read_facts(corpus)
    if inputs.shape != (ROWS, LENGTH) or labels.shape != (ROWS, LENGTH):
        raise ValueError(f"a batch has the shapes {tuple(inputs.shape)} and {tuple(labels.shape)}")
    if inputs.dtype not in (torch.int32, torch.int64) or labels.dtype != inputs.dtype:
        raise ValueError(f"a batch has the types {inputs.dtype} and {labels.dtype}")
    if not torch.equal(inputs[:, 1:], labels[:, :-1]):
        raise ValueError("labels are not the inputs one further")
    if int(inputs.sum()) <= 0 or int(inputs.min()) < 0 or int(inputs.max()) >= facts.vocab_size:
        raise ValueError("a batch holds no tokens of the vocabulary")
    rows = torch.cat([inputs, labels[:, -1:]], dim=1).numpy()
    with (
        (corpus / "tokens.bin").open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        for row in (rows[0], rows[-1]):
            # Only readers of tokens keep the order of the documents.
            piece = row if kind == "reading" else _longest_piece(row, facts.end_of_text_id)
            wanted = piece.astype("<u2").tobytes()
            # Where a pass over the data ends the next one begins, behind the first end-of-text.
            seam = content[-len(wanted) :] + content[2 : 2 + len(wanted)]
            if piece.size >= PIECE_TOKENS and not (_holds(content, wanted) or _holds(seam, wanted)):
                raise ValueError("a batch holds tokens that the corpus does not have in this order")


def _longest_piece(row: np.ndarray, end_of_text_id: int) -> np.ndarray:
    pieces = np.split(row, np.flatnonzero(row == end_of_text_id))
    return max(pieces, key=len)[1:]


def _holds(content: mmap.mmap | bytes, wanted: bytes) -> bool:
    place = content.find(wanted)
    while place > 0 and place % 2:  # between two tokens
        place = content.find(wanted, place + 1)
    return place >= 0


def cpu_seconds() -> float:
    """CPU time of this process, of its children that live and of those that are gone, to a tick."""
    gone = resource.getrusage(resource.RUSAGE_CHILDREN)
    alive = sum(map(proc.own_seconds, proc.descendants(os.getpid())))
    return time.process_time() + gone.ru_utime + gone.ru_stime + alive


def memory() -> int:
    """Bytes that this process and its children hold beside mapped files, shared ones by their shares."""
    total = 0
    for process in ("self", *proc.descendants(os.getpid())):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
                if line.startswith(("Pss_Anon:", "Pss_Shmem:")):
                    total += int(line.split()[1]) * 1024
    return total


def peak_memory(batches: Iterator[Pair], count: int) -> int:
    """The most `memory` while a consumer takes `count` batches at the pace of a fast training step.

    So what reads ahead has the time to fill its queues. A thread looks, for what a batch takes in passing.
    """
    peak, done = memory(), threading.Event()

    def look() -> None:
        nonlocal peak
        while not done.wait(SAMPLE_SECONDS):
            peak = max(peak, memory())

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    end = time.perf_counter() + WATCH_SECONDS
    for _ in itertools.islice(batches, count):
        time.sleep(STEP_SECONDS)
        if time.perf_counter() > end:
            break
    done.set()
    thread.join()
    return max(peak, memory())


def versions() -> dict[str, str]:
    """Of the libraries that this environment has."""
    found = {}
    for name in DISTRIBUTIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
