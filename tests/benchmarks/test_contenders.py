"""What is compared: the same sizes, the same batches, the same targets."""

from __future__ import annotations

import math
from types import ModuleType

import pytest
import torch

from benchmarks import contenders, peers, workloads
from benchmarks.contenders import build, contender_shape
from benchmarks.workloads import make_batches, make_workload
from llmkit.batch import IGNORE
from llmkit.errors import UserError

CPU, GPU = torch.device("cpu"), torch.device("cuda")
SMALL = ("demo", "14m")


@pytest.mark.parametrize("name", workloads.NAMES)
def test_peers_are_as_large_as_llmkit(name: str) -> None:
    shape = make_workload(name, CPU).shape
    for contender in contenders.NAMES:
        peer = contender_shape(contender, shape)
        assert peer.num_block_parameters == pytest.approx(
            shape.num_block_parameters, rel=0.03 if name != "toy" else 0.2
        )
        assert (peer.hidden_size, peer.vocab_size) == (shape.hidden_size, shape.vocab_size)


@pytest.mark.parametrize(
    ("name", "millions"),
    [("124m", 124.4), ("355m", 354.8), ("1558m", 1557.6), ("llama-1b", 1235.8), ("14m", 13.8)],
)
def test_shapes_have_their_published_size(name: str, millions: float) -> None:
    assert make_workload(name, GPU).shape.num_parameters / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize(
    ("name", "peer"), [("124m", "gpt2"), ("1558m", "gpt2-compiled"), ("llama-1b", "llama")]
)
def test_a_peer_of_the_same_architecture_trains_the_very_same_model(name: str, peer: str) -> None:
    shape = make_workload(name, GPU).shape
    assert contender_shape(peer, shape) == shape


@pytest.mark.parametrize("contender", ["gpt2", "llama"])
@pytest.mark.parametrize("name", SMALL)
def test_a_peers_model_has_the_size_its_row_says(name: str, contender: str) -> None:
    shape = contender_shape(contender, make_workload(name, CPU).shape)
    with torch.device("meta"):
        model = peers.transformers_model(shape)

    padding = (shape.padded_vocab_size - shape.vocab_size) * shape.hidden_size
    assert sum(p.numel() for p in model.parameters()) == shape.num_parameters + padding
    assert model.config._attn_implementation == "sdpa"


def test_batches_are_the_same_every_time_and_end_without_a_target() -> None:
    workload = make_workload("toy", CPU)
    once, again = make_batches(workload, CPU), make_batches(workload, CPU)

    for (one,), (other,) in zip(once, again, strict=True):
        assert torch.equal(one.tokens, other.tokens)
        assert torch.equal(one.labels[:, :-1], one.tokens[:, 1:])
        assert (one.labels[:, -1] == IGNORE).all()
        assert (one.tokens >= 0).all()
        assert (one.tokens < workload.shape.vocab_size).all()
    assert not torch.equal(once[0][0].tokens, once[1][0].tokens)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["llmkit", "llama"])
def test_a_contender_learns_the_batch_it_sees_again(name: str, precision: str) -> None:
    workload = make_workload("toy", CPU)
    step = build(name, workload, precision, CPU, lambda note: None)
    batch = make_batches(workload, CPU)[0]

    losses = [float(step(batch)) for _ in range(8)]

    assert losses[0] == pytest.approx(math.log(500), abs=0.2)
    assert losses == sorted(losses, reverse=True)


def test_without_a_compiler_a_compiled_peer_is_not_run_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contenders, "compiler_missing", lambda device: "no C++ compiler is found")
    with pytest.raises(RuntimeError, match=r"torch\.compile cannot work here: no C"):
        build("gpt2-compiled", make_workload("toy", CPU), "fp32", CPU, lambda note: None)


def test_an_unknown_shape_is_refused() -> None:
    with pytest.raises(UserError, match="no shape named '7b'; choose among demo, toy"):
        make_workload("7b", CPU)


def test_a_workloads_settings_can_be_changed_by_section() -> None:
    changes = {"train": {"global_batch_size": 6, "micro_batch_size": 2}, "data": {"document_masks": True}}
    workload = make_workload("toy", CPU, changes)

    assert (workload.rows, workload.micro_rows) == (6, 2)
    batches = make_batches(workload, CPU)
    assert [len(step) for step in batches] == [3] * workloads.BATCHES
    for batch in batches[0]:
        assert batch.documents is not None
        assert batch.documents.shape == batch.tokens.shape == (2, 32)
    with pytest.raises(ValueError, match="micro_batch_size"):
        make_workload("toy", CPU, {"train": {"micro_batch_size": "most"}})


@pytest.mark.parametrize("name", ["llmkit", "llama"])
def test_micro_batches_make_the_step_of_the_whole_batch(name: str) -> None:
    losses = []
    for micro_rows in (4, 2):
        workload = make_workload("toy", CPU, {"train": {"micro_batch_size": micro_rows}})
        step = build(name, workload, "fp32", CPU, lambda note: None)
        losses.append([float(step(batch)) for batch in make_batches(workload, CPU)[:4]])

    assert losses[0] == pytest.approx(losses[1], abs=2e-5)


@pytest.mark.parametrize("shape", ["toy", "124m", "llama-1b"])
def test_litgpts_model_has_the_size_its_row_says(shape: str) -> None:
    pytest.importorskip("litgpt")
    size = contender_shape("litgpt", make_workload(shape, CPU).shape)
    with torch.device("meta"):
        model = peers.litgpt_model(size)

    padding = (size.padded_vocab_size - size.vocab_size) * size.hidden_size
    assert sum(p.numel() for p in model.parameters()) == size.num_parameters + padding


def test_litgpt_learns_the_batch_it_sees_again() -> None:
    pytest.importorskip("litgpt")
    workload = make_workload("toy", CPU)
    step = build("litgpt", workload, "bf16", CPU, lambda note: None)
    batch = make_batches(workload, CPU)[0]

    losses = [float(step(batch)) for _ in range(8)]

    assert losses[0] == pytest.approx(math.log(500), abs=0.2)
    assert losses == sorted(losses, reverse=True)


def test_a_patch_holds_for_a_while_only() -> None:
    module = ModuleType("library")
    module.rotate = original = object()  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError), peers.patched(module, {"rotate": "patched"}):
        assert module.rotate == "patched"
        raise RuntimeError
    assert module.rotate is original


def test_ligers_kernels_are_not_run_on_a_cpu() -> None:
    with pytest.raises(RuntimeError, match="need a GPU"):
        build("llama-liger", make_workload("toy", CPU), "fp32", CPU, lambda note: None)


def test_ligers_patches_stay_with_the_model_they_are_for() -> None:
    pytest.importorskip("liger_kernel")
    from transformers.models.llama import modeling_llama

    shape = contender_shape("llama-liger", make_workload("toy", CPU).shape)
    with torch.device("meta"):
        model = peers.transformers_model(shape)
    before = dict(vars(modeling_llama))
    peers.liger_loss(model, GPU)

    assert vars(modeling_llama) == before
    assert "liger" in model.forward.__module__
    assert "liger" in model.model.layers[0].mlp.forward.__module__
