"""The records for fine-tuning that configs/stdlib_questions.py makes."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "configs/stdlib_questions.py"
LIBRARY = {
    "b.py": 'def two(x, *, y=1):\n    """Do two things. And more."""\n\ndef _own():\n    """Not public."""\n',
    "a.py": (
        'class One(Base):\n    """A class.\n\n    Long text.\n    """\n\n'
        '    def method(self):\n        """Return self"""\n\n    def bare(self): pass\n'
    ),
    "_private.py": 'def three():\n    """Three."""\n',
}


@pytest.fixture(scope="module")
def questions():
    spec = importlib.util.spec_from_file_location("stdlib_questions", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_docstring_is_a_chat_and_a_completion(questions, tmp_path):
    for name, text in LIBRARY.items():
        (tmp_path / name).write_text(text)
    found = questions.write(tmp_path / "out", tmp_path)
    assert found == {"questions": 3, "signatures": 3, "preferences": 3}
    lines = (tmp_path / "out/questions.jsonl").read_text().splitlines()
    chats = [[m["content"] for m in json.loads(line)["messages"]] for line in lines]
    assert chats == [
        ["What does a.One do?", "a.One: A class."],
        ["What is a.One.method?", "a.One.method: Return self."],
        ["Explain b.two.", "b.two: Do two things."],
    ]
    pairs = [json.loads(line) for line in (tmp_path / "out/signatures.jsonl").read_text().splitlines()]
    assert pairs[0] == {"prompt": 'class One(Base):\n    """', "completion": 'A class."""\n'}
    assert pairs[2] == {"prompt": 'def two(x, *, y=1):\n    """', "completion": 'Do two things."""\n'}
    preferences = (tmp_path / "out/preferences.jsonl").read_text().splitlines()
    prompt = [{"role": "user", "content": "Explain b.two."}]
    chosen, rejected = "Do two things.", "b.two: Do two things."
    assert json.loads(preferences[2]) == {"prompt": prompt, "chosen": chosen, "rejected": rejected}


@pytest.mark.parametrize(
    ("docstring", "sentence"),
    [
        ("Return the name, e.g. of a file. More.", "Return the name, e.g. of a file."),
        ("Two\n    lines", "Two lines."),
        ("x.__eq__(y) <==> x == y", ""),
        ("L" + "o" * 200 + "ng.", ""),
        ("", ""),
    ],
)
def test_the_first_sentence_of_a_docstring(questions, docstring, sentence):
    assert questions.first_sentence(docstring) == sentence
