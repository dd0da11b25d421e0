"""Writes English text that every Python brings along: chapters of its reference manual, and long docstrings.

    python configs/python_manual.py [FOLDER]    default: data-cache

FOLDER/manual.jsonl: {"text": ...}, a record for each chapter (`pydoc_data.topics`, what `help("if")` prints)
and for each docstring of the library of at least SHORTEST characters; about 1.75 MB. The same every time with
the same release of Python, and a little different with another one. The library is parsed, not imported.
"""

from __future__ import annotations

import ast
import json
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

SHORTEST = 200
"""Characters; shorter docstrings are mostly a line that says little."""
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3"}
"""Folders: what is not the library, tests, and a module that newer releases do not have."""


def docstrings(library: Path) -> Iterator[str]:
    """Long docstrings of all modules, classes and functions below a folder, in the order of its paths."""
    for path in sorted(library.rglob("*.py")):
        if LEFT_OUT & set(path.relative_to(library).parts[:-1]):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the library's own spelling
            try:
                tree = ast.parse(path.read_bytes())
            except (SyntaxError, ValueError):
                continue  # a sample of broken code
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node) or ""
                if len(text) >= SHORTEST:
                    yield text


def write(folder: Path, library: Path) -> tuple[int, int]:
    """Writes the file; how many records it has, and the bytes of their text."""
    folder.mkdir(parents=True, exist_ok=True)
    # A docstring may stand in several modules: a copy in the held-out part would make its loss too small.
    texts = list(dict.fromkeys([*(topics[name].strip() for name in sorted(topics)), *docstrings(library)]))
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (folder / "manual.jsonl").write_text(lines, encoding="utf-8")
    return len(texts), sum(len(text.encode()) for text in texts)


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "data-cache")
    records, size = write(target, Path(sysconfig.get_paths()["stdlib"]))
    print(f"{target}/manual.jsonl: {records} records, {size / 1e6:.2f} MB of text")
