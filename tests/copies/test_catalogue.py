from __future__ import annotations

import json

import pytest

from llmkit.copies import catalogue
from llmkit.copies.catalogue import Catalogue, Copy, Record, decode
from llmkit.copies.outgoing import stored
from llmkit.copies.store import Store
from llmkit.errors import UserError

FILES = [stored("pieces.safetensors", b"abc"), stored("manifest.json", b"{}")]


def of_files(names: list[str]) -> dict[str, object]:
    """A complete copy of files of these names, as JSON."""
    files = [{"name": name, "size": 1, "xxh64": ["0" * 16]} for name in names]
    return {"name": "step-00000001", "complete": True, "files": files}


FULL = Catalogue(
    run="0123456789abcdef",
    copies=[
        Copy(name="step-00000030", complete=False, files=FILES),
        Copy(name="step-00000020", complete=True, files=FILES),
        Copy(name="step-00000010", complete=True, files=FILES),
    ],
    record=Record(number=7, files=[stored("wandb/run_id", b"x")]),
)


def test_it_is_read_back(any_store: Store) -> None:
    assert catalogue.read(any_store) is None
    for each in (FULL, Catalogue(run="0123456789abcdef")):
        catalogue.write(any_store, each)
        assert catalogue.read(any_store) == each


def test_complete_copies_are_in_order_and_have_places() -> None:
    assert [copy.step for copy in FULL.complete] == [10, 20]
    assert FULL.complete[0].path(FILES[0]) == "checkpoints/step-00000010/pieces.safetensors"
    assert FULL.record is not None
    assert FULL.record.path(FULL.record.files[0]) == "record/000007/wandb/run_id"


def test_every_changed_bit_is_found() -> None:
    raw = FULL.encode()
    for at in range(0, len(raw), 3):
        with pytest.raises(UserError, match=r"^s: is no list of copies .*; use the version of llmkit"):
            decode(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :], "s")


@pytest.mark.parametrize(
    "change",
    [
        {"gone": ["checkpoints/step-00000001/../../x"]}, {"gone": ["owner.json"]}, {"version": 2},
        {"run": "../x"}, {"more": 1}, {"format": "x"},
        {"copies": [{"name": "../../x", "complete": True, "files": []}]},
        {"record": {"number": 0, "files": [{"name": "../x", "size": 1, "xxh64": ["0" * 16]}]}},
        {"record": {"number": 0, "files": [{"name": "x", "size": 1, "xxh64": []}]}},  # would be read as zeros
        {"copies": [of_files(["a/manifest.json", "manifest.json"])]},
        {"copies": [of_files(["a", "a", "manifest.json"])]}, {"copies": [of_files(["a"])]},
    ],
)  # fmt: skip
def test_what_no_version_writes_is_refused(change: dict[str, object]) -> None:
    content = FULL.model_dump(mode="json") | change
    import xxhash

    content["checksum"] = xxhash.xxh64(catalogue._canonical(content)).hexdigest()
    with pytest.raises(UserError, match=next(iter(change))):
        decode(json.dumps(content).encode(), "s")


@pytest.mark.parametrize("raw", [b"", b"[]", b"null", b"[" * 100_000, b"\xff"])
def test_anything_else_is_refused(raw: bytes) -> None:
    with pytest.raises(UserError, match="is no list of copies"):
        decode(raw, "s")
