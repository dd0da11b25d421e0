"""The examples in the docstrings of the stages give what they say."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

from llmkit.config.schema import Source
from llmkit.data import sources
from llmkit.data.sources.files import list_files
from llmkit.data.sources.reader import SourceReader
from llmkit.data.sources.splits import split_files

NAMES = [
    "",
    "urls",
    "retries",
    "remote",
    "formats",
    "text_files",
    "splits",
    "extract",
    "record_masks",
    "records",
]


@pytest.mark.parametrize("name", NAMES)
def test_examples_are_true(tmp_path: Path, name: str) -> None:
    module = importlib.import_module(f"llmkit.data.sources.{name}") if name else sources
    pipeline = (Path, Source, SourceReader, list_files, split_files)
    shared = {thing.__name__: thing for thing in pipeline} | {"folder": tmp_path}
    result = doctest.testmod(module, extraglobs=shared)
    assert result.attempted > 0 and result.failed == 0
