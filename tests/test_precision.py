"""The number types that stand behind a precision's name."""

from __future__ import annotations

import pytest
import torch

from llmkit.config.schema import Train
from llmkit.precision import BYTES, PRECISIONS, torch_dtype


def test_every_precision_of_the_settings_has_its_types():
    choices = Train.model_json_schema()["properties"]["precision"]["enum"]
    assert set(choices) - {"auto"} == set(PRECISIONS)
    assert all(name == str(precision) for name, precision in PRECISIONS.items())


def test_masters_are_kept_where_the_weights_are_rounded():
    fp32, bf16 = PRECISIONS["fp32"], PRECISIONS["bf16"]
    assert (fp32.keeps_masters, bf16.keeps_masters) == (False, True)
    assert (bf16.weights, bf16.compute, bf16.reduction, bf16.masters) == ("bf16", "bf16", "fp32", "fp32")


@pytest.mark.parametrize("kind", list(BYTES))
def test_sizes_are_those_of_the_types(kind):
    assert torch.empty(1, dtype=torch_dtype(kind)).element_size() == BYTES[kind]
