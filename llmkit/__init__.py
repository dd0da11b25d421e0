"""llmkit: pretraining of GPT-style models, from a laptop's CPU to a cluster, from one YAML file.

The names below are the public interface (docs/api.md); all others may change without notice. They are
imported when first used, so that `import llmkit` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmkit import layers as layers
    from llmkit.batch import Batch as Batch
    from llmkit.batch import LossSum as LossSum
    from llmkit.config.load import load as load
    from llmkit.config.schema import Section as Section
    from llmkit.errors import UserError as UserError
    from llmkit.model.base import Model as Model
    from llmkit.model.base import ModelContext as ModelContext
    from llmkit.registry import register as register

__version__ = "0.1.0"

_HOMES = {
    "Batch": "llmkit.batch",
    "LossSum": "llmkit.batch",
    "Model": "llmkit.model.base",
    "ModelContext": "llmkit.model.base",
    "Section": "llmkit.config.schema",
    "UserError": "llmkit.errors",
    "load": "llmkit.config.load",
    "register": "llmkit.registry",
}
"""The module of each public name."""

__all__ = [*_HOMES, "layers"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name == "layers":
        return importlib.import_module("llmkit.layers")
    raise AttributeError(f"module 'llmkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
