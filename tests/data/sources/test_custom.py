"""Registered sources: their units, their records, and what is wrong with them."""

from __future__ import annotations

import pickle
import threading

import pytest
from pydantic import Field

from llmkit.config.schema import Section, Source
from llmkit.data.sources.custom import CustomSpec, DataSource, custom_spec
from llmkit.data.sources.files import list_files
from llmkit.data.sources.reader import SourceReader
from llmkit.data.sources.records import Ids, Skipped, Text
from llmkit.data.sources.splits import split_files
from llmkit.errors import RunFault, UserError
from llmkit.registry import register
from tests.examples.project import forgotten

RECORDS = {"a": ["one", "two", {"text": "three"}], "b": ["", 4, {"txt": "five"}, {"text": 6}]}


class Shelf(DataSource):
    """Records in memory."""

    class Config(Section):
        """Which."""

        names: list[str] = Field(default=["a", "b"])
        """Of the units."""

    def __init__(self, config):
        self.names = config.names

    def units(self):
        return self.names

    def read(self, unit, first):
        yield from RECORDS[unit][first:]

    def fingerprint(self, unit):
        return f"v1-{unit}"


class Entry(Source):
    """As the settings have it."""

    type: str = "shelf"
    names: list[str] | None = None


@pytest.fixture(autouse=True)
def registered():
    with forgotten():
        register("source", "shelf")(Shelf)
        yield


def reader(errors="skip", **settings):
    spec = custom_spec(Entry(**settings))
    files = list_files(spec, "data.sources.0")
    return SourceReader(spec, "shelf-0", "data.sources.0", errors, files, split_files(spec, files, 1))


def test_a_unit_stands_where_others_have_a_file():
    files = reader().files
    assert [(file.path, file.tag) for file in files] == [
        ("custom://shelf/a", "v1-a"), ("custom://shelf/b", "v1-b"),
    ]  # fmt: skip


def test_records_are_read_from_any_one_on_with_their_numbers():
    found = list(reader().read(0))
    assert [(each.number, each.record) for each in found] == [
        (0, Text("one")), (1, Text("two")), (2, Text("three")),
    ]  # fmt: skip
    assert list(reader().read(0, first=1)) == found[1:]


def test_what_cannot_be_used_is_left_out_with_its_reason():
    reasons = [each.record.reason for each in reader().read(1)]
    assert reasons == ["empty", "no JSON object", "without the field", "no string"]
    with pytest.raises(UserError, match=r"custom://shelf/b, record 2: the record is int, not a mapping"):
        list(reader("raise").read(1))


def test_records_may_be_of_any_kind(monkeypatch):
    monkeypatch.setitem(RECORDS, "a", [{"input_ids": [1, 2], "x": 0}, "text"])
    first, second = (each.record for each in reader(record="ids", names=["a"]).read(0))
    assert isinstance(first, Ids) and first.ids.tolist() == [1, 2]
    assert isinstance(second, Skipped)


def test_it_travels_to_other_processes():
    there = pickle.loads(pickle.dumps(reader()))
    assert [each.record for each in there.read(0)] == [each.record for each in reader().read(0)]


def test_its_settings_are_among_what_decides_its_records():
    spec = custom_spec(Entry(names=["b"]))
    assert isinstance(spec, CustomSpec) and custom_spec(spec) is spec
    assert spec.model_dump(mode="json")["settings"] == {"names": ["b"]}


def test_our_own_sources_stay_as_they_are():
    spec = Source(type="stdlib")
    assert custom_spec(spec) is spec


@pytest.mark.parametrize("names, problem", [([], "has no units"), (["a", "a"], "has units of the same name")])
def test_units_that_cannot_be(names, problem):
    with pytest.raises(UserError, match=f"data.sources.0: the source shelf {problem}"):
        reader(names=names)


def test_a_source_that_fails_is_named(monkeypatch):
    def fail(*_):
        raise OSError("closed")

    whole = reader()
    monkeypatch.setattr(Shelf, "read", fail)
    with pytest.raises(RunFault, match=r"custom://shelf/a: cannot be read \(OSError: closed\)"):
        list(whole.read(0))
    monkeypatch.setattr(Shelf, "units", fail)
    with pytest.raises(RunFault, match=r"the source shelf cannot be opened \(OSError: closed\)"):
        reader()


def test_what_is_no_source_is_refused():
    register("source", "nothing")(lambda: 3)
    with pytest.raises(UserError, match=r"is registered as a source, but is no llmkit\.DataSource"):
        custom_spec(Entry(type="nothing"))


def test_a_source_that_cannot_be_sent_to_other_processes_is_refused():
    class Local(DataSource):
        def __init__(self):
            self.lock = threading.Lock()

    register("source", "local")(Local)
    with pytest.raises(UserError, match=r"Local cannot be sent to other processes \("):
        custom_spec(Entry(type="local"))
