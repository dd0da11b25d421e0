"""Trained weights, whatever the format they are stored in."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor
from xxhash import xxh64_hexdigest

from llmkit.checkpoint import format as fmt
from llmkit.checkpoint.adapters import CheckpointAdapters, has_adapters, quantised_region
from llmkit.checkpoint.read import Checkpoint, folders, load
from llmkit.checkpoint.read import open as open_checkpoint
from llmkit.config.custom_model import AnyModel, stored_model
from llmkit.config.initial_model import Asked, StoredModel
from llmkit.config.stored import require_plugins
from llmkit.data.tokens.tokenizer import Tokenizer
from llmkit.errors import UserError
from llmkit.files import may_exist
from llmkit.hf.folder import HFFolder, is_hf_folder
from llmkit.hf.peft_adapters import PeftAdapters, base_of, is_peft_folder
from llmkit.hf.tokenizer_files import read_tokenizer
from llmkit.parallel.slices import Box, Shape


class Weights(Protocol):
    """The full tensors of a trained model, read region by region; nothing is kept in memory.

    Names are those of checkpoints (`llmkit.config.parameters`).
    """

    @property
    def path(self) -> Path:
        """The folder that holds them."""
        ...

    @property
    def origin(self) -> str:
        """The folder, and what wrote it if that is known, for messages."""
        ...

    @property
    def model(self) -> Mapping[str, Any]:
        """The stored model: what `ModelShape.to_dict` or `CustomModel.to_dict` gave."""
        ...

    @property
    def config(self) -> Mapping[str, Any]:
        """The settings of the run that made them, as stored; empty where no run of ours did."""
        ...

    def names(self) -> Collection[str]:
        """The full tensors."""
        ...

    def shape(self, name: str) -> Shape:
        """The shape of a full tensor."""
        ...

    def read(self, name: str, region: Box) -> Tensor:
        """A region of a full tensor: a new CPU tensor of the region's shape, of the type that is stored."""
        ...

    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the model. Raises UserError where there is none, or it has more ids than the
        model knows."""
        ...

    def digest(self) -> str:
        """A hash: equal for equal content, wherever the folder lies."""
        ...


@dataclass(frozen=True)
class CheckpointWeights:
    """The weights of a checkpoint: its fp32 masters, or what an import kept."""

    checkpoint: Checkpoint

    @property
    def path(self) -> Path:
        """See `Weights.path`."""
        return self.checkpoint.path

    @property
    def origin(self) -> str:
        """See `Weights.origin`."""
        return self.checkpoint.origin

    @property
    def model(self) -> Mapping[str, Any]:
        """See `Weights.model`."""
        return self.checkpoint.model

    @property
    def config(self) -> Mapping[str, Any]:
        """See `Weights.config`."""
        return self.checkpoint.config

    def names(self) -> Collection[str]:
        """See `Weights.names`."""
        return self.checkpoint.names("master")

    def shape(self, name: str) -> Shape:
        """See `Weights.shape`."""
        return self.checkpoint.shape(name, "master")

    def read(self, name: str, region: Box) -> Tensor:
        """See `Weights.read`. Raises Damaged where the bytes are not what was written."""
        return self.checkpoint.read(name, "master", region)

    def tokenizer(self) -> Tokenizer:
        """See `Weights.tokenizer`."""
        content = self.checkpoint.tokenizer_json()
        config = json.loads(self.checkpoint.extra_file("tokenizer_config.json"))
        tokenizer = Tokenizer.from_config(content, config, str(self.path))
        check_vocabulary(self, tokenizer)
        return tokenizer if self.config else tokenizer.open_as_published()

    def digest(self) -> str:
        """See `Weights.digest`. The manifest has the checksums of all files, and a base's digest."""
        return xxh64_hexdigest(fmt.canonical(self.checkpoint.manifest.model_dump(mode="json")))


class Adapters(Protocol):
    """What low-rank adapters add to the weights of their layers."""

    @property
    def layers(self) -> frozenset[str]:
        """Full names of the adapted layers, as in "blocks.0.attention.q_proj"."""
        ...

    def change(self, layer: str, region: Box) -> Tensor:
        """What is added to a region of the layer's weight, fp32."""
        ...


def merged(
    read: Callable[[str, Box], Tensor], adapters: Adapters, name: str, region: Box
) -> Tensor:
    """A region of a tensor with what adapters add to it: in fp32, if it is of an adapted layer.

    read: gives a region of the base.
    """
    weight, layer = read(name, region), name.removesuffix(".weight")
    if layer == name or layer not in adapters.layers:
        return weight
    return adapters.change(layer, region).add_(weight)


@dataclass(frozen=True)
class AdaptedCheckpoint(CheckpointWeights):
    """The weights of a checkpoint that holds adapters alone: those of their base, with what they add.

    rounded: whether the base is taken as it was kept in training (`train.lora.quantize_base`), so that these
    are the weights that were trained; else as it is stored.
    """

    base: Weights
    rounded: bool = True

    @cached_property
    def adapters(self) -> CheckpointAdapters:
        """The adapters."""
        return CheckpointAdapters(self.checkpoint)

    def names(self) -> Collection[str]:
        """See `Weights.names`."""
        return self.base.names()

    def shape(self, name: str) -> Shape:
        """See `Weights.shape`."""
        return self.base.shape(name)

    def read(self, name: str, region: Box) -> Tensor:
        """See `Weights.read` and `merged`."""
        return merged(self._read_base, self.adapters, name, region)

    def _read_base(self, name: str, region: Box) -> Tensor:
        form = self.adapters.settings.base_form if self.rounded else None
        if form is None or name not in self._linear:
            return self.base.read(name, region)
        return quantised_region(partial(self.base.read, name), self.shape(name), region, form)

    @cached_property
    def _linear(self) -> frozenset[str]:
        """The weights that `quantize_base` is for."""
        return frozenset(tensor.name for tensor in model_of(self.base).tensors if tensor.linear)


@dataclass(frozen=True)
class AdaptedFolder:
    """The weights of a folder of PEFT: those of its base, with what the adapters add."""

    path: Path
    base: HFFolder
    adapters: PeftAdapters

    @property
    def origin(self) -> str:
        """See `Weights.origin`."""
        return str(self.path)

    @property
    def model(self) -> Mapping[str, Any]:
        """See `Weights.model`."""
        return self.base.model

    @property
    def config(self) -> Mapping[str, Any]:
        """See `Weights.config`."""
        return self.base.config

    def names(self) -> Collection[str]:
        """See `Weights.names`."""
        return self.base.names()

    def shape(self, name: str) -> Shape:
        """See `Weights.shape`."""
        return self.base.shape(name)

    def read(self, name: str, region: Box) -> Tensor:
        """See `Weights.read` and `merged`."""
        return merged(self.base.read, self.adapters, name, region)

    def tokenizer(self) -> Tokenizer:
        """See `Weights.tokenizer`. The adapter's folder may have its own, with a chat template."""
        if not (self.path / fmt.TOKENIZER).is_file():
            return self.base.tokenizer()
        return read_tokenizer(self.path, self.base.hf_config, self.base.model_shape.vocab_size)

    def digest(self) -> str:
        """See `Weights.digest`."""
        return xxh64_hexdigest(f"{self.base.digest()} {self.adapters.digest()}".encode())


def weights_of(checkpoint: Checkpoint) -> Weights:
    """The weights of a checkpoint; of one that holds adapters, those of its base with what they add.

    Raises UserError where the base is not there, or holds other weights than the adapters were trained with.
    """
    if has_adapters(checkpoint):
        return AdaptedCheckpoint(checkpoint, open_base(checkpoint))
    return CheckpointWeights(checkpoint)


def open_base(checkpoint: Checkpoint) -> Weights:
    """The weights that the adapters in a checkpoint are for (see `base_path`).

    Raises UserError where they are not there, or have changed.
    """
    base = open_weights(base_path(checkpoint))
    if base.digest() != checkpoint.state["init_from"]["digest"]:
        raise UserError(
            f"{checkpoint.path} holds adapters of other weights than those in {base.path}, which have "
            "changed since; bring the old ones back"
        )
    return base


def base_path(checkpoint: Checkpoint) -> Path:
    """Where the weights lie that the adapters in a checkpoint are for: where they were read; or where that
    folder is not any more, where the settings of the run say, also below where the run lies now.

    Raises UserError where they are in none of these.
    """
    read, named = Path(checkpoint.state["init_from"]["path"]), Path(checkpoint.config["train"]["init_from"])
    places = [read]
    for root in (Path(), *_moved_to(checkpoint)):
        places += [root / named / "checkpoints" / read.name, root / named]
    path = next(filter(may_exist, places), None)
    if path is None:
        raise UserError(
            f"{checkpoint.path} holds adapters alone, and the weights that they are for are not at "
            f"{read} any more; bring them back"
        )
    return path


def _moved_to(checkpoint: Checkpoint) -> Iterator[Path]:
    """The folder in which a run was started, as seen from where its checkpoint lies now."""
    run = Path(checkpoint.config["run"]["dir"], checkpoint.config["run"]["name"])
    folder = checkpoint.path.absolute().parent.parent
    if not run.is_absolute() and folder.parts[-len(run.parts) :] == run.parts:
        yield folder.parents[len(run.parts) - 1]


def open_weights(path: Path) -> Weights:
    """The weights at a path: a run folder (of its newest good checkpoint), a folder of checkpoints, a
    checkpoint, an import, a folder in Hugging Face's format, or an adapter of PEFT.

    Raises UserError where there are none, and Damaged for a damaged checkpoint.
    """
    if not may_exist(path):
        raise UserError(
            f"{path}: no such folder; name a run folder, a checkpoint or an import{_not_downloaded(path)}"
        )
    if is_peft_folder(path):
        base = open_weights(base_of(path))
        if not isinstance(base, HFFolder):
            raise UserError(f"{path}: its base {base.path} is not in Hugging Face's format")
        return AdaptedFolder(path, base, PeftAdapters(path, base.model_shape, base.architecture))
    return HFFolder(path) if is_hf_folder(path) else weights_of(open_checkpoint(path))


def look_at(path: Path) -> Weights:
    """The weights at a path as by `open_weights`, of a run its newest checkpoint that can be opened: its
    tensors are not verified yet, nor adapters merged. For what needs no more than their description."""
    below = path / "checkpoints"  # a run folder has a manifest.json of its own
    if path.is_dir() and (below.is_dir() or not (path / fmt.MANIFEST).exists()):
        for folder in reversed(folders(below if below.is_dir() else path)):
            with suppress(fmt.Damaged):
                return CheckpointWeights(load(folder))
    return open_weights(path)


def read_model(asked: Asked) -> StoredModel:
    """The model that a configuration starts from: for `llmkit.config.load`.

    A run that has checkpoints goes on from them, and the folder that it began with need not be there.
    Raises UserError where there are no weights, or they are those of the run itself.
    """
    named, run = (Path(os.path.abspath(path)) for path in (asked.init_from, asked.run))
    if named == run or run in named.parents:
        raise UserError(f"{asked.init_from} is the run's own folder; give the new run another run.name")
    resumed = bool(folders(asked.run / "checkpoints"))
    weights = look_at(asked.run if resumed else asked.init_from)
    return StoredModel(model_of(weights), list(weights.config.get("plugins", [])), str(weights.path), resumed)


def _not_downloaded(path: Path) -> str:
    """A hint where the path looks like a URL, or like the name of a model of the hub."""
    is_name = len(path.parts) == 2 and not may_exist(path.parent)
    if not is_name and ":/" not in str(path):
        return ""
    return ". Nothing is downloaded: fetch a model of the hub with `hf download NAME --local-dir FOLDER`"


def model_of(weights: Weights) -> AnyModel:
    """The model that the weights are of, with the plugins imported that it needs.

    Raises UserError where a plugin cannot be imported, or the stored model is not valid.
    """
    require_plugins(weights.config, weights.origin)
    return stored_model(weights.model, weights.origin)


def check_vocabulary(weights: Weights, tokenizer: Tokenizer) -> None:
    """Raises UserError where the tokenizer has ids that the model does not know."""
    known = model_of(weights).vocab_size
    if tokenizer.vocab_size > known:
        raise UserError(
            f"{weights.path}: the tokenizer has ids up to {tokenizer.vocab_size - 1}, but the model knows "
            f"only {known} tokens"
        )
