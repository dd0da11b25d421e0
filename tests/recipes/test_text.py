"""What --data and --tokenizer name."""

from __future__ import annotations

import json

import pytest

from llmkit.errors import UserError
from llmkit.recipes.text import source, tokenizer
from tests.data.tokens.tokenizers_for_tests import bytes_tokenizer


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_no_data_is_pythons_own_library():
    assert source(None) == source("stdlib") == {"type": "stdlib"}


def test_files_are_of_the_type_of_their_suffix(here):
    for name in ("a.txt", "b.jsonl.zst", "c.parquet"):
        (here / name).touch()
    (here / "folder").mkdir()
    (here / "folder" / "x.jsonl").touch()
    (here / "shards").mkdir()
    (here / "shards" / "index.json").touch()
    assert source("a.txt") == {"type": "text", "path": "a.txt"}
    assert source("b.jsonl.zst") == {"type": "jsonl", "path": "b.jsonl.zst"}
    assert source("c.parquet") == {"type": "parquet", "path": "c.parquet"}
    assert source("folder") == {"type": "jsonl", "path": "folder"}
    assert source("shards") == {"type": "shards", "path": "shards"}
    assert source("texts/**/*.txt") == {"type": "text", "path": "texts/**/*.txt"}
    assert source("https://example.org/a.jsonl.gz") == {
        "type": "jsonl",
        "path": "https://example.org/a.jsonl.gz",
    }


def test_an_owner_and_a_name_are_a_dataset_of_the_hub(here):
    assert source("HuggingFaceFW/fineweb-edu") == {"type": "hub", "dataset": "HuggingFaceFW/fineweb-edu"}


@pytest.mark.parametrize("data", ["missing.txt", "a/b/c", "/no/such", ""])
def test_what_is_no_data_is_refused(here, data):
    with pytest.raises(UserError, match="there is no such file or folder, and a dataset of the hub"):
        source(data)


def test_tokenizers_have_sizes(here):
    assert tokenizer(None) == tokenizer("bpe") == ({"type": "bpe"}, None)
    assert tokenizer("bpe:1024") == ({"type": "bpe"}, 1024)
    assert tokenizer("bytes") == ({"type": "bytes"}, 257)
    bytes_tokenizer("<|endoftext|>").save(here)
    expected = json.loads((here / "tokenizer.json").read_text())
    assert expected
    assert tokenizer("tokenizer.json") == ({"type": "file", "path": "tokenizer.json"}, 257)
    assert tokenizer(".")[1] == 257


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("bpe:10", "has from 257 to 16,777,216 tokens"),
        ("no/such/tokenizer.json", "there is no such file"),
        ("-x", "no such file"),
    ],
)
def test_what_is_no_tokenizer_is_refused(here, asked, says):
    with pytest.raises(UserError, match=says):
        tokenizer(asked)
