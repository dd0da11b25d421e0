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
    from llmkit.optim.base import Optimizer as Optimizer
    from llmkit.registry import register as register

__version__ = "0.1.0"

_HOMES = {
    "Batch": "llmkit.batch:Batch",
    "LossSum": "llmkit.batch:LossSum",
    "Model": "llmkit.model.base:Model",
    "ModelContext": "llmkit.model.base:ModelContext",
    "Optimizer": "llmkit.optim.base:Optimizer",
    "Section": "llmkit.config.schema:Section",
    "UserError": "llmkit.errors:UserError",
    "layers": "llmkit.layers:",
    "load": "llmkit.config.load:load",
    "register": "llmkit.registry:register",
}
"""Where each public name is defined: module:name."""

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'llmkit' has no attribute {name!r}")
    module, _, defined = _HOMES[name].partition(":")
    found = importlib.import_module(module)
    return getattr(found, defined) if defined else found


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
