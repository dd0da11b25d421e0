"""The manifest: strict about everything, whoever wrote it."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llmkit.checkpoint import commit, read
from llmkit.checkpoint.format import Damaged, Manifest, canonical, decode_content, folder_name
from llmkit.checkpoint.pieces import Piece
from llmkit.errors import UserError
from tests.checkpoint.forging import Content, forge, forge_file, seal, to_version_1, unseal

PIECES = "pieces-00000-00000.safetensors"


def test_a_manifest_survives_encoding(save_step: Any) -> None:
    folder = save_step(100)
    raw = (folder / "manifest.json").read_bytes()
    manifest = Manifest.model_validate(decode_content(raw))
    assert manifest.encode() == raw
    assert seal(unseal(folder)) == raw
    assert set(manifest.versions) == {"llmkit", "torch"}


HOSTILE: dict[str, Callable[[Content], object]] = {
    "parent file": lambda m: m["files"][0].update(name="../secret"),
    "absolute file": lambda m: m["files"][0].update(name="/etc/hostname"),
    "file below": lambda m: m["files"][0].update(name="a/b"),
    "hidden file": lambda m: m["files"][0].update(name=".x"),
    "file with a null": lambda m: m["files"][0].update(name="a\0b"),
    "file with a newline": lambda m: m["files"][0].update(name="tokenizer.json\n"),
    "empty file name": lambda m: m["files"][0].update(name=""),
    "the manifest itself": lambda m: m["files"][0].update(name="manifest.json"),
    "a file twice": lambda m: m["files"].append(m["files"][0]),
    "a negative size": lambda m: m["files"][0].update(size=-1),
    "a huge size": lambda m: m["files"][0].update(size=10**30),
    "a size without checksums": lambda m: m["files"][0].update(size=10**15),
    "too many checksums": lambda m: m["files"][0]["xxh64"].append("0" * 16),
    "a checksum that is none": lambda m: m["files"][0]["xxh64"].__setitem__(0, "z" * 16),
    "a step as text": lambda m: m.update(step="100"),
    "a step as a fraction": lambda m: m.update(step=100.0),
    "a step that is a truth": lambda m: m.update(step=True),
    "a huge step": lambda m: m.update(step=10**9),
    "another step": lambda m: m.update(step=99),
    "no step": lambda m: m.pop("step"),
    "a field too many": lambda m: m.update(extra=1),
    "state as a list": lambda m: m.update(state=[]),
    "not a number": lambda m: m["state"].update(x=float("nan")),
    "an endless number": lambda m: m["state"].update(x=float("inf")),
    "a newer version": lambda m: m.update(version=3),
    "versions as a list": lambda m: m.update(version=3, versions=[]),
    "a version as text": lambda m: m.update(version="2"),
    "no version": lambda m: m.pop("version"),
    "another format": lambda m: m.update(format="x"),
    "another block size": lambda m: m.update(block=1),
    "pieces as text": lambda m: m.update(pieces="x"),
}


@pytest.mark.drill(
    "D37", injection=f"{len(HOSTILE)} hostile manifests: ../secret, wrong types, sizes", expected="refused"
)
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_manifest_is_refused_in_one_line(
    save_step: Any, change: Callable[[Content], object], version: int
) -> None:
    folder = save_step(100)
    if version == 1:
        to_version_1(folder)
        assert read.verify(folder) == []
    forge(folder, change)
    (problem,) = read.verify(folder)
    assert problem.startswith(str(folder)) and "\n" not in problem


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"step":' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
    ids=["empty", "cut", "list", "null", "no text", "digits", "brackets", "depth"],
)
def test_what_is_no_manifest_is_refused_in_one_line(save_step: Any, raw: bytes) -> None:
    folder = save_step(100)
    (folder / "manifest.json").write_bytes(raw)
    (problem,) = read.verify(folder)
    assert problem.startswith(str(folder / "manifest.json")) and "\n" not in problem


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'{"block"', b'{ "block"'),
        (b'"step":100,', b'"step":99,"step":100,'),
        (b"0.5", b"5e-1"),
        (b"demo", b"\\u0064emo"),
    ],
    ids=["space", "same key", "number", "escape"],
)
def test_the_same_content_in_another_form_is_refused(save_step: Any, old: bytes, new: bytes) -> None:
    path = save_step(100) / "manifest.json"
    raw = path.read_bytes()
    assert old in raw and json.loads(raw.replace(old, new)) == json.loads(raw)
    path.write_bytes(raw.replace(old, new))
    assert read.verify(path.parent) == [
        f"{path}: it is not in the form it was written in: it was edited, or is damaged; bring the original "
        "file back"
    ]


@pytest.mark.drill(
    "D20",
    injection="a manifest edited by hand: another step, setting or checksum; laid out anew",
    expected="named as edited, and the checkpoint before is taken",
)
@pytest.mark.parametrize("edit", ["step", "setting", "file", "checksum", "layout"])
def test_a_manifest_edited_by_hand_is_named(tmp_path: Path, save_step: Any, edit: str) -> None:
    save_step(100)
    path = save_step(200) / "manifest.json"
    content = json.loads(path.read_bytes())
    if edit == "layout":
        text = json.dumps(content, indent=2)
    else:
        {
            "step": lambda: content.update(step=300),
            "setting": lambda: content["config"]["run"].update(name="other"),
            "file": lambda: content["files"].clear(),
            "checksum": lambda: content.update(checksum="0" * 16),
        }[edit]()
        text = canonical(content).decode()
    path.write_text(text)
    said: list[str] = []
    found = read.newest(tmp_path, said.append)
    assert found is not None and found.step == 100
    assert len(said) == 1 and str(path) in said[0] and "it was edited, or is damaged; bring" in said[0]


@pytest.mark.drill(
    "D37", injection="a link in a checkpoint to a file with the right content", expected="refused"
)
def test_no_file_outside_the_folder_is_opened(tmp_path: Path, save_step: Any) -> None:
    """A link with the right content is refused, too: who can place it decides what is read."""
    folder = save_step(100)
    outside = tmp_path / "outside"
    (folder / "tokenizer.json").rename(outside)
    (folder / "tokenizer.json").symlink_to(outside)
    with pytest.raises(Damaged, match=r"tokenizer\.json: it is a symbolic link"):
        read.load(folder)


def test_a_huge_tensor_of_which_little_is_stored_takes_no_memory(
    save_step: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit, "check_complete", lambda index: None)
    shape = (2**45,)
    piece = Piece("w", "m", shape, ((0, 2**45),), (0, 3), torch.zeros(3))
    checkpoint = read.load(save_step(1, pieces=[piece]))
    with pytest.raises(Damaged, match=r"no piece holds \[3:35184372088832\] of m w"):
        checkpoint.read("w", "m")
    assert checkpoint.read("w", "m", ((0, 3),)).tolist() == [0, 0, 0]


@pytest.mark.drill(
    "D37",
    injection="sizes of terabytes in a manifest, each with its checksums; a manifest of a gigabyte",
    expected="refused in one line, without the memory",
)
@pytest.mark.parametrize("what", ["index", "tokenizer", "manifest"])
def test_a_size_that_no_file_has_takes_no_memory(save_step: Any, what: str) -> None:
    folder = save_step(1)
    if what == "manifest":
        os.truncate(folder / "manifest.json", 2**30 + 1)
        expected = "manifest.json: it has 1073741825 bytes, more than any manifest"
    else:
        entry = {"size": 2**40, "xxh64": ["0" * 16] * 2**18}
        forge(folder, lambda m: (m["index"] if what == "index" else m["files"][0]).update(entry))
        name = "index.safetensors" if what == "index" else "tokenizer.json"
        expected = f"{name}: it has {(folder / name).stat().st_size} bytes instead of {2**40}"
    (problem,) = read.verify(folder)
    assert problem == f"{folder}/{expected}"


class Bomb:
    """Unpickling it creates a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.canary),)


@pytest.mark.drill(
    "D37", injection="pickles in the place of a checkpoint's files", expected="refused, and not run"
)
@pytest.mark.parametrize("name", [PIECES, "manifest.json", "index.safetensors", "tokenizer.json"])
def test_a_pickle_named_as_a_file_of_a_checkpoint_is_not_run(
    tmp_path: Path, save_step: Any, name: str
) -> None:
    canary = tmp_path / "canary"
    folder = save_step(100)
    bomb = pickle.dumps(Bomb(canary))
    if name == "manifest.json":
        (folder / name).write_bytes(bomb)
    else:
        forge_file(folder, name, bomb)
    if name == "tokenizer.json":
        assert read.load(folder).extra_file(name) == bomb  # bytes, and nothing more
    else:
        assert len(read.verify(folder)) == 1
    assert not canary.exists()


@pytest.mark.drill("D37", injection="a pickle given as a checkpoint", expected="refused, and not run")
@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_a_pickle_given_as_a_checkpoint_is_refused_and_not_run(tmp_path: Path, how: str) -> None:
    canary, path = tmp_path / "canary", tmp_path / "model.pt"
    if how == "pickle":
        path.write_bytes(pickle.dumps(Bomb(canary)))
    else:
        torch.save({"model": Bomb(canary)}, path)
    with pytest.raises(UserError, match=r"model\.pt: is no folder"):
        read.open(path)
    assert not canary.exists()


def test_folder_names_are_fixed() -> None:
    assert folder_name(100) == "step-00000100"
    assert canonical({"b": [1, 1e-5], "a": "é"}) == b'{"a":"\\u00e9","b":[1,1e-05]}'
