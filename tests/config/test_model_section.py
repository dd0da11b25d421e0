"""The settings of the model say all that a model is built from."""

from __future__ import annotations

import dataclasses

from llmkit.config.model_section import Model
from llmkit.config.shape import ModelShape


def test_every_setting_but_the_type_is_a_size_of_the_model() -> None:
    fields = {field.name: field for field in dataclasses.fields(ModelShape)}
    assert set(Model.model_fields) - {"type"} == fields.keys() - {"padded_vocab_size"}
    for name, setting in Model.model_fields.items():
        if name in fields and fields[name].default is not dataclasses.MISSING:
            assert fields[name].default == setting.default, name
