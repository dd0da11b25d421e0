"""The text that configs/python_manual.py writes."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from pydoc_data.topics import topics

SCRIPT = Path(__file__).parents[1] / "configs/python_manual.py"


def test_chapters_and_long_docstrings_are_records_and_each_is_there_once(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("python_manual", SCRIPT)
    assert spec is not None and spec.loader is not None
    manual = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(manual)
    long, other = "a" * manual.SHORTEST, "b" * manual.SHORTEST
    (tmp_path / "lib/test").mkdir(parents=True)
    (tmp_path / "lib/a.py").write_text(f'"""{long}"""\nclass A:\n    async def f():\n        """{other}"""\n')
    (tmp_path / "lib/b.py").write_text(f'"""{long}"""\ndef short():\n    """Nothing."""\n')
    (tmp_path / "lib/broken.py").write_text("def (\n")
    (tmp_path / "lib/test/c.py").write_text(f'"""not {long}"""\n')
    count, size = manual.write(tmp_path / "out", tmp_path / "lib")
    texts = [json.loads(line)["text"] for line in (tmp_path / "out/manual.jsonl").read_text().splitlines()]
    assert len(texts) == count and size == sum(len(text.encode()) for text in texts) > 300_000
    assert texts[-2:] == [long, other]
    assert texts[0] == topics[min(topics)].strip() and len(topics) >= count - 2
