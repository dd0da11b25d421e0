"""Changes what a saved checkpoint says of itself, checksums included; writes it as version 1 did."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from llmkit.checkpoint import index_file
from llmkit.checkpoint.files import StoredFile

Content = dict[str, Any]


def seal(content: Content) -> bytes:
    """A manifest with the checksum right: an attacker can do that, too."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    sealed = {**content, "checksum": xxhash.xxh64(text).hexdigest()}
    return json.dumps(sealed, sort_keys=True, separators=(",", ":")).encode()


def unseal(folder: Path) -> Content:
    """What the manifest of a checkpoint says."""
    content: Content = json.loads((folder / "manifest.json").read_bytes())
    del content["checksum"]
    return content


def forge(folder: Path, change: Callable[[Content], object]) -> None:
    """Change what a manifest says and seal it again."""
    content = unseal(folder)
    change(content)
    (folder / "manifest.json").write_bytes(seal(content))


def forge_file(folder: Path, name: str, raw: bytes) -> None:
    """Replace any other file of a checkpoint, so that its new content is what is listed."""
    (folder / name).write_bytes(raw)
    checksums = [xxhash.xxh64(raw).intdigest()] if raw else []
    stored = StoredFile(name, len(raw), np.array(checksums, np.uint64))
    content = unseal(folder)
    if name.startswith("pieces-"):
        listed = index_file.decode((folder / "index.safetensors").read_bytes())
        files = tuple(stored if file.name == name else file for file in listed.files)
        forge_file(folder, "index.safetensors", index_file.encode(replace(listed, files=files)))
        return
    entry = stored.entry().model_dump()
    if name == "index.safetensors":
        content["index"] = entry
    content["files"] = [entry if file["name"] == name else file for file in content["files"]]
    (folder / "manifest.json").write_bytes(seal(content))


def to_version_1(folder: Path) -> None:
    """Replaces the index by entries of the manifest."""
    content = unseal(folder)
    path = folder / content.pop("index")["name"]
    listed = index_file.decode(path.read_bytes())
    path.unlink()
    content["version"] = 1
    content["files"] = [file.entry().model_dump() for file in listed.files] + content["files"]
    content["pieces"] = [
        {
            "name": piece.tensor.name,
            "kind": piece.tensor.kind,
            "shape": piece.tensor.shape,
            "box": piece.box,
            "range": piece.range,
            "dtype": piece.tensor.dtype,
            "file": listed.files[piece.file].name,
            "key": piece.key,
        }
        for piece in map(listed.entry, range(len(listed.pieces)))
    ]
    (folder / "manifest.json").write_bytes(seal(content))
