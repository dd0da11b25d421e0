"""llmkit: pretraining and fine-tuning of GPT-style language models, from one YAML file.

The names below are the public interface (docs/api.md); all others may change without notice. They are
imported when first used, so that `import llmkit` costs next to nothing.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmkit import layers as layers
    from llmkit.api import Run as Run
    from llmkit.api import TrainedModel as TrainedModel
    from llmkit.api import load as load
    from llmkit.api import train as train
    from llmkit.batch import Batch as Batch
    from llmkit.batch import LossSum as LossSum
    from llmkit.config.load import Loaded as Loaded
    from llmkit.config.section import Section as Section
    from llmkit.data.sources.custom import DataSource as DataSource
    from llmkit.engine.base import StepResult as StepResult
    from llmkit.errors import UserError as UserError
    from llmkit.loop.hook import Evaluation as Evaluation
    from llmkit.loop.hook import Hook as Hook
    from llmkit.loop.hook import Request as Request
    from llmkit.loop.trainer import Trainer as Trainer
    from llmkit.model.base import Model as Model
    from llmkit.model.base import ModelContext as ModelContext
    from llmkit.monitor import media as media
    from llmkit.monitor.sink import Sink as Sink
    from llmkit.optim.base import Optimizer as Optimizer
    from llmkit.registry import register as register

__version__ = "0.1.0"

_HOMES = {
    "Batch": "llmkit.batch:Batch",
    "DataSource": "llmkit.data.sources.custom:DataSource",
    "Evaluation": "llmkit.loop.hook:Evaluation",
    "Hook": "llmkit.loop.hook:Hook",
    "Loaded": "llmkit.config.load:Loaded",
    "LossSum": "llmkit.batch:LossSum",
    "Model": "llmkit.model.base:Model",
    "ModelContext": "llmkit.model.base:ModelContext",
    "Optimizer": "llmkit.optim.base:Optimizer",
    "Request": "llmkit.loop.hook:Request",
    "Run": "llmkit.api:Run",
    "Section": "llmkit.config.section:Section",
    "Sink": "llmkit.monitor.sink:Sink",
    "StepResult": "llmkit.engine.base:StepResult",
    "TrainedModel": "llmkit.api:TrainedModel",
    "Trainer": "llmkit.loop.trainer:Trainer",
    "UserError": "llmkit.errors:UserError",
    "layers": "llmkit.layers:",
    "load": "llmkit.api:load",
    "media": "llmkit.monitor.media:",
    "register": "llmkit.registry:register",
    "train": "llmkit.api:train",
}
"""Where each public name is defined: module:name."""

__all__ = list(_HOMES)


if not TYPE_CHECKING:  # which would take any name for one that is here

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'llmkit' has no attribute {name!r}")
        module, _, defined = _HOMES[name].partition(":")
        found = importlib.import_module(module)
        return getattr(found, defined) if defined else found


class _Package(ModuleType):
    """This package, in which `train` stays the function when the module of this name is imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name == "train" and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
