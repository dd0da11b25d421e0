"""The data benchmark at a toy size: real tokens are measured, and what cannot run is never called slow."""

from __future__ import annotations

import dataclasses
import itertools
import json
import mmap
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import data, data_turn
from benchmarks.data_contenders import MODULES, NAMES, Contender, Pair, find
from benchmarks.data_corpus import ROWS, WIDTH, documents, make_corpus, stream
from benchmarks.data_page import Outcome, page

TOKENS = 100_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for --folder that has a small corpus."""
    place = tmp_path_factory.mktemp("data")
    make_corpus(place / "corpus", TOKENS)
    return place


def cells(text: str) -> dict[str, list[str]]:
    """Contender -> the cells behind its name."""
    lines = [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in text.splitlines()
        if line[:1] == "|"
    ]
    return {line[0]: line[1:] for line in lines}


def batch_of(tokens: np.ndarray) -> Pair:
    whole = torch.from_numpy(tokens.astype(np.int32))
    return whole[:, :-1], whole[:, 1:]


def corpus_batch(folder: Path) -> np.ndarray:
    return np.array(stream(folder / "corpus")[: ROWS * WIDTH].reshape(ROWS, WIDTH))


@pytest.mark.exhaustive
def test_a_toy_run_measures_and_writes_what_it_prints(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "page.md"
    arguments = ["--tokens", str(TOKENS), "--rounds", "1", "--contenders", "own,memmap"]
    arguments += ["--against", str(data.ROOT)]

    assert data.main([*arguments, "--folder", str(folder), "--output", str(output)]) == 0

    text = output.read_text()
    assert text == capsys.readouterr().out.removesuffix("\n")
    rows = cells(text)
    own, peer = rows["**llmkit**, token shards"], rows["nanoGPT's memmap"]
    assert own[4] == "1"
    for row in (own, peer):
        rate, ratio, wall, _, first, start, memory = (float(cell.split()[0]) for cell in row[3:])
        assert min(rate, ratio, wall) > 0
        assert min(first, start, memory) >= 0
    before, now, ratio = (float(cell.split()[0]) for cell in rows["**llmkit**, token shards (`own`)"][:3])
    assert ratio == pytest.approx(now / before, abs=0.02, rel=0.02)
    assert "nanoGPT's memmap (`memmap`)" not in rows, "a peer is the same in every checkout"
    assert f"command: `python -m benchmarks.data --tokens {TOKENS} --seconds 10 --rounds 1" in text
    assert not re.search(r"(^|[\s`(])/(?!proc/)\w", text), "an absolute path"


def test_the_corpus_is_the_same_every_time() -> None:
    assert list(itertools.islice(documents(50_000), 100)) == list(itertools.islice(documents(50_000), 100))


def test_real_batches_pass_the_check_and_others_do_not(folder: Path) -> None:
    corpus, good = folder / "corpus", corpus_batch(folder)
    data_turn.check(batch_of(good), "reading", corpus)
    tokens, over_the_end = stream(corpus), good.copy()
    over_the_end[0] = np.concatenate([tokens[-500:], tokens[1 : WIDTH - 499]])
    data_turn.check(batch_of(over_the_end), "reading", corpus)

    mixed = good.copy()
    np.random.default_rng(0).shuffle(mixed[0])
    with pytest.raises(ValueError, match="does not have in this order"):
        data_turn.check(batch_of(mixed), "reading", corpus)
    with pytest.raises(ValueError, match="no tokens"):
        data_turn.check(batch_of(np.zeros_like(good)), "reading", corpus)
    with pytest.raises(ValueError, match="shapes"):
        data_turn.check(batch_of(good[1:]), "reading", corpus)
    inputs, labels = batch_of(good)
    with pytest.raises(ValueError, match="one further"):
        data_turn.check((inputs, inputs), "reading", corpus)
    with pytest.raises(ValueError, match="types"):
        data_turn.check((inputs.short(), labels.short()), "reading", corpus)


def test_cpu_time_has_that_of_children_in_it() -> None:
    before = data_turn.cpu_seconds()
    code = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    alive = data_turn.cpu_seconds() - before
    child.communicate(b"\n")
    assert alive > 0.25
    assert data_turn.cpu_seconds() - before >= alive - 0.02


def test_memory_counts_what_is_held_and_not_what_is_mapped(tmp_path: Path) -> None:
    size = 32 << 20
    (tmp_path / "file").write_bytes(os.urandom(1 << 20) * 32)
    before = data_turn.memory()
    with (
        (tmp_path / "file").open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        assert sum(content[place] for place in range(0, size, 4096)) > 0
        assert data_turn.memory() - before < size / 4
        with mmap.mmap(-1, size) as held:  # not by malloc, which may have kept as much from before
            held.write(b"1" * size)
            assert data_turn.memory() - before > size * 0.9


def test_what_is_not_installed_or_fails_is_said_and_has_no_figures(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = tmp_path / "result.json"
    missing = dataclasses.replace(find("litdata"), needs=("no_such_library",))
    monkeypatch.setattr(data_turn, "find", lambda key: missing)
    data_turn.main(["measure", "litdata", str(folder / "corpus"), str(tmp_path), str(result), "1", "1"])
    absent, broken = Outcome("litdata", missing), Outcome("own", find("own"))
    absent.take(json.loads(result.read_text()))
    broken.take({"failed": "ValueError: /some/where/file is broken"})

    rows = cells(page([broken, absent], data.read_facts(folder / "corpus"), {}, "Title"))

    assert rows["litdata TokensLoader"][2] == "not installed (no_such_library)"
    assert rows["**llmkit**, token shards"][2] == "did not run: ValueError: ... is broken"
    assert set(rows["litdata TokensLoader"][3:]) == {"-"}


def test_every_name_has_a_contender() -> None:
    assert len(set(NAMES)) == len(NAMES) == sum(len(keys) for keys in MODULES.values())
    assert all(isinstance(find(key), Contender) for key in NAMES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--contenders", "own,other"], "'other' is not among own, own-masks"),
        (["--rounds", "0"], "--rounds and --seconds more than 0"),
        (["--against", "no/such"], "no/such is no checkout"),
        (["--tokens", "5"], "must be 100000 or more"),
    ],
)
def test_wrong_options_are_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        data.main(arguments)

    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
