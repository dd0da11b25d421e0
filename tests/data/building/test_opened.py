from __future__ import annotations

import json
from collections.abc import Iterator

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmkit.config import schema
from llmkit.data.building import opened
from llmkit.data.building.opened import Found
from llmkit.data.building.probe import find_remote, open_sources
from llmkit.data.live import source as live_source
from llmkit.data.sources.files import File
from llmkit.data.sources.splits import Split
from llmkit.errors import UserError


@pytest.fixture
def config(tmp_path) -> Iterator[schema.Data]:
    """A live source in a store, another one there that is built, and one on this disk."""
    store = fsspec.filesystem("memory")
    for name in ("a", "b"):
        with store.open(f"/found/{name}.parquet", "wb") as file:
            pq.write_table(pa.table({"text": [f"{name} {k}" for k in range(90)]}), file, row_group_size=30)
    (tmp_path / "here.txt").write_text("here")
    yield schema.Data(
        sources=[
            schema.Source(type="parquet", name="live", path="memory://found/*.parquet", live=True),
            schema.Source(type="parquet", name="built", path="memory://found/a.parquet"),
            schema.Source(type="text", name="here", path=str(tmp_path / "here.txt")),
        ]
    )
    store.rm("/found", recursive=True)


def test_what_one_process_found_elsewhere_no_other_asks_for(
    config: schema.Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = json.loads(json.dumps(find_remote(config)))
    assert [(place, len(files), len(units)) for place, (files, units, *_) in told.items()] == [
        ("data.sources.0", 2, 2),
        ("data.sources.1", 1, 0),
    ]
    known = {
        place: Found([File(*file) for file in files], [Split(*unit) for unit in units], *rest)
        for place, (files, units, *rest) in told.items()
    }
    wanted = open_sources(config)
    asked = []
    list_files = opened.list_files
    monkeypatch.setattr(
        opened, "list_files", lambda spec, place: asked.append(place) or list_files(spec, place)
    )
    monkeypatch.setattr(live_source, "split_files", None)
    got = open_sources(config, known)
    assert asked == ["data.sources.2"]
    assert [source.files for source in got] == [source.files for source in wanted]
    assert got[0].live is not None and wanted[0].live is not None
    assert got[0].live.splits == wanted[0].live.splits
    assert list(got[0].live.read(1)) == list(wanted[0].live.read(1))


def test_what_is_wrong_elsewhere_is_told_by_all_with_what_is_wrong_here(config: schema.Data) -> None:
    sources = [source.model_copy(update={"text_field": "words"}) for source in config.sources[:2]]
    sources[1] = sources[1].model_copy(update={"path": "memory://found/none*"})
    sources.append(schema.Source(type="jsonl", name="here", path="gone.jsonl"))
    changed = config.model_copy(update={"sources": sources})
    told = json.loads(json.dumps(find_remote(changed)))
    known = {place: Found(files, units, *rest) for place, (files, units, *rest) in told.items()}
    wanted = (
        r"^3 mistakes\n  data.sources.0.text_field: .* has no column 'words'; its columns: text"
        r"\n  data.sources.1.path: .*none.* holds no .*\n  data.sources.2.path: there is no gone"
    )
    for what in (known, None):
        with pytest.raises(UserError, match=wanted):
            open_sources(changed, what)
