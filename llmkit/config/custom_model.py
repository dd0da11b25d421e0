"""What is known of a registered model before it is built, and kept of it in a checkpoint."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import ValidationError

from llmkit.config.model_section import ModelChoice
from llmkit.config.parameters import FullTensor
from llmkit.config.registered import CHOICES, section_of
from llmkit.config.shape import ModelShape
from llmkit.errors import UserError
from llmkit.registry import Component, find, names

NOT_STORED = {"takes_tensor_parallel", "supports", "scalars", "tensors"}


@dataclass(frozen=True)
class CustomModel:
    """A registered model with its settings: enough to build it, and to read it back from a checkpoint.

    settings: of its section, as plain values. flops_per_token: of forward and backward, in sequences of
    `max_position_embeddings` tokens. takes_tensor_parallel: whether all its parameters lie in layers that can
    be sharded. supports: see `Model.supports`. scalars: names of parameters without dimensions. tensors: all
    parameters. These four are not kept in checkpoints.
    """

    type: str
    vocab_size: int
    max_position_embeddings: int
    num_parameters: int
    flops_per_token: int
    settings: dict[str, Any]
    takes_tensor_parallel: bool = False
    supports: tuple[str, ...] = ()
    scalars: tuple[str, ...] = ()
    tensors: tuple[FullTensor, ...] = ()

    @property
    def component(self) -> Component:
        """The registered class. Raises UserError where nothing of this name is registered."""
        found = find("model", self.type)
        if found is None:
            raise UserError(
                f"the model type {self.type!r} is not registered (known: {', '.join(names('model'))}): "
                "import the module that registers it, or name that under `plugins:`"
            )
        return found

    def section(self) -> ModelChoice:
        """The settings as the class that checks them. Raises UserError where it refuses them."""
        schema: Any = section_of(CHOICES[0], self.component)
        try:
            return schema.model_validate_json(json.dumps(self.settings))
        except ValidationError as fault:
            what = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in fault.errors())
            raise UserError(f"the settings of the model type {self.type!r} are not valid: {what}") from None

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values that JSON can hold."""
        fields = dataclasses.asdict(self)
        return {name: value for name, value in fields.items() if name not in NOT_STORED}


AnyModel = ModelShape | CustomModel


class Describes(Protocol):
    """A registered class of models; `llmkit.model.base.Model` is one."""

    def describe(
        self, settings: ModelChoice, vocab_size: int, length: int, tensor_parallel_size: int = 1
    ) -> CustomModel:
        """What is known of the model before it is built."""
        ...


def describe(
    settings: ModelChoice, vocab_size: int, length: int, tensor_parallel_size: int = 1
) -> CustomModel:
    """The registered model that these settings choose; length: tokens of a sequence.

    Raises UserError where it cannot be built so, as where tensor parallelism does not divide its layers.
    """
    component = find("model", settings.type)
    assert component is not None, settings.type
    if not hasattr(component.make, "describe"):
        raise UserError(
            f"the model type {settings.type!r}: {component.origin} is no subclass of llmkit.Model"
        )
    model: Describes = component.make
    return model.describe(settings, vocab_size, length, tensor_parallel_size)


def stored_model(values: Mapping[str, Any], origin: str) -> AnyModel:
    """The model that `to_dict` wrote into a checkpoint. Raises UserError for values that are not right."""
    if "type" not in values:
        return ModelShape.from_dict(values, origin)
    fields = {field.name for field in dataclasses.fields(CustomModel)} - NOT_STORED
    if values.keys() != fields or not isinstance(values["settings"], dict):
        raise UserError(f"{origin}: its model of type {values['type']!r} is not as this version writes one")
    return CustomModel(**values)
