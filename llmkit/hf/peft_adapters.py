"""Low-rank adapters read from a folder of PEFT."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from os.path import isfile
from pathlib import Path
from typing import Any

from torch import Tensor

from llmkit.config.shape import ModelShape
from llmkit.errors import UserError
from llmkit.files import read_json
from llmkit.hf.architectures import Architecture
from llmkit.hf.names import Place, places
from llmkit.hf.peft_folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from llmkit.hf.tensor_files import TensorFiles
from llmkit.parallel.slices import Box

PREFIX = "base_model.model."
NO_EFFECT = frozenset({
    "auto_mapping", "base_model_name_or_path", "exclude_modules", "fan_in_fan_out", "inference_mode",
    "layers_pattern", "layers_to_transform", "lora_dropout", "megatron_core", "peft_version",
    "qalora_group_size", "revision", "runtime_config", "target_modules", "task_type",
})  # fmt: skip
"""Keys that do not change what the adapters compute, or that the names of the tensors say as well."""
WRITTEN = "name a folder that PEFT has written"
_NAME = re.compile(r"[A-Za-z0-9_.]+")


def is_peft_folder(path: Path) -> bool:
    """Whether a folder holds an adapter of PEFT alone; not one that is closed to us."""
    return isfile(path / ADAPTER_CONFIG) and not isfile(path / "config.json")


def base_of(path: Path) -> Path:
    """The folder of the model that an adapter is for. Raises UserError where it is not on this disk."""
    named = read_json(path / ADAPTER_CONFIG, WRITTEN).get("base_model_name_or_path")
    for base in (Path(str(named)), path / str(named)):
        if isinstance(named, str) and named and base.is_dir():
            return base
    raise UserError(
        f"{path / ADAPTER_CONFIG}: the model that this adapter is for, {json.dumps(named)}, is no folder "
        "here; download it, and set base_model_name_or_path to its folder"
    )


class PeftAdapters:
    """The adapters of a folder; see `llmkit.weights.Adapters`. shape, architecture: of their base model.

    Raises UserError for what is more than plain LoRA, and for adapters that do not fit the model.
    """

    def __init__(self, path: Path, shape: ModelShape, architecture: Architecture) -> None:
        self.path = path
        self._config = read_json(path / ADAPTER_CONFIG, WRITTEN)
        self._check_config()
        self._files = TensorFiles(path, ADAPTER_WEIGHTS)
        found = {
            module: self._files.shapes[name][0]
            for name in self._files.shapes
            if (module := _module(name, "lora_A")) is not None
        }
        stored = places(architecture.naming.stored(shape.parameters()))
        self._places: dict[str, Place] = {
            name.removesuffix(".weight"): place
            for name, place in stored.items()
            if place.stored.name.removesuffix(".weight") in found
        }
        self._ranks = found
        self._check_tensors()

    @property
    def layers(self) -> frozenset[str]:
        """See `Adapters.layers`."""
        return frozenset(self._places)

    def change(self, layer: str, region: Box) -> Tensor:
        """See `Adapters.change`."""
        place = self._places[layer]
        module = place.stored.name.removesuffix(".weight")
        rank, ((low, high), columns) = (0, self._ranks[module]), region
        rows = (low + place.first, high + place.first)
        a = self._files.view(f"{PREFIX}{module}.lora_A.weight", (rank, columns))
        b = self._files.view(f"{PREFIX}{module}.lora_B.weight", (rows, rank))
        return (b.float() @ a.float()).mul_(self._scale(module))

    def _scale(self, module: str) -> float:
        rank = self._ranks[module]
        alpha = self._of_pattern("alpha_pattern", module, float(self._config["lora_alpha"]))
        return alpha / (rank**0.5 if self._config.get("use_rslora") else rank)

    def _of_pattern(self, key: str, module: str, default: float) -> float:
        """What `alpha_pattern` says of a module: by the end of its name, as in PEFT."""
        patterns: Mapping[str, float] = self._config.get(key) or {}
        for end, value in patterns.items():
            if f".{module}".endswith(f".{end}"):
                return float(value)
        return default

    def digest(self) -> str:
        """A hash: equal for equal adapters."""
        return self._files.digest(json.dumps(self._config, sort_keys=True).encode())

    def _check_config(self) -> None:
        left = {key: value for key, value in self._config.items() if key not in NO_EFFECT}
        fixed: dict[str, tuple[Any, ...]] = {
            "peft_type": ("LORA",), "bias": ("none",), "init_lora_weights": (True, False, "gaussian"),
            "use_rslora": (True, False),
        }  # fmt: skip
        refused = {
            key: value
            for key, value in left.items()
            if key not in ("r", "lora_alpha", "rank_pattern", "alpha_pattern")
            and (value not in fixed[key] if key in fixed else bool(value))
        }
        for key in ("rank_pattern", "alpha_pattern"):
            ends = left.get(key) or {}
            if not isinstance(ends, dict) or not all(map(_NAME.fullmatch, ends)):
                refused[key] = ends
        if not isinstance(left.get("lora_alpha"), (int, float)):
            refused["lora_alpha"] = left.get("lora_alpha")
        if refused:
            named = ", ".join(f"{key} = {json.dumps(value):.80}" for key, value in refused.items())
            raise UserError(
                f"{self.path / ADAPTER_CONFIG}: only plain LoRA is supported, and this has {named}"
            )

    def _check_tensors(self) -> None:
        """Raises UserError unless each tensor is the A or B of a matrix of the model, and fits it."""
        stored = {each.stored.name.removesuffix(".weight"): each.stored for each in self._places.values()}
        wanted = {}
        for module, tensor in stored.items():
            rows = sum(size[0] for _, size in tensor.parts)
            wanted[f"{PREFIX}{module}.lora_A.weight"] = (self._ranks[module], tensor.parts[0][1][1])
            wanted[f"{PREFIX}{module}.lora_B.weight"] = (rows, self._ranks[module])
        for name in sorted(wanted.keys() | self._files.shapes.keys()):
            found = self._files.shapes.get(name)
            if found != wanted.get(name):
                raise UserError(
                    f"{self.path / ADAPTER_WEIGHTS}: {name} is {found or 'absent'}, for its base model it "
                    f"must be {wanted.get(name, 'absent')}; was the adapter trained on another model?"
                )


def _module(name: str, kind: str) -> str | None:
    """Their module that a tensor's name is of, if it is of this kind."""
    end = f".{kind}.weight"
    return name.removeprefix(PREFIX).removesuffix(end) if name.endswith(end) else None
