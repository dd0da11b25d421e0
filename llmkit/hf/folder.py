"""A model in a folder of Hugging Face's format, as the hub and `llmkit export` have it."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Collection, Mapping
from functools import cached_property
from os.path import isfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmkit.checkpoint.format import DTYPES
from llmkit.data.tokens.tokenizer import Tokenizer
from llmkit.errors import UserError
from llmkit.files import read_json
from llmkit.hf.choose import architecture_of, read_shape
from llmkit.hf.names import places
from llmkit.hf.tensor_files import FLOATS, INDEX, SINGLE, TensorFiles
from llmkit.hf.tokenizer_files import end_ids, read_tokenizer
from llmkit.parallel.slices import Box, Shape, check_box

CONFIG = "config.json"
READ_ROWS = 1024
"""Rows compared at a time."""


def is_hf_folder(path: Path) -> bool:
    """Whether a folder holds a model in Hugging Face's format, or is meant to; a closed one does not."""
    return any(isfile(path / name) for name in (CONFIG, "adapter_config.json", SINGLE, INDEX))


class HFFolder:
    """The weights of a folder (see `llmkit.weights.Weights`): config.json, safetensors files, a tokenizer.

    Only what is asked for is read. Raises UserError for a model that llmkit does not compute exactly, and for
    a folder that is not complete.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        config_file = path / CONFIG
        if not config_file.is_file() and (path / "adapter_config.json").is_file():
            base = read_json(path / "adapter_config.json", "").get("base_model_name_or_path")
            raise UserError(
                f"{path}: it is a LoRA adapter of {base}, not a model; merge it with its base first"
            )
        self.hf_config = read_json(config_file, "name a folder with a model in Hugging Face's format")
        self.architecture = architecture_of(self.hf_config, str(config_file))
        self.model_shape = read_shape(self.hf_config, str(config_file), self.architecture)
        self._files = TensorFiles(path)
        naming, parameters = self.architecture.naming, self.model_shape.parameters()
        self.stored = naming.stored(parameters)
        self._parameters, self._places = parameters, places(self.stored)
        # As saved from the class without its head, names have no prefix.
        prefixed = any(name.startswith(naming.prefix) for name in self._files.shapes)
        self._prefix = "" if prefixed else naming.prefix
        self._check_tensors()

    @property
    def origin(self) -> str:
        """Its folder, for messages."""
        return str(self.path)

    @cached_property
    def model(self) -> Mapping[str, Any]:
        """See `Weights.model`."""
        return self.model_shape.to_dict()

    @property
    def config(self) -> Mapping[str, Any]:
        """See `Weights.config`: no run of ours made it, as far as can be known."""
        return {}

    @property
    def nbytes(self) -> int:
        """Bytes of the model's weights."""
        names = (self._file_name(each.name) for each in self.stored)
        return sum(math.prod(self._files.shapes[n]) * DTYPES[self._files.dtypes[n]].itemsize for n in names)

    def names(self) -> Collection[str]:
        """See `Weights.names`."""
        return self._places.keys()

    def shape(self, name: str) -> Shape:
        """See `Weights.shape`."""
        return self._parameters[name]

    def read(self, name: str, region: Box) -> Tensor:
        """See `Weights.read`."""
        check_box(self._parameters[name], region)
        place = self._places[name]
        found = self._files.view(self._file_name(place.stored.name), place.region(region))
        return (found.t() if place.stored.transposed else found).clone(memory_format=torch.contiguous_format)

    def tokenizer(self) -> Tokenizer:
        """See `Weights.tokenizer`."""
        return read_tokenizer(self.path, self.hf_config, self.model_shape.vocab_size, self.end_ids)

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """The ids that end an answer; see `tokenizer_files.end_ids`."""
        return end_ids(self.path, self.hf_config)

    def digest(self) -> str:
        """See `Weights.digest`. Reads every byte of the weights."""
        return self._files.digest(json.dumps(self.hf_config, sort_keys=True).encode())

    def _file_name(self, theirs: str) -> str:
        return theirs.removeprefix(self._prefix)

    def _check_tensors(self) -> None:
        """Raises UserError unless the files hold the model's tensors, and no others that matter."""
        found, wanted = self._files.shapes, {self._file_name(each.name): each for each in self.stored}
        for name, stored in wanted.items():
            if name not in found:
                raise UserError(self._missing(name, [each for each in wanted if each not in found]))
            if found[name] != stored.shape:
                raise UserError(
                    f"{self.path}: {name} has the shape {list(found[name])}, but by {CONFIG} it is "
                    f"{list(stored.shape)}: one of both is of another model"
                )
            if self._files.dtypes[name] not in FLOATS:
                raise UserError(
                    f"{self.path}: {name} is stored as {self._files.dtypes[name]}: quantised weights are not "
                    "supported; take those in bf16, fp16 or fp32"
                )
        others = [
            name
            for name in found
            if name not in wanted and not name.endswith(self.architecture.naming.buffers)
        ]
        if "lm_head.weight" in others and self.model_shape.tie_word_embeddings:
            self._check_tied(next(iter(wanted)))
            others.remove("lm_head.weight")
        if others:
            more = f" and {len(others) - 3} more" if len(others) > 3 else ""
            raise UserError(
                f"{self.path}: {', '.join(sorted(others)[:3])}{more} in its files "
                f"{'is' if len(others) == 1 else 'are'} not of a {self.architecture.class_name} with this "
                f"{CONFIG}: the model would compute something else"
            )

    def _missing(self, name: str, missing: list[str]) -> str:
        if name == "lm_head.weight":
            return (
                f"{self.path}: {CONFIG} says tie_word_embeddings = false, but there is no {name}; where the "
                "head shares the embedding's weights, set it to true"
            )
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        like = difflib.get_close_matches(name, self._files.shapes, n=1)
        hint = f"; there is {like[0]}" if like else ""
        return f"{self.path}: there is no {name}{more} in its files{hint}; is a file of it missing?"

    def _check_tied(self, embedding: str) -> None:
        """Raises UserError if a head that is stored, but said to be the embedding, is another matrix."""
        rows, width = self._files.shapes[embedding]
        same = self._files.shapes["lm_head.weight"] == (rows, width) and all(
            torch.equal(self._files.view("lm_head.weight", box), self._files.view(embedding, box))
            for low in range(0, rows, READ_ROWS)
            for box in [((low, min(low + READ_ROWS, rows)), (0, width))]
        )
        if not same:
            raise UserError(
                f"{self.path}: {CONFIG} says tie_word_embeddings = true (or leaves it to its default), but "
                "lm_head.weight is not the embedding; set it to false there"
            )
