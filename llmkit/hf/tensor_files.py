"""The safetensors files of a folder in Hugging Face's format, read region by region."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from xxhash import xxh64

from llmkit.checkpoint.format import BLOCK, DTYPES, FILE_NAME
from llmkit.errors import UserError
from llmkit.files import read_json
from llmkit.parallel.slices import Box, Shape, box_shape

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATS = ("F32", "BF16", "F16", "F64")
AGAIN = "download the folder again, all of it"


class TensorFiles:
    """All tensors of a folder. Only the headers of the files are read at first. single: the name of the file
    where there is no index.

    Raises UserError for a folder that lacks a file, or has one that is not complete.
    """

    def __init__(self, folder: Path, single: str = SINGLE) -> None:
        self._folder, self._single = folder, single
        self._files: dict[str, Any] = {}
        self._file_of: dict[str, str] = {}
        self.shapes: dict[str, Shape] = {}
        self.dtypes: dict[str, str] = {}
        listed = self._listed()
        for name in sorted(set(listed.values())) if listed else [single]:
            self._open(name)
        missing = sorted(name for name, file in listed.items() if self._file_of.get(name) != file)
        if missing:
            more = f" ({len(missing)} such tensors)" if len(missing) > 1 else ""
            raise UserError(
                f"{folder / INDEX}: it says that {missing[0]} is in {listed[missing[0]]}, which does not "
                f"hold it{more}; {AGAIN}"
            )

    def _listed(self) -> Mapping[str, str]:
        """Tensor -> file, as the index says; empty where there is a file with all."""
        index = self._folder / INDEX
        if (self._folder / self._single).is_file():  # which transformers prefers, too
            return {}
        if not index.is_file():
            raise UserError(f"{self._folder}: {self._no_weights()}")
        listed = read_json(index, AGAIN).get("weight_map")
        if not isinstance(listed, dict) or not listed:
            raise UserError(f"{index}: has no weight_map; {AGAIN}")
        for name, file in listed.items():
            if (
                not isinstance(file, str)
                or not FILE_NAME.fullmatch(file)
                or not file.endswith(".safetensors")
            ):
                raise UserError(
                    f"{index}: {name} is in {file!r}, which is no safetensors file of this folder"
                )
        gone = sorted({file for file in listed.values() if not (self._folder / file).is_file()})
        if gone:
            raise UserError(
                f"{self._folder}: {', '.join(gone[:3])}{' and more' if len(gone) > 3 else ''} of the "
                f"{len(set(listed.values()))} files in {INDEX} missing; {AGAIN}"
            )
        return listed

    def _no_weights(self) -> str:
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            if (self._folder / name).exists():
                return f"it holds a LoRA adapter ({name}), not a model; merge it with its base model first"
        pickled = [
            path.name for path in sorted(self._folder.glob("*.bin")) + sorted(self._folder.glob("*.pt*"))
        ]
        if pickled:
            return (
                f"its weights are pickles ({pickled[0]}), which may run code when they are read and are "
                "refused; take the safetensors files of the model, or convert them on a machine "
                "that holds nothing of value"
            )
        return f"there is neither {self._single} nor {INDEX} in it; {AGAIN}"

    def _open(self, name: str) -> None:
        path = self._folder / name
        try:
            file: Any = safe_open(path, framework="pt")
            for tensor in file.keys():  # noqa: SIM118
                found = file.get_slice(tensor)
                if tensor in self._file_of:
                    raise UserError(f"{path}: {tensor} is also in {self._file_of[tensor]}; {AGAIN}")
                self._file_of[tensor], self.shapes[tensor] = name, tuple(found.get_shape())
                self.dtypes[tensor] = found.get_dtype()
        except (SafetensorError, OSError) as error:
            size = path.stat().st_size if path.exists() else 0
            raise UserError(
                f"{path}: is not a complete safetensors file ({error}; it has {size:,} bytes); {AGAIN}"
            ) from error
        self._files[name] = file

    def view(self, name: str, box: Box) -> Tensor:
        """A region of a tensor in the type it is stored in, in memory of the file: not to be changed."""
        if 0 in box_shape(box):
            return torch.empty(box_shape(box), dtype=DTYPES[self.dtypes[name]])
        found: Tensor = self._files[self._file_of[name]].get_slice(name)[tuple(slice(*each) for each in box)]
        return found

    def read(self, name: str, box: Box) -> Tensor:
        """The same in memory of its own."""
        return self.view(name, box).clone(memory_format=torch.contiguous_format)

    def digest(self, more: bytes) -> str:
        """A hash of the bytes of all files, and of these."""
        found = xxh64(more)
        for name in sorted(self._files):
            with (self._folder / name).open("rb") as file:
                while block := file.read(BLOCK):
                    found.update(block)
        return found.hexdigest()
