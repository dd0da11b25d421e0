"""The rows of a step against the loader's own batches, and their documents against what was written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmkit.batch import IGNORE
from llmkit.config import schema
from llmkit.data.building.prepare import prepare
from llmkit.data.inspect_rows import LAST_POSITION, RowAt, Rows, documents_of, row_lines, rows_json
from llmkit.data.loader import TrainLoader
from llmkit.data.prepared import PreparedData
from llmkit.data.shards.megatron import MegatronReader
from llmkit.data.shards.reader import ShardReader
from llmkit.errors import SourceDryError, UserError
from tests.data.shards.megatron_files import write_megatron

Build = Callable[..., tuple[PreparedData, schema.Data]]
BATCH = 32


def run_of(data: schema.Data, **train: Any) -> schema.Config:
    return schema.Config(data=data, run=schema.Run(seed=5), train=schema.Train(**train))


def rows_of(prepared: PreparedData, data: schema.Data, **train: Any) -> Rows:
    return Rows(run_of(data, **train), prepared, lambda line: None)


def batches(prepared: PreparedData, data: schema.Data, steps: int) -> list[list[tuple[Any, ...]]]:
    """Position, source, inputs and labels of each row of the first steps, as the loader gives them."""
    found = []
    with TrainLoader(prepared, data, 5, BATCH, 8) as loader:
        for _ in range(steps):
            one = next(loader)
            tokens = np.concatenate([rows.to("cpu").tokens.numpy() for rows in one.micro_batches])
            labels = np.concatenate([rows.to("cpu").labels.numpy() for rows in one.micro_batches])
            sources = one.sources.ravel().tolist()
            found.append(list(zip(one.positions.tolist(), sources, tokens, labels, strict=True)))
    return found


def check(found: list[RowAt], batch: list[tuple[Any, ...]]) -> None:
    assert [(row.position, row.index) for row in found] == [each[:2] for each in batch]
    for row, (_, _, tokens, labels) in zip(found, batch, strict=True):
        assert (row.tokens[:-1] == tokens).all()
        learned = np.ones(labels.size, dtype=bool) if row.is_target is None else row.is_target
        assert (np.where(learned, row.tokens[1:], IGNORE) == labels).all()


def test_rows_of_stored_sources_are_those_of_the_batches(prepared_bytes: Build) -> None:
    prepared, data = prepared_bytes(curriculum=[schema.Stage(step=10, weights={"text-0": 0.5})])
    rows, trained = rows_of(prepared, data), batches(prepared, data, 40)
    epochs = set()
    for step in (1, 9, 10, 11, 40):
        found = rows.of_step(step)
        check(found, trained[step - 1])
        for row in found:
            epochs.add((row.source, row.epoch))
            stored = prepared.sources[row.index].stored
            assert isinstance(stored, ShardReader)
            covered = [k for one in row.documents for k in range(one.start, one.stop)]
            assert covered in (list(range(17)), list(range(1, 17)))
            if covered[0] == 1:
                assert row.tokens[0] == prepared.tokenizer.end_of_text_id
            for one in row.documents:
                assert one.number is not None
                whole = [*stored.document(one.number - 1), prepared.tokenizer.end_of_text_id]
                part = whole[one.offset : one.offset + one.stop - one.start]
                assert row.tokens[one.start : one.stop].tolist() == part
                assert one.location.endswith(f"/train/{row.source}-00000.bin, document {one.number}")
    assert {("text-1", 0), ("text-1", 5)} <= epochs
    assert [row.position for row in rows.at([trained[8][3][0]])] == [8 * BATCH + 3]


def test_what_a_run_does_not_have_is_refused(prepared_bytes: Build) -> None:
    prepared, data = prepared_bytes()
    with pytest.raises(UserError, match=r"--step 11: the run has 10 steps \(train.max_steps\)"):
        rows_of(prepared, data, max_steps=10).of_step(11)
    with pytest.raises(UserError, match="lies behind the"):
        rows_of(prepared, data).of_step(LAST_POSITION)
    sources = [data.sources[0], data.sources[1].model_copy(update={"max_epochs": 1})]
    prepared, data = prepared_bytes(sources=sources)
    with pytest.raises(SourceDryError, match="text-1 has run dry"):
        rows_of(prepared, data).of_step(60)


DOCUMENTS = [[1, 2, 3], [4], [5, 6], [7, 8, 9, 10, 11, 12], [13], [14, 15]]


def expected(documents: list[tuple[str, list[int]]], start: int, length: int) -> list[tuple[Any, ...]]:
    """Document, location, first token and offset of the row at `start`, token by token."""
    owner: list[tuple[int, int]] = []
    for number, (_, tokens) in enumerate(documents, 1):
        owner += [(number, offset) for offset in range(len(tokens))]
    found: dict[tuple[int, int], tuple[int, int, int]] = {}
    turn = 0
    for k in range(length + 1):
        place = start + k
        number, offset = owner[place % len(owner)]
        turn = place // len(owner)
        first, low, _ = found.get((turn, number), (k, offset, 0))
        found[turn, number] = first, low, k + 1
    first_one = next(iter(found))
    if found[first_one][2] == 1 and found[first_one][1] == len(documents[first_one[1] - 1][1]) - 1:
        del found[first_one]
    return [
        (number, documents[number - 1][0], first, stop, offset)
        for (_, number), (first, offset, stop) in found.items()
    ]


@pytest.mark.parametrize("length", [1, 2, 5, 11])
def test_documents_are_found_across_shards_and_the_end_of_the_stream(
    write_shards: Callable[..., Path], length: int
) -> None:
    reader = ShardReader(write_shards(DOCUMENTS, shard_bytes=12))
    counts = [record.documents for record in reader.index.shards]
    assert len(counts) > 2
    named = [
        f"{reader.folder}/toy-{n:05d}.bin, document {k + 1}" for n, c in enumerate(counts) for k in range(c)
    ]
    documents = list(zip(named, ([*each, 0] for each in DOCUMENTS), strict=True))
    for start in range(reader.period):
        found = [tuple(vars(one).values()) for one in documents_of(reader, start, length)]
        # The stream begins with an end-of-text, which is the last one's.
        assert found == expected(documents, (start - 1) % reader.period, length), start


@pytest.mark.parametrize("length", [1, 3, 9])
def test_documents_of_megatron_are_found_across_files(tmp_path: Path, length: int) -> None:
    files = [[[[5, 6, 0]], [[]], [[7], [8, 0]]], [[[9, 0]], [[10, 11, 12, 0]]]]
    documents = []
    for name, content in zip("ab", files, strict=True):
        prefix = write_megatron(tmp_path / name, content)
        for number, sequences in enumerate(content, 1):
            tokens = [token for sequence in sequences for token in sequence]
            documents.append((f"{prefix}.bin, document {number}", tokens))
    reader = MegatronReader(tmp_path, 100, 0)
    for start in range(reader.period):
        found = [tuple(vars(one).values()) for one in documents_of(reader, start, length)]
        assert found == expected(documents, start, length), start


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreparedData, schema.Data]:
    """Live texts in uneven files, live prompts with completions that end, and stored tokens."""
    folder = tmp_path_factory.mktemp("mixture")
    (folder / "web").mkdir()
    for name, count in (("a", 150), ("b", 60), ("c", 15), ("d", 90)):
        lines = [json.dumps({"text": f"{name}{k} " + "word " * (k % 9)}) for k in range(count)]
        lines[5] = "{broken"
        (folder / "web" / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    asks = (json.dumps({"prompt": f"ask {k}", "completion": "x" * (k % 5 + 1)}) for k in range(400))
    (folder / "asks.jsonl").write_text("\n".join(asks) + "\n")
    (folder / "books").write_text("".join(f"book {k}\n" for k in range(200)))
    sources = [
        schema.Source(name="web", type="jsonl", path=str(folder / "web"), live=True, weight=3),
        schema.Source(
            name="asks", type="jsonl", path=str(folder / "asks.jsonl"), record="prompt_completion", live=True,
            max_epochs=2,
        ),
        schema.Source(name="books", type="text", path=str(folder / "books"), separator="\n"),
    ]  # fmt: skip
    data = schema.Data(
        tokenizer=schema.Tokenizer(type="bytes"), sources=sources, sequence_length=16, stream_shards=6,
        shuffle_window=20, errors="skip", cache_dir=str(folder / "cache"),
        curriculum=[schema.Stage(step=4, weights={"web": 1.0})],
    )  # fmt: skip
    return prepare(data, lambda line: None, seed=5), data


def test_rows_of_live_sources_are_those_of_the_batches(mixture: tuple[PreparedData, schema.Data]) -> None:
    prepared, data = mixture
    assert prepared.sources[0].live is not None and prepared.sources[0].live.lanes > 1
    rows, trained = rows_of(prepared, data), batches(prepared, data, 60)
    for step in (1, 3, 4, 60):
        found = rows.of_step(step)
        check(found, trained[step - 1])
        for row in found:
            if row.lane is None:
                continue
            for one in row.documents:
                path, _, line = one.location.rpartition(":")
                record = json.loads(Path(path).read_text().splitlines()[int(line) - 1])
                text = record["text"] if row.source == "web" else record["prompt"] + record["completion"]
                whole = [*text.encode(), prepared.tokenizer.end_of_text_id]
                part = whole[one.offset : one.offset + one.stop - one.start]
                assert row.tokens[one.start : one.stop].tolist() == part
            covered = [k for one in row.documents for k in range(one.start, one.stop)]
            end = covered[-1] + 1 if covered else 1
            assert covered in (list(range(end)), list(range(1, end)))
            if end < 17:  # the rest is behind the end of the lane
                assert row.source == "asks" and row.is_target is not None
                assert not row.is_target[end - 1 :].any()
    assert max(row.epoch for row in found if row.source == "web") > 0
    row = found[7]
    alone = rows.at([row.position])[0]
    assert (alone.title, alone.documents) == (row.title, row.documents)


def test_rows_behind_the_end_of_a_lane_have_no_document(mixture: tuple[PreparedData, schema.Data]) -> None:
    prepared, data = mixture
    found = [row for row in rows_of(prepared, data).of_step(200) if row.source == "asks"]
    assert all(row.documents == () and row.is_target is not None for row in found)
    lines = list(row_lines(found[:1], prepared, color=False))
    assert "  no document: its lane is at its end, and there is nothing to learn" in lines


def test_rows_are_shown_with_their_documents(mixture: tuple[PreparedData, schema.Data]) -> None:
    prepared, data = mixture
    found = rows_of(prepared, data).of_step(2)
    lines = list(row_lines(found, prepared, color=False))
    assert [line for line in lines if line.startswith("\n===")] == [f"\n=== {row.title} ===" for row in found]
    asks = next(row for row in found if row.source == "asks")
    shown = lines[lines.index(f"\n=== {asks.title} ===") + 1 :]
    first = asks.documents[0]
    assert shown[0].startswith(f"  tokens {first.start}-{first.stop - 1}: {first.location}")
    assert "⟦" in shown[len(asks.documents)]
    read = json.loads(json.dumps(rows_json(found, prepared)))
    for one, row in zip(read, found, strict=True):
        assert one["tokens"] == row.tokens.tolist()
        assert one["text"] == prepared.tokenizer.decode(row.tokens)
        learned = [k for start, stop in one["targets"] for k in range(start, stop)]
        targets = np.ones(16, dtype=bool) if row.is_target is None else row.is_target
        assert learned == (np.flatnonzero(targets) + 1).tolist()
        assert len(one["documents"]) == len(row.documents)
