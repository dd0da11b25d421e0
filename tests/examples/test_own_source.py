"""The example of an own data source: built and live, resumed, changed under a run."""

from __future__ import annotations

import random
import sqlite3
import textwrap

import pytest

from llmkit.cli import main
from tests.examples.project import project, rows
from tests.program import SENTENCE, train

DATA = """\
data:
  sources:
    - type: sqlite
      database: posts.db
      query: SELECT text FROM posts ORDER BY id
  tokenizer:
    type: bytes
  sequence_length: 32
"""


@pytest.fixture
def folder(tmp_path):
    draw = random.Random(1)
    with project(tmp_path, "own_source", DATA, drop=("data",)) as folder:
        with sqlite3.connect("posts.db") as database:
            database.execute("CREATE TABLE posts (id INTEGER PRIMARY KEY, text TEXT)")
            for _ in range(2500):
                text = " ".join(draw.choice(SENTENCE.split()) for _ in range(12))
                database.execute("INSERT INTO posts (text) VALUES (?)", (text,))
        yield folder


@pytest.mark.parametrize("live", ["false", "true"])
def test_it_trains_and_resumes_as_if_it_had_not_stopped(folder, live, capsys):
    how = f"data.sources.0.live={live}"
    assert train(how) == 0
    assert train(how, "run.name=twice", "train.max_steps=7", "schedule.steps=12") == 0
    assert train(how, "run.name=twice", "schedule.steps=12") == 0
    assert train(how, "run.name=straight", "schedule.steps=12") == 0
    losses = rows(folder, run="straight")
    assert rows(folder, run="twice") == losses and losses[-1] < losses[0] - 0.3
    capsys.readouterr()
    assert main(["evaluate", "runs/tiny"]) == 0
    assert f"{rows(folder, 'eval_loss')[-1]:.4f} nats a token" in capsys.readouterr().out


def test_the_workers_of_a_live_source_have_it_too(folder):
    how = ("data.sources.0.live=true", "train.max_steps=3")
    assert train(*how, "data.workers=0") == 0
    assert train(*how, "data.workers=1", "run.name=worker") == 0
    assert rows(folder, run="worker") == rows(folder)


def test_a_change_of_its_content_is_noticed(folder, capsys):
    assert train("train.max_steps=2") == 0
    with sqlite3.connect("posts.db") as database:
        database.execute("UPDATE posts SET text = 'something else' WHERE id = 1700")
    assert train("train.max_steps=4") == 2
    assert "sqlite-0" in capsys.readouterr().err


def test_its_settings_are_its_own(folder, capsys):
    assert main(["config", "tiny.yaml", "data.sources.0.databse=x", "data.sources.0.split=test"]) == 2
    problem = capsys.readouterr().err
    assert "did you mean data.sources.0.database?" in problem
    assert 'data.sources.0.split "test" (command line) does not belong to' in problem
    text = (folder / "tiny.yaml").read_text()
    (folder / "tiny.yaml").write_text(text.replace("      database: posts.db\n", ""))
    assert main(["config", "tiny.yaml"]) == 2
    assert "the source sqlite needs database" in capsys.readouterr().err


def test_what_fails_in_it_is_named(folder, capsys):
    assert train("data.sources.0.query=SELECT letter FROM posts") == 1
    assert "data.sources.0: the source sqlite cannot be opened (OperationalError: " in capsys.readouterr().err
    (folder / "bad_source.py").write_text(
        textwrap.dedent(
            """
            import llmkit

            @llmkit.register("source", "broken")
            class Broken(llmkit.DataSource):
                def units(self):
                    return ["one"]

                def read(self, unit, first):
                    yield "a text"
                    yield 7
                    raise OSError("the warehouse is closed")
            """
        )
    )
    sources = "data.sources=[{type: broken}]"
    assert train("plugins=[bad_source]", sources) == 1
    message = capsys.readouterr().err
    assert "custom://broken/one: cannot be read (OSError: the warehouse is closed)" in message
