"""Writes records for fine-tuning, made from the docstrings of Python's own library: the same every time.

    python configs/stdlib_questions.py [FOLDER]    default: data-cache

FOLDER/questions.jsonl: chats {"messages": [...]}, a question about a function or class and its answer.
FOLDER/signatures.jsonl: {"prompt", "completion"}, a definition and the first sentence of its docstring.
FOLDER/preferences.jsonl: {"prompt", "chosen", "rejected"}, a question, the answer without the name in front
of it, and the answer as above.
Nothing is imported or run: the source files are parsed.
"""

from __future__ import annotations

import ast
import json
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

LONGEST = 160
"""Characters of an answer at most."""
QUESTIONS = ("What does {} do?", "What is {}?", "Explain {}.", "What is {} for?")


class Documented(NamedTuple):
    """A public function or class: its dotted name, its first line of source, what it does in a sentence."""

    name: str
    definition: str
    sentence: str


def documented(library: Path) -> Iterator[Documented]:
    """What has a docstring in the modules of the library, in the order of their names."""
    for path in sorted(library.glob("*.py")):
        if not path.stem.startswith("_"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the library's own spelling
                tree = ast.parse(path.read_text(encoding="utf-8"))
            yield from _below(tree, path.stem)


def _below(tree: ast.Module | ast.ClassDef, name: str) -> Iterator[Documented]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            own = f"{name}.{node.name}"
            if sentence := first_sentence(ast.get_docstring(node) or ""):
                yield Documented(own, _definition(node), sentence)
            if isinstance(node, ast.ClassDef):
                yield from _below(node, own)


def first_sentence(docstring: str) -> str:
    """The first sentence of a docstring in one line, with its stop; "" where it is long or none."""
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    sentence = re.split(r"(?<=[a-z)`'\"])\. (?=[A-Z])", paragraph)[0].rstrip(".")
    return f"{sentence}." if sentence[:1].isupper() and len(sentence) < LONGEST else ""


def _definition(node: ast.FunctionDef | ast.ClassDef) -> str:
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(map(ast.unparse, node.bases))
        return f"class {node.name}({bases}):" if bases else f"class {node.name}:"
    return f"def {node.name}({ast.unparse(node.args)}):"


def write(folder: Path, library: Path) -> dict[str, int]:
    """Writes the files; returns how many records each has."""
    folder.mkdir(parents=True, exist_ok=True)
    found = list(documented(library))
    chats, preferences = [], []
    for number, each in enumerate(found):
        question = QUESTIONS[number % len(QUESTIONS)].format(each.name)
        answer = f"{each.name}: {each.sentence}"
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        chats.append({"messages": messages})
        preferences.append({"prompt": messages[:1], "chosen": each.sentence, "rejected": answer})
    pairs = [
        {"prompt": f'{each.definition}\n    """', "completion": f'{each.sentence}"""\n'} for each in found
    ]
    files = {"questions": chats, "signatures": pairs, "preferences": preferences}
    for name, records in files.items():
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return {name: len(records) for name, records in files.items()}


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "data-cache")
    for file, count in write(target, Path(sysconfig.get_paths()["stdlib"])).items():
        print(f"{target}/{file}.jsonl: {count} records")
