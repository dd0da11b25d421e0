"""A model without weights does not compute: memory that nobody set would train like any other."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from accelerate import init_empty_weights

from llmkit.batch import Batch
from llmkit.config.load import load
from llmkit.config.optimizer_section import Optimizer
from llmkit.engine.native import NativeEngine
from llmkit.model.gpt import GPT
from llmkit.model.initial import InitialWeights
from llmkit.parallel.mesh import TensorParallel
from llmkit.precision import PRECISIONS
from tests.program import make_project
from tests.shapes import GPT2_STYLE, LLAMA_STYLE

ROWS = Batch(torch.zeros(1, 8, dtype=torch.int64), torch.ones(1, 8, dtype=torch.int64))


def on_meta() -> GPT:
    with torch.device("meta"):
        return GPT(LLAMA_STYLE)


def by_accelerate() -> GPT:
    with init_empty_weights():
        return GPT(LLAMA_STYLE)


EMPTY: dict[str, Callable[[], GPT]] = {
    "unset": lambda: GPT(LLAMA_STYLE, seed=None),
    "meta": on_meta,
    "accelerate's meta": by_accelerate,
    "brought from meta": lambda: on_meta().to_empty(device="cpu"),
    "emptied": lambda: GPT(LLAMA_STYLE).to_empty(device="cpu"),
}


@pytest.mark.parametrize("make", EMPTY.values(), ids=EMPTY)
def test_a_model_without_weights_does_not_compute(make):
    model = make()
    for compute in (lambda: model(ROWS), lambda: model.logits(ROWS.tokens)):
        with pytest.raises(RuntimeError, match=r"this GPT has no weights: .*GPT\.build"):
            compute()


def test_an_engine_without_weights_does_not_train():
    engine = NativeEngine(
        GPT(LLAMA_STYLE, seed=None), Optimizer(), precision=PRECISIONS["fp32"], gradient_clipping=1.0
    )
    with pytest.raises(RuntimeError, match="this GPT has no weights"):
        engine.train_step([ROWS], 8)
    engine.write_pieces(InitialWeights(engine.model, 0), 0)
    assert torch.isfinite(engine.train_step([ROWS], 8).loss_sum)


def test_loaded_weights_are_weights_if_all_are_there():
    whole = GPT(LLAMA_STYLE, seed=5)
    part = {name: value for name, value in whole.state_dict().items() if name != "norm.weight"}
    model = GPT(LLAMA_STYLE, seed=None)
    model.load_state_dict(part, strict=False)
    with pytest.raises(RuntimeError, match="no weights"):
        model(ROWS)
    model.load_state_dict(whole.state_dict())
    assert torch.equal(model(ROWS).nats, whole(ROWS).nats)
    assigned = on_meta()
    assigned.load_state_dict(whole.state_dict(), assign=True)
    assert torch.equal(assigned(ROWS).nats, whole(ROWS).nats)


def test_a_model_that_is_moved_is_moved_whole():
    model = GPT(LLAMA_STYLE)
    assert model.rope is not None
    before = [table.clone() for table in model.rope]
    model.to(torch.bfloat16)
    assert all(torch.equal(now, then) for now, then in zip(model.rope, before, strict=True)), "they stay fp32"
    assert {table.device.type for table in model.to("meta").rope} == {"meta"}
    model.to_empty(device="cpu")
    assert all(torch.equal(now, then) for now, then in zip(model.rope, before, strict=True))


@pytest.mark.filterwarnings("ignore:for .*copying from a non-meta parameter")
def test_weights_loaded_into_the_meta_device_are_none():
    model = on_meta()
    model.load_state_dict(GPT(LLAMA_STYLE).state_dict())
    with pytest.raises(RuntimeError, match="no weights"):
        model(ROWS)


@pytest.mark.parametrize("shape", [GPT2_STYLE, LLAMA_STYLE], ids=["gpt2", "llama"])
@pytest.mark.parametrize("rank", [None, 1])
def test_a_model_starts_with_the_weights_of_its_seed(shape, rank):
    tp = TensorParallel() if rank is None else TensorParallel(rank=rank, size=2)
    model = GPT(shape, tp=tp, seed=7)
    source = InitialWeights(GPT(shape, seed=None), 7)
    weights = dict(model.named_parameters())
    for name, parts in model.parameter_slices().items():
        for part in parts:
            drawn = source.read(part.name, "master", part.box)
            assert torch.equal(weights[name][part.start : part.stop], drawn), part.name
        used = max(part.stop for part in parts)
        assert not weights[name][used:].any()  # what only pads the vocabulary


def test_a_model_is_built_from_a_configuration(tmp_path):
    config = load(make_project(tmp_path), ["run.seed=4"]).config
    model = GPT.build(config)
    assert (model.shape.hidden_size, model.shape.vocab_size) == (32, 257)
    assert torch.equal(model.norm.weight, torch.ones(32))
    assert torch.equal(model.embedding.weight, GPT(model.shape, seed=4).embedding.weight)
    assert GPT.build(config, 300).shape.vocab_size == 300
