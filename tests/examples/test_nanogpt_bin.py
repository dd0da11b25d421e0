"""docs/examples/nanogpt_bin.py: a train.bin becomes a source with the same documents."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from llmkit.cli import main
from tests.examples.project import EXAMPLES, write_config

END = 256  # of the byte tokenizer


@pytest.fixture
def documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Documents that train.bin in the working directory has, the last one without an end."""
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(1)
    found = [draw.integers(0, 256, length).tolist() for length in (3, 1, 40, 7, 25)]
    ids = [END, *[each for document in found[:-1] for each in [*document, END]], END, *found[-1]]
    np.array(ids, np.uint16).tofile("train.bin")
    return found


@pytest.mark.parametrize("piece", [1, 2, 7, 1000])
def test_documents_are_those_of_the_file_however_it_is_read(
    documents: list[list[int]], piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import nanogpt_bin

    assert [each.tolist() for each in nanogpt_bin.documents("train.bin", END, piece)] == documents


def test_llmkit_reads_what_it_writes(
    documents: list[list[int]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subprocess.run(
        [sys.executable, str(EXAMPLES / "nanogpt_bin.py"), "train.bin", "ids", str(END)], check=True
    )
    assert pq.read_table("ids")["input_ids"].to_pylist() == documents
    source = "data:\n  sources: [{type: parquet, path: ids, record: ids}]\n  tokenizer: {type: bytes}\n"
    write_config(tmp_path, f"{source}  sequence_length: 8\n  validation_fraction: 0.0\n", drop=("data",))
    assert main(["data", "build", "tiny.yaml"]) == 0
    ends = len(documents) + 1  # one before the first, and one behind each
    tokens = sum(map(len, documents)) + ends
    assert f"{len(documents)} documents, {tokens} tokens" in capsys.readouterr().out
