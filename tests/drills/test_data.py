"""Three kinds of sources; a run killed and resumed on other numbers of processes sees the same samples."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from tests.limits import HANG
from tests.program import CONFIG, SENTENCE, events, run, start_ranks, timeless

Measured = Callable[[str, float | str, str], None]
STEPS = 30
LEGS = [
    # (processes, overrides, the step at which all are killed; None = to the end)
    (1, [], 7),
    (3, ["parallel.zero_stage=1"], 13),
    (4, [], 19),
    (2, ["data.workers=1"], 25),
    (2, ["parallel.tensor_parallel_size=2"], None),
]
SETTINGS = [
    f"train.max_steps={STEPS}", "train.global_batch_size=10", "train.micro_batch_size=auto",
    "monitor.log_samples=true", "checkpoint.every_steps=3", "model.hidden_dropout=0.0", "data.workers=0",
    "optimizer.eps=1e-5", "optimizer.learning_rate=1e-3",
]  # fmt: skip
SOURCES = """\
  sources:
    - {name: books, type: shards, path: SHARDS, weight: 2}
    - {name: web, type: jsonl, path: "web-*.jsonl.zst", live: true, weight: 3}
    - {name: talk, type: jsonl, path: talk.jsonl, record: chat}
  curriculum:
    - {step: 16, weights: {web: 1, talk: 2}}
  document_masks: true
"""


def words(draw: random.Random, count: int) -> str:
    return " ".join(draw.choice(SENTENCE.split()) for _ in range(count))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Token shards, live files and chats, and a run on them that nothing disturbed: runs/straight."""
    folder = tmp_path_factory.mktemp("elastic")
    draw = random.Random(1)
    (folder / "corpus").mkdir()
    for number in range(30):
        (folder / "corpus" / f"{number}.txt").write_text(words(draw, 80))
    for number in range(3):
        lines = (json.dumps({"text": words(draw, draw.randint(3, 60))}) + "\n" for _ in range(60))
        with pa.CompressedOutputStream(str(folder / f"web-{number}.jsonl.zst"), "zstd") as file:
            file.write("".join(lines).encode())
    chats = [
        {
            "messages": [
                {"role": "user", "content": words(draw, 5)},
                {"role": "assistant", "content": words(draw, 9)},
            ]
        }
        for _ in range(120)
    ]
    (folder / "talk.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    (folder / "books.yaml").write_text(CONFIG)
    run(folder, "data", "build", "books.yaml")
    (shards,) = (path.parent for path in (folder / "data-cache").glob("*/train/index.json"))
    head, tail = CONFIG.split("  sources:\n")
    rest = tail[tail.index("  tokenizer:") :]
    (folder / "mixed.yaml").write_text(head + SOURCES.replace("SHARDS", str(shards)) + rest)
    run(folder, "train", "mixed.yaml", "run.name=straight", *SETTINGS)
    return folder


def samples(run_folder: Path) -> dict[int, str]:
    """The hash of the row at each position; what was trained on twice must have been the same."""
    found: dict[int, str] = {}
    for file in sorted((run_folder / "samples").glob("rank-*.jsonl")):
        for line in file.read_text().splitlines():
            row = json.loads(line)
            for position, value in zip(row["positions"], row["hashes"], strict=True):
                assert found.setdefault(position, value) == value, (file.name, position)
    return found


def starts(run_folder: Path) -> int:
    """How often the run was started or resumed."""
    named = events(run_folder) if (run_folder / "events.jsonl").exists() else []
    return sum(name in ("start", "resume") for name in named)


def last_step(run_folder: Path) -> int:
    if not (run_folder / "metrics.jsonl").exists():
        return 0
    return max((row["step"] for row in timeless(run_folder)), default=0)


def descendants(pid: int) -> list[int]:
    """Processes below one, also those in sessions of their own."""
    parents: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = status.read_text().rpartition(")")[2].split()
            parents.setdefault(int(fields[1]), []).append(int(status.parent.name))
    below = parents.get(pid, [])
    return [*below, *(each for child in below for each in descendants(child))]


def leg(folder: Path, number: int, processes: int, overrides: list[str], kill_at: int | None) -> None:
    """Trains on so many processes, until the step at which all are killed; number: 1 for the first leg."""
    ranks = start_ranks(folder, processes, "train", "mixed.yaml", "run.name=killed", *SETTINGS, *overrides)
    run_folder = folder / "runs" / "killed"
    while kill_at is not None and all(rank.poll() is None for rank in ranks):
        # Not before this leg has cut back the record of the one before, and begun.
        if starts(run_folder) == number and last_step(run_folder) >= kill_at:
            for pid in [pid for rank in ranks for pid in (rank.pid, *descendants(rank.pid))]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    codes = {rank.wait(HANG) for rank in ranks}
    output = "\n".join(rank.output() for rank in ranks)
    assert codes == {0 if kill_at is None else -signal.SIGKILL}, output
    assert starts(run_folder) == number, output


@pytest.mark.drill(
    "D28",
    injection="kill -9 of all ranks four times; it goes on with 1, 3, 4, 2 and 2 ranks: alone, ZeRO 1, "
    "DDP, with loader workers, tensor parallel",
    expected="each sample once, in its place; losses within 2e-5",
)
def test_samples_do_not_depend_on_processes_and_kills(project: Path, measured: Measured) -> None:
    for number, (processes, overrides, kill_at) in enumerate(LEGS, start=1):
        leg(project, number, processes, overrides, kill_at)
    assert "save_failed" not in events(project / "runs" / "killed")
    straight, killed = samples(project / "runs" / "straight"), samples(project / "runs" / "killed")
    lost = len(straight) - len(straight.items() & killed.items())
    measured("samples lost or repeated", lost, f"of {len(straight)}")
    assert sorted(straight) == list(range(10 * STEPS))
    assert killed == straight
    assert len(set(straight.values())) == len(straight)
    for one, other in zip(
        timeless(project / "runs" / "straight"), timeless(project / "runs" / "killed"), strict=True
    ):
        assert (one["step"], one.get("tokens")) == (other["step"], other.get("tokens"))
        for name in ("loss", "eval_loss"):
            if name in one:
                assert other[name] == pytest.approx(one[name], rel=2e-5)
