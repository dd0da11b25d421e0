"""The examples in docstrings of the room are true; those of a folder are tested with its modules."""

from __future__ import annotations

import ast
import doctest
import importlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import llmkit.data
from llmkit.config import schema
from llmkit.data.building.prepare import prepare
from llmkit.data.loader import TrainLoader

DATA = Path(llmkit.data.__file__).parent
WITH_EXAMPLES = sorted(
    ".".join(("llmkit.data", *path.relative_to(DATA).with_suffix("").parts))
    for path in DATA.rglob("*.py")
    if path.name != "__init__.py" and re.search(r"^ *>>> ", path.read_text(), re.M)
)


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_examples_of_a_module_give_what_they_say(module: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(module))
    assert tried and not failed


def test_the_way_of_two_documents_is_as_the_room_draws_it(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in ("abc", "de")))
    config = schema.Data(
        tokenizer=schema.Tokenizer(type="bytes"),
        sources=[schema.Source(type="jsonl", path=str(tmp_path / "a.jsonl"))],
        sequence_length=4, validation_fraction=0.0, cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    prepared = prepare(config, lambda line: None)
    stored = prepared.sources[0].stored
    assert stored is not None
    said = [stored.read(0, stored.tokens), *stored.rows(np.arange(4), 4)]
    taken = []
    for rank in range(2):
        with TrainLoader(prepared, config, 0, 2, 1, rank, world_size=2) as loader:
            (rows,) = next(loader).micro_batches
            batch = rows.to(torch.device("cpu"))
            taken.append(batch.tokens[0].tolist())
            if rank == 0:
                said += [batch.tokens[0].numpy(), batch.labels[0].numpy()]
    drawn = llmkit.data.__doc__ or ""
    for numbers in said:
        assert " ".join(map(str, numbers.tolist())) in drawn, numbers
    assert taken == [stored.rows(np.array([row]), 4)[0, :-1].tolist() for row in (1, 0)]


def test_the_way_of_a_document_names_what_there_is() -> None:
    """Every `Class.method` or `function` that docs/design.md names with its file is there; 12 calls a way."""
    text = (DATA.parents[1] / "docs" / "design.md").read_text()
    begin, end = "**A document becomes part of a shard**", "A split of a source is one"
    ways = text[text.index(begin) : text.index(end)]
    named = re.findall(r"`([A-Za-z_]\w*(?:\.\w+)?)`(?: in)? \(?`([\w/]+\.py)`", ways)
    assert len(named) >= 25
    for name, file in named:
        owner, _, member = name.rpartition(".")
        body = ast.parse((DATA / file).read_text()).body
        if owner:
            (body,) = [node.body for node in body if isinstance(node, ast.ClassDef) and node.name == owner]
        kinds = (ast.FunctionDef, ast.ClassDef)
        assert member in [node.name for node in body if isinstance(node, kinds)], (name, file)
    assert max(int(number) for number in re.findall(r"^(\d+)\.", ways, re.MULTILINE)) <= 12
