"""The native engine on a GPU: nothing waits for it. Without one: on tensors that have no values to read."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module

import pytest
import torch

from llmkit.batch import Batch
from llmkit.config.operators import FLASH_PACKAGES
from llmkit.config.optimizer_section import Optimizer
from llmkit.config.shape import ModelShape
from llmkit.engine.layer_sums import COUNTS
from llmkit.engine.native import NativeEngine
from llmkit.kernels.operators import FORMS as TABLE
from llmkit.kernels.operators import PLAIN, TORCH, Operators
from llmkit.loop.scalars import Scalars
from llmkit.model.gpt import GPT
from llmkit.optim.build import moments
from llmkit.precision import PRECISIONS
from tests.chosen import few_at_every_commit
from tests.engine.test_native import batch_of, targets
from tests.shapes import GPT2_STYLE, LLAMA_STYLE, random_model

OPTIMIZER = Optimizer(learning_rate=1e-2, eps=1e-5, weight_decay=0.1)
OPTIMIZERS = ["adamw", "muon"]
CASES = {
    "plain": (LLAMA_STYLE, "none", False),
    "documents": (LLAMA_STYLE, "none", True),
    "window": (replace(LLAMA_STYLE, sliding_window=5), "none", False),
    "full": (LLAMA_STYLE, "full", False),
    "selective": (LLAMA_STYLE, "selective", False),
    "gpt2, documents": (GPT2_STYLE, "none", True),
    "gpt2, dropout": (replace(GPT2_STYLE, attention_dropout=0.1, hidden_dropout=0.1), "none", False),
}
FEW = ("documents", "selective", "gpt2, dropout")
"""Of these the ones that forms of an operator are tried in at every commit."""
FORMS = [
    (operator, form)
    for operator, forms in TABLE.items()
    for form in forms
    if form != PLAIN[operator] and form not in FLASH_PACKAGES
]
"""All that is not plain PyTorch, nor needs a package of others."""
ON_GPU = [each for each in FORMS if not TABLE[each[0]][each[1]].startswith("llmkit.kernels.cpu")]
EVEN = {"head_dim": 16, "intermediate_size": 96}
"""Sizes that all forms take."""
ALWAYS = ("varlen", "documents")
"""What a form is for."""
ADDRESSES = ("adamw", "triton")
"""A form that takes addresses, which meta tensors do not have: a GPU alone can tell."""
FORMS_IN_CASES = [
    pytest.param(
        operator, form, case, id=f"{operator}-{form}-{case}",
        marks=[] if case == FEW[number % 3] or (form, case) == ALWAYS else pytest.mark.exhaustive,
    )
    for number, (operator, form) in enumerate(each for each in FORMS if each != ADDRESSES)
    for case in CASES
]  # fmt: skip
"""Each form in each case, in one of them at every commit."""


def make(
    shape: ModelShape,
    device: str,
    precision: str,
    optimizer: str,
    activation_checkpointing: str,
    operators: Operators = TORCH,
) -> NativeEngine:
    """An engine as `build_engine` makes one: the model is born on its device."""
    with torch.device(device):
        model = GPT(shape, operators, activation_checkpointing=activation_checkpointing)
    if device == "meta":
        model.has_weights = True  # none of their values is looked at
    else:
        model.load_state_dict(random_model(shape).state_dict())
    settings = OPTIMIZER.model_copy(update={"name": optimizer})
    return NativeEngine(
        model, settings, precision=PRECISIONS[precision], gradient_clipping=0.5, operators=operators
    )


@pytest.fixture
def fused_on_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's fused optimizers take meta tensors."""
    optim = import_module("torch.optim.optimizer")  # no attribute of torch.optim
    monkeypatch.setattr(optim, "_get_fused_kernels_supported_devices", lambda: ["meta"])


@pytest.mark.usefixtures("fused_on_meta")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("precision", list(PRECISIONS))
@pytest.mark.parametrize("case", few_at_every_commit(CASES, ("plain", "window", *FEW)))
def test_no_tensor_is_left_on_the_cpu_and_no_value_is_read(case, precision, optimizer):
    """On the meta device either raises an error."""
    shape, activation_checkpointing, documents = CASES[case]
    take_steps(make(shape, "meta", precision, optimizer, activation_checkpointing), documents)


@pytest.mark.usefixtures("fused_on_meta")
@pytest.mark.parametrize(("operator", "form", "case"), FORMS_IN_CASES)
def test_nor_by_any_other_form_of_an_operator(operator, form, case):
    if form == "triton":
        pytest.importorskip("triton")
    shape, activation_checkpointing, documents = CASES[case]
    operators, shape = Operators.of({operator: form}), replace(shape, **EVEN)
    take_steps(make(shape, "meta", "bf16", "adamw", activation_checkpointing, operators), documents)


def take_steps(engine: NativeEngine, documents: bool) -> None:
    """A step, one without targets and an evaluation, on meta tensors."""
    for each in engine.optimizers:  # as a checkpoint brings it; made in the first step it would be the CPU's
        for master in (p for group in each.param_groups for p in group["params"]):
            zeros = {kind: torch.zeros_like(master) for kind in moments(each)}
            each.state[master] = {"step": torch.zeros((), device="meta"), **zeros}
    tokens = torch.zeros(2, 16, dtype=torch.int64, device="meta")
    masked = (tokens == 3).cumsum(1, dtype=torch.int32), torch.zeros(16, dtype=torch.int32, device="meta")
    batch = Batch(tokens, tokens.clone(), *(masked if documents else ()))
    sources = torch.zeros(2, 3, dtype=torch.bool, device="meta")
    result = engine.train_step([batch._replace(sources=sources)] * 2, 64, measure=True)
    assert result.layers is not None and result.by_source is not None and result.by_position is not None
    for sums in (result.by_source, result.by_position, result.layers.sums, result.layers.of_outputs):
        assert (sums.device.type, sums.dtype) == ("meta", torch.float64)
    for scalar in (result.loss_sum, result.grad_norm, result.skipped):
        assert (scalar.device.type, scalar.shape) == ("meta", ())
    assert (result.loss_sum.dtype, result.grad_norm.dtype) == (torch.float64, torch.float32)
    empty = engine.train_step([batch, batch], 0)
    assert [scalar.dtype for scalar in (empty.loss_sum, empty.grad_norm)] == [torch.float64, torch.float32]
    assert engine.evaluate([batch]).nats.device.type == "meta"


def on_gpu(shape: ModelShape, step: int) -> tuple[Batch, int]:
    batch = batch_of(shape, step)
    return batch.to(torch.device("cuda")), targets(batch)


@pytest.mark.cuda
@pytest.mark.parametrize("shape", [GPT2_STYLE, LLAMA_STYLE], ids=["gpt2", "llama"])
@pytest.mark.parametrize("precision", list(PRECISIONS))
def test_a_gpu_trains_as_a_cpu_does(precision, shape):
    cpu, gpu = (make(shape, device, precision, "adamw", "none") for device in ("cpu", "cuda"))
    loss, norm = (1e-5, 1e-4) if precision == "fp32" else (2e-2, 1e-1)
    for step in range(5):
        batch, count = on_gpu(shape, step)
        a = cpu.train_step([batch_of(shape, step)], count, measure=True)
        b = gpu.train_step([batch], count, measure=True)
        assert a.layers is not None and b.layers is not None
        sizes = [each.layers.sums[:, :COUNTS].sqrt().cpu() for each in (a, b)]
        outputs = [each.layers.of_outputs.cpu() for each in (a, b)]
        torch.testing.assert_close(sizes[1], sizes[0], rtol=max(norm, 1e-3), atol=1e-6)
        torch.testing.assert_close(outputs[1], outputs[0], rtol=max(norm, 1e-3), atol=0)
        torch.testing.assert_close(b.by_position.cpu(), a.by_position, rtol=loss, atol=0)
        assert b.loss_sum.item() == pytest.approx(a.loss_sum.item(), rel=loss)
        assert b.grad_norm.item() == pytest.approx(a.grad_norm.item(), rel=norm)


@pytest.mark.cuda
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("precision", list(PRECISIONS))
def test_a_step_and_its_scalars_wait_for_nothing(request, precision, optimizer):
    engine = make(LLAMA_STYLE, "cuda", precision, optimizer, "none")
    step_without_waiting(engine, LLAMA_STYLE, request)


@pytest.mark.cuda
@pytest.mark.parametrize(("operator", "form"), ON_GPU)
def test_nor_does_a_step_by_any_other_form(request, operator, form):
    if form == "fp8" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("no GPU that multiplies 8-bit numbers")
    shape = replace(LLAMA_STYLE, **EVEN)
    step_without_waiting(
        make(shape, "cuda", "bf16", "adamw", "none", Operators.of({operator: form})), shape, request
    )


def step_without_waiting(engine: NativeEngine, shape: ModelShape, request: pytest.FixtureRequest) -> None:
    """The first step may wait: it makes the optimizer's state, and compiles kernels."""
    batch, count = on_gpu(shape, 0)
    engine.train_step([batch, batch], 2 * count)
    scalars = []
    sources = torch.tensor([[True, False]], device="cuda").expand(len(batch.tokens), 2).contiguous()
    batch = batch._replace(sources=sources)
    request.getfixturevalue("waiting_is_an_error")
    for step in range(3):
        result = engine.train_step([batch, batch], 2 * count, measure=step > 0)
        found = [result.loss_sum, result.grad_norm, result.skipped, result.by_source]
        if result.layers is not None:
            found += [result.by_position, result.layers.sums, result.layers.of_outputs]
        scalars.append(Scalars(found))
    torch.cuda.set_sync_debug_mode("default")
    losses = [each.read()[0] for each in scalars]
    assert losses[2] < losses[0]


@pytest.mark.cuda
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("precision", list(PRECISIONS))
def test_an_infinite_gradient_or_no_target_leaves_a_gpus_state_alone(precision, optimizer):
    engine = make(LLAMA_STYLE, "cuda", precision, optimizer, "none")
    batch, count = on_gpu(LLAMA_STYLE, 0)
    engine.train_step([batch], count)
    before = [piece.data.clone() for piece in engine.read_pieces()]
    handle = list(engine.weights.values())[3].register_hook(lambda gradient: gradient.fill_(float("inf")))
    assert engine.train_step([batch], count).skipped.item() == 1.0
    handle.remove()
    assert engine.train_step([batch], 0).skipped.item() == 0.0
    assert engine.optimizer_steps == 1
    for old, piece in zip(before, engine.read_pieces(), strict=True):
        assert torch.equal(old, piece.data), piece.name
    assert engine.train_step([batch], count).skipped.item() == 0.0
    assert engine.optimizer_steps == 2


@pytest.mark.cuda
def test_the_norm_of_a_large_gradient_is_exact_on_a_gpu():
    from llmkit.kernels.gradient_norm import sum_of_squares

    large = torch.randn(50_257, 768, device="cuda")
    exact = large.double().square().sum().item()
    assert sum_of_squares([large], large.device).item() == pytest.approx(exact, rel=1e-6)
