"""Data that is damaged, missing, of another kind or gone: one clear message, and nothing harmed."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from llmkit.checkpoint import read
from llmkit.cli import main
from llmkit.data.batches import BatchReader
from llmkit.data.rank_batch import RankBatch
from llmkit.data.shards.writer import ShardWriter
from llmkit.data.sources import byte_reader
from llmkit.data.sources.retries import RetryPolicy
from llmkit.loop.trainer import Trainer
from tests.data.sources.servers import WebServer
from tests.limits import HANG
from tests.program import make_project, rows
from tests.ranks import run_ranks

WORDS = "the model reads a row of tokens and learns which token follows"
COMMON = ["run.deterministic=false", "data.workers=0", "checkpoint.every_steps=2"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ended(capsys: pytest.CaptureFixture[str], code: int, *overrides: str, command: str = "train") -> str:
    """What a command that must end with `code` says of it."""
    capsys.readouterr()
    got = main([*command.split(), "tiny.yaml", *COMMON, *overrides])
    message = capsys.readouterr().err
    assert (got, "Traceback" in message) == (code, False), message
    assert code == 0 or message.startswith("llmkit: ")
    return message


def lines(*records: object) -> str:
    return "".join(f"{json.dumps(record)}\n" for record in records)


def texts(count: int) -> str:
    return lines(*({"text": f"{number} {WORDS} {number}"} for number in range(count)))


def shards_of(project: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """Token shards of the project's corpus, moved to a place of their own."""
    ended(capsys, 0, command="data build")
    (index,) = Path("data-cache").glob("*/train/index.json")
    shutil.move(index.parent, "shards")
    return Path("shards")


def given(path: str, **fields: object) -> str:
    spec = {"type": "shards", "path": path, **fields}
    return f"data.sources=[{json.dumps(spec)}]"


def live(path: str, **fields: object) -> str:
    spec = {"type": "jsonl", "path": path, "live": True, **fields}
    return f"data.sources=[{json.dumps(spec)}]"


def flip(path: Path, place: int = 1000) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.drill(
    "D21",
    injection="a shard of tokens with a flipped byte, cut short or missing; its index damaged or missing",
    expected="`llmkit train` and `llmkit data verify` refuse it, and name the file",
)
@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda bin_file: flip(bin_file), ["block 0", "does not match its checksum"]),
        (lambda bin_file: os.truncate(bin_file, 500), ["500 bytes, index.json says"]),
        (lambda bin_file: bin_file.unlink(), ["cannot be read", "index.json lists it"]),
        (lambda bin_file: (bin_file.parent / "index.json").unlink(), ["no index.json in it"]),
        (lambda bin_file: flip(bin_file.parent / "index.json", 40), ["index.json"]),
    ],
    ids=["flipped byte", "cut", "missing shard", "missing index", "damaged index"],
)
def test_damaged_shards(project: Path, capsys: pytest.CaptureFixture[str], harm, says) -> None:
    folder = shards_of(project, capsys)
    (file,) = folder.glob("*.bin")
    harm(file)
    for command in ("train", "data verify"):
        message = ended(capsys, 2, given("shards"), command=command)
        assert all(part in message for part in says), message


@pytest.mark.drill(
    "D38",
    injection="shards made with another tokenizer, or with a token id beyond the vocabulary",
    expected="refused at the start; the id and the size of the vocabulary are shown",
)
@pytest.mark.parametrize(
    ("tokenizer", "vocab_size", "ids", "says"),
    [
        ("another", 257, [1, 2, 3], "tokenizer"),
        ("same", 300, [1, 299, 3], "holds token id 299, the vocabulary has 257"),
    ],
)
def test_shards_of_another_tokenizer(
    project: Path,
    capsys: pytest.CaptureFixture[str],
    tokenizer: str,
    vocab_size: int,
    ids: list[int],
    says: str,
) -> None:
    index = json.loads((shards_of(project, capsys) / "index.json").read_text())
    name = index["tokenizer"] if tokenizer == "same" else "0" * 16
    writer = ShardWriter(Path("others"), "others", name, vocab_size, 256)
    for _ in range(100):
        writer.add(np.array(ids), 3)
    writer.finish()
    assert says in ended(capsys, 2, given("others"))


def test_a_source_without_documents(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("none.jsonl").write_text(lines({"text": ""}, {"text": None}, {"other": "x"}))
    for source in (live("none.jsonl"), live("none.jsonl").replace(', "live": true', "")):
        message = ended(capsys, 2, source, "data.validation_fraction=0")
        assert "no usable document" in message, message


@pytest.mark.parametrize("how", ["live", "built"])
def test_lines_that_are_no_text_are_counted_or_stop_the_run(
    project: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    bad = [{"text": None}, {"text": ""}, {"text": 5}, {"other": "x"}, [1]]
    Path("r.jsonl").write_bytes((texts(40) + lines(*bad)).encode() + b'{"text": "\xff"}\n{broken\n')
    source = live("r.jsonl") if how == "live" else live("r.jsonl").replace(', "live": true', "")
    settings = [source, "data.validation_fraction=0", "train.max_steps=60"]
    assert main(["train", "tiny.yaml", *COMMON, *settings]) == 0
    printed = capsys.readouterr().out
    assert "left out" in printed
    for reason in ("empty", "not UTF-8", "broken JSON", "without the field", "no string", "no JSON object"):
        assert reason in printed
    strict = ended(
        capsys,
        2,
        source,
        "data.errors=raise",
        "data.validation_fraction=0",
        "run.name=strict",
        "train.max_steps=60",
    )
    assert "r.jsonl:4" in strict


def test_a_file_that_ends_too_early(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pa.CompressedOutputStream("whole.zst", "zstd") as file:
        file.write("".join(f'{{"text": "{os.urandom(40).hex()}"}}\n' for _ in range(300)).encode())
    whole = Path("whole.zst").read_bytes()
    Path("cut.jsonl.zst").write_bytes(whole[: len(whole) // 2])
    for source in (live("cut.jsonl.zst"), live("cut.jsonl.zst").replace(', "live": true', "")):
        message = ended(capsys, 1, source)
        assert "cut.jsonl.zst: is damaged or cut short" in message


def test_a_parquet_file_without_the_column(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"body": ["x y z"] * 50, "id": list(range(50))}), "t.parquet")
    message = ended(capsys, 2, 'data.sources=[{"type": "parquet", "path": "t.parquet"}]')
    assert "t.parquet" in message
    assert "body, id" in message


def test_a_source_that_runs_dry(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("few.jsonl").write_text(texts(40))
    built = live("few.jsonl", max_epochs=1).replace('"live": true', '"live": false')
    message = ended(capsys, 2, built, "train.max_steps=500")
    assert "1 epochs have" in message
    assert "it lasts until step" in message
    message = ended(capsys, 1, *dry(1, 500))
    assert "jsonl-0" in message
    assert "max_epochs" in message
    run = project / "runs" / "tiny"
    (*_, last) = (row["step"] for row in rows(run))
    assert f"Saved runs/tiny/checkpoints/step-{last:08d}" in message
    assert read.open(run).step == last, "all that was trained on is saved"
    goes_on_like_straight(capsys, run, last)


def dry(max_epochs: int, max_steps: int) -> list[str]:
    source = live("few*.jsonl", max_epochs=max_epochs)
    settings = ["monitor.log_samples=true", "checkpoint.every_steps=1000"]
    return [source, f"train.max_steps={max_steps}", *settings]


def goes_on_like_straight(capsys: pytest.CaptureFixture[str], run: Path, last: int) -> None:
    """A run that saved the step `last` trains on the rows of one that was not disturbed until it ran dry."""
    ended(capsys, 0, *dry(4, last + 3))
    ended(capsys, 1, *dry(1, 500), "run.name=straight")
    ended(capsys, 0, *dry(4, last + 3), "run.name=straight")
    assert [event["step"] for event in recorded(run) if event["event"] == "resume"][-1] == last
    assert sample_hashes(run) == sample_hashes(run.parent / "straight")


def recorded(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


def sample_hashes(run: Path) -> list[tuple[int, int, str]]:
    """(step, position, hash) of all rows that were trained on, by any rank."""
    return sorted(
        (row["step"], position, hash)
        for path in (run / "samples").glob("*.jsonl")
        for row in map(json.loads, path.read_text().splitlines())
        for position, hash in zip(row["positions"], row["hashes"], strict=True)
    )


def test_a_source_stalls_and_then_runs_dry_on_one_of_two_ranks(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    longer = [{"text": f"{number} {WORDS} {WORDS} {number}"} for number in range(40)]
    Path("few.jsonl").write_text(texts(40))
    Path("few-longer.jsonl").write_text(lines(*longer))
    case = "tests.test_bad_data:train_on_a_rank"
    assert run_ranks(2, case, joined=False, folder=str(project), stalls=True) == [75, 75]
    assert run_ranks(2, case, joined=False, folder=str(project), stalls=False) == [1, 1]
    run = project / "runs" / "tiny"
    stop = [event for event in recorded(run) if event["event"] == "stop"]
    assert [(event["step"], event["reason"]) for event in stop] == [(3, "SIGTERM")]
    goes_on_like_straight(capsys, run, read.open(run).step)


def train_on_a_rank(folder: str, stalls: bool) -> int:
    """One of two ranks; where it stalls, the second waits for its fourth step and is told to stop."""
    os.chdir(folder)
    made, released = BatchReader.blocks, threading.Event()
    stop_code = Trainer.stop_code

    def stalling(self: BatchReader) -> Iterator[list[RankBatch]]:
        yield from itertools.islice(made(self), 3)
        released.wait(HANG)

    def signalled(trainer: Trainer) -> int:
        if trainer.state.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return stop_code(trainer)

    with pytest.MonkeyPatch.context() as patch:
        if stalls and os.environ["RANK"] == "1":
            patch.setattr("llmkit.data.batches.LIVE_BLOCK_TOKENS", 1)  # a step a block
            patch.setattr(BatchReader, "blocks", stalling)
            patch.setattr(Trainer, "stop_code", signalled)
        code = main(["train", "tiny.yaml", *COMMON, *dry(1, 500)])
    released.set()
    return code


@pytest.mark.drill(
    "D22",
    injection="a source's file is replaced while it is read",
    expected="the run ends with the name of the file, after a save",
)
def test_a_file_that_changes_under_the_run(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("grows.jsonl").write_text(texts(500))
    from llmkit.engine.native import NativeEngine

    step, size = NativeEngine.train_step, Path("grows.jsonl").stat().st_size

    def change(self, *arguments):
        if Path("grows.jsonl").stat().st_size == size:
            Path("grows.jsonl").write_text(texts(750))
        return step(self, *arguments)

    monkeypatch.setattr(NativeEngine, "train_step", change)
    message = ended(capsys, 1, live("grows.jsonl"), "train.max_steps=3000", "data.sequence_length=128")
    assert "grows.jsonl" in message
    assert "changed" in message


@pytest.mark.drill(
    "D22",
    injection="lines appended to a source, and its weight changed, between save and resume",
    expected="refused with what differs; --allow-data-change goes on and puts it on record",
)
def test_other_data_on_resume_is_refused_and_goes_on_where_it_is_allowed(
    project: Path, capsys: pytest.CaptureFixture[str], measured: Any
) -> None:
    Path("a.jsonl").write_text(texts(200))
    second = '{"type": "jsonl", "path": "a.jsonl", "live": true}'
    two = f'data.sources=[{{"type": "text", "path": "corpus"}}, {second}]'
    ended(capsys, 0, two, "train.max_steps=4")
    weights = two.replace('"live": true', '"live": true, "weight": 3')
    message = ended(capsys, 2, weights, "train.max_steps=8")
    assert "data.sources.1.weight: 1.0 -> 3" in message
    Path("a.jsonl").write_text(texts(220))
    begun = time.perf_counter()
    message = ended(capsys, 2, two, "train.max_steps=8")
    measured("refused after", time.perf_counter() - begun, "s")
    assert "source jsonl-1 has other files" in message
    ended(capsys, 0, two, "train.max_steps=8", "--allow-data-change")
    run = project / "runs" / "tiny"
    (change,) = (event for event in recorded(run) if event["event"] == "data_change")
    assert change["step"] == 4
    assert change["differences"][:2] == [
        "source jsonl-1 has other files, or they are cut, read (data.errors) or tokenized otherwise",
        "source jsonl-1 has other held-out text",
    ]
    assert [row["step"] for row in rows(run) if "loss" in row] == list(range(1, 9))
    ended(capsys, 0, two, "train.max_steps=10")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    monkeypatch.setattr(byte_reader, "RETRIES", RetryPolicy(3, first_delay=0.001, stall_seconds=HANG))
    served = WebServer()
    served.files["/a.jsonl"] = texts(300).encode()
    yield served
    served.close()


def test_a_remote_that_breaks_is_asked_again_and_the_samples_are_the_same(
    project: Path, capsys: pytest.CaptureFixture[str], server: WebServer
) -> None:
    settings = [live(f"{server.url}/a.jsonl"), "monitor.log_samples=true", "train.max_steps=30"]
    ended(capsys, 0, *settings, "run.name=calm")
    server.ranges.clear()
    server.keep = 1000
    server.trouble = lambda number, start, end: "drop" if number <= 3 else None
    ended(capsys, 0, *settings, "run.name=broken", "data.cache_dir=other-cache")
    assert len(server.ranges) > 3
    calm, broken = (
        (project / "runs" / name / "samples" / "rank-00000.jsonl").read_text() for name in ("calm", "broken")
    )
    assert calm == broken


def test_a_remote_that_stays_broken_ends_the_run_with_address_and_byte(
    project: Path, capsys: pytest.CaptureFixture[str], server: WebServer
) -> None:
    source = live(f"{server.url}/a.jsonl?part=secret")
    ended(capsys, 0, source, "train.max_steps=2", "data.stream_shards=1", "run.name=calm")
    calm = len(server.ranges)
    server.ranges.clear()
    server.trouble = lambda number, start, end: 503 if number >= calm - 1 else None
    message = ended(capsys, 1, source, "train.max_steps=90", "data.stream_shards=1", "data.cache_dir=other")
    assert f"{server.url}/a.jsonl" in message
    assert "byte" in message
    assert "503" in message
    assert "secret" not in message
