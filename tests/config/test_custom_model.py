"""What is known of a registered model before it is built, and what a checkpoint keeps of it."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import llmkit
from llmkit.config.custom_model import CustomModel, describe, stored_model
from llmkit.config.load import Loaded
from llmkit.config.registered import CHOICES, config_class, section_of
from llmkit.config.shape import ModelShape
from llmkit.errors import UserError
from llmkit.layers import RowLinear
from llmkit.plan import resolve_plan
from llmkit.registry import find, register
from tests.examples.project import forgotten
from tests.shapes import LLAMA_STYLE


class Wide(llmkit.Model):
    """A linear layer, sharded or not."""

    supports = ("document_masks",)

    class Config(llmkit.Section):
        """Its size."""

        width: int = 6
        """Of it."""
        sharded: bool = False
        """Whether it can be."""
        scaled: bool = False
        """Whether there is a parameter without dimensions."""
        pair: tuple[int, int] = (1, 2)
        """A list in JSON."""

    def __init__(self, config, context):
        super().__init__()
        self.table = RowLinear(config.width, context.vocab_size, False, context.tp)
        if config.scaled:
            self.scale = nn.Parameter(torch.ones(()))
        if not config.sharded:
            self.extra = nn.Linear(3, config.width, bias=False)

    def flops_per_token(self, length):
        return length


@pytest.fixture(autouse=True)
def registered():
    with forgotten():
        register("model", "wide")(Wide)
        yield


def settings(**values):
    return section_of(CHOICES[0], find("model", "wide"))(**values)


def test_it_is_described_without_memory_for_it():
    found = describe(settings(width=2**20, sharded=True), 2**20, 7)
    assert found.num_parameters == 2**40 and found.flops_per_token == 7
    assert (found.vocab_size, found.max_position_embeddings) == (2**20, 7)
    assert found.takes_tensor_parallel and found.supports == ("document_masks",)
    assert not describe(settings(), 11, 7).takes_tensor_parallel
    assert found.scalars == () and describe(settings(scaled=True), 11, 7).scalars == ("scale",)


@pytest.mark.parametrize(("parallel", "refused"), [({"zero_stage": 2}, True), ({"zero_stage": 1}, False)])
def test_a_parameter_without_dimensions_is_refused_where_deepspeed_would_get_it(parallel, refused):
    content = {
        "data": {"sources": [{"type": "stdlib"}], "sequence_length": 8},
        "train": {"max_steps": 1, "global_batch_size": 2},
        "model": {"type": "wide", "scaled": True},
        "parallel": {"world_size": 2, **parallel},
    }
    loaded = Loaded.of(config_class(content).model_validate(content))
    if not refused:
        assert resolve_plan(loaded).layout.engine == "native"
        return
    with pytest.raises(
        UserError, match=r"(?s)stage 2\) takes no parameters without.*give scale the shape \(1,\)"
    ):
        resolve_plan(loaded)


def test_layers_that_the_ranks_do_not_divide_are_found():
    describe(settings(width=6, sharded=True), 11, 7, tensor_parallel_size=3)
    with pytest.raises(UserError, match="6, is not divisible by the 4 tensor-parallel ranks"):
        describe(settings(width=6, sharded=True), 11, 7, tensor_parallel_size=4)


def test_through_a_checkpoint_and_back():
    found = describe(settings(width=8, pair=(3, 4)), 11, 7)
    again = stored_model(json.loads(json.dumps(found.to_dict())), "step-3")
    assert isinstance(again, CustomModel) and again.num_parameters == found.num_parameters
    assert again.section() == settings(width=8, pair=(3, 4)) and again.component.make is Wide


def test_ours_is_read_as_before():
    assert stored_model(LLAMA_STYLE.to_dict(), "step-3") == LLAMA_STYLE
    assert isinstance(stored_model(LLAMA_STYLE.to_dict(), "step-3"), ModelShape)


def test_what_is_stored_of_another_version_or_of_other_settings_is_refused():
    values = describe(settings(), 11, 7).to_dict()
    with pytest.raises(UserError, match="step-3: its model of type 'wide' is not as this version"):
        stored_model({**values, "experts": 3}, "step-3")
    other = stored_model({**values, "settings": {"type": "wide", "depth": 3}}, "step-3")
    with pytest.raises(UserError, match="settings of the model type 'wide' are not valid: depth: Extra"):
        other.section()
    nobody = stored_model({**values, "type": "narrow"}, "step-3")
    with pytest.raises(
        UserError, match=r"'narrow' is not registered \(known: gpt, wide\): import the module"
    ):
        nobody.section()
