"""A project in a temporary folder that uses an example as its plugin."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from llmkit import registry
from tests.program import CONFIG, make_project

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def write_config(folder: Path, sections: str, drop: tuple[str, ...] = ()) -> None:
    """tiny.yaml with other sections; `drop` names those that are left out."""
    kept, skipping = [], False
    for line in CONFIG.splitlines():
        if not line.startswith(" "):
            skipping = line.rstrip(":") in drop
        if not skipping:
            kept.append(line)
    (folder / "tiny.yaml").write_text("\n".join(kept) + "\n" + sections)


@contextmanager
def project(folder: Path, example: str, sections: str, drop: tuple[str, ...] = ()) -> Iterator[Path]:
    """The working directory is a project with this example as a plugin, which is forgotten afterwards."""
    make_project(folder)
    write_config(folder, f"plugins: [{example}]\n{sections}", drop)
    shutil.copy(EXAMPLES / f"{example}.py", folder)
    with forgotten(example), pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


@contextmanager
def forgotten(*modules: str) -> Iterator[None]:
    """Afterwards these modules are not imported, and what was registered meanwhile is not."""
    before, path = dict(registry._components), list(sys.path)
    try:
        yield
    finally:
        registry._components.clear()
        registry._components.update(before)
        sys.path[:] = path
        for name in modules:
            sys.modules.pop(name, None)


def rows(folder: Path, key: str = "loss", run: str = "tiny") -> list[Any]:
    """This column of metrics.jsonl."""
    found = map(json.loads, (folder / "runs" / run / "metrics.jsonl").read_text().splitlines())
    return [row[key] for row in found if key in row]
