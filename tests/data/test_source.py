from __future__ import annotations

from collections.abc import Iterator

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter

from llmkit.config import schema
from llmkit.data import source as module
from llmkit.data.building.probe import find_remote, open_sources
from llmkit.data.live import source as live_source
from llmkit.data.source import RemoteFiles
from llmkit.errors import UserError

KIND = TypeAdapter(dict[str, RemoteFiles])


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
    known = KIND.validate_json(KIND.dump_json(find_remote(config)))
    assert [(setting, len(found.files), len(found.splits)) for setting, found in known.items()] == [
        ("data.sources.0", 2, 2),
        ("data.sources.1", 1, 0),
    ]
    wanted = open_sources(config)
    asked = []
    list_files = module.list_files
    monkeypatch.setattr(
        module, "list_files", lambda spec, place: asked.append(place) or list_files(spec, place)
    )
    monkeypatch.setattr(live_source, "split_files", None)
    got = open_sources(config, known)
    assert asked == ["data.sources.2"]
    assert [source.files for source in got] == [source.files for source in wanted]
    assert got[0].live_reader is not None and wanted[0].live_reader is not None
    assert got[0].live_reader.splits == wanted[0].live_reader.splits
    assert list(got[0].live_reader.read(1)) == list(wanted[0].live_reader.read(1))


def test_what_is_wrong_elsewhere_is_told_by_all_with_what_is_wrong_here(config: schema.Data) -> None:
    sources = [source.model_copy(update={"text_field": "words"}) for source in config.sources[:2]]
    sources[1] = sources[1].model_copy(update={"path": "memory://found/none*"})
    sources.append(schema.Source(type="jsonl", name="here", path="gone.jsonl"))
    changed = config.model_copy(update={"sources": sources})
    known = KIND.validate_json(KIND.dump_json(find_remote(changed)))
    wanted = (
        r"^3 mistakes\n  data.sources.0.text_field: .* has no column 'words'; its columns: text"
        r"\n  data.sources.1.path: .*none.* holds no .*\n  data.sources.2.path: there is no gone"
    )
    for what in (known, None):
        with pytest.raises(UserError, match=wanted):
            open_sources(changed, what)
