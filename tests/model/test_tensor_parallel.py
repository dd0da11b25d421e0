"""A model sharded over processes against the same model on one: loss, and every parameter's gradient."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.profiler import profile

from llmkit.batch import IGNORE, Batch
from llmkit.config.shape import ModelShape
from llmkit.kernels import attention_blocks as kernels
from llmkit.kernels import head_loss_chunks
from llmkit.kernels.head_loss import CROSS_ENTROPY, LossTerms
from llmkit.kernels.head_loss_chunks import BUFFER_BYTES
from llmkit.kernels.operators import Operators
from llmkit.model.build import check_placements
from llmkit.model.gpt import GPT
from llmkit.parallel.mesh import Mesh, TensorParallel, make_mesh
from llmkit.parallel.placement import REPLICATED, place, placement, tensor_sharded
from llmkit.parallel.randomness import seed_step
from llmkit.parallel.slices import ParameterSlice, box_shape, box_size
from tests.ranks import run_ranks
from tests.shapes import GPT2_STYLE, LLAMA_STYLE, random_model

SHAPES = {
    # Tied head, biases, learned positions; of the odd vocabulary the last of 4 ranks holds padding only.
    "gpt2": replace(GPT2_STYLE, vocab_size=95, padded_vocab_size=128),
    "unpadded": replace(GPT2_STYLE, vocab_size=97, padded_vocab_size=97, qk_norm=True),
    # One key and value head, hence shared by all ranks; QK-norm; an untied head; biases too.
    "shared": replace(
        LLAMA_STYLE, num_attention_heads=8, num_key_value_heads=1, head_dim=8, qk_norm=True,
        attention_bias=True, mlp_bias=True, vocab_size=101, padded_vocab_size=104,
    ),
    # Two: of four ranks, two share each; of two ranks, each has its own.
    "grouped": replace(
        LLAMA_STYLE, num_attention_heads=4, num_key_value_heads=2, head_dim=12, qk_norm=True, sliding_window=7
    ),
    "plain": replace(LLAMA_STYLE, num_attention_heads=8, num_key_value_heads=4, head_dim=6),
}  # fmt: skip
LENGTH = 20
COMPILER = "aot_eager_decomp_partition"  # all of torch.compile but the generated code
SENT = (
    "c10d::allreduce_",
    "c10d::allgather_into_tensor_coalesced_",
    "c10d::alltoall_base_",
    "c10d::reduce_scatter_tensor_coalesced_",
)


def batch_of(shape: ModelShape, documents: bool) -> Batch:
    generator = torch.Generator().manual_seed(5)
    tokens, labels = torch.randint(shape.vocab_size, (2, 3, LENGTH), generator=generator).unbind()
    labels = labels.clone()
    labels[0, 3:9] = IGNORE
    labels[2] = IGNORE
    numbers = (torch.rand(3, LENGTH, generator=generator) < 0.2).cumsum(-1).int()
    return Batch(tokens, labels, numbers if documents else None)


def tensors(model: GPT, gradients: bool) -> dict[str, Tensor]:
    """The full tensors of an uncut model by their names."""
    weights = dict(model.named_parameters())
    return {
        part.name: (weights[name].grad if gradients else weights[name])[part.start : part.stop]
        for name, parts in model.parameter_slices().items()
        for part in parts
    }


def piece(full: Tensor, part: ParameterSlice) -> Tensor:
    return full[tuple(slice(low, high) for low, high in part.box)]


@torch.no_grad()
def sharded_model(
    full: GPT, tp: TensorParallel, attention: str = "sdpa", head: str = "chunked", **options: Any
) -> GPT:
    """The full model's weights in a sharded one."""
    model = GPT(full.shape, Operators.of({"attention": attention, "head_loss": head}), tp, **options)
    weights = tensors(full, gradients=False)
    check_placements(model)
    for name, parameter in model.named_parameters():
        parameter.zero_()
        for part in model.parameter_slices()[name]:
            parameter[part.start : part.stop] = piece(weights[part.name], part)
        parameter.data = parameter.to(next(full.parameters()).dtype)
    return model


def differences(found: GPT, wanted: GPT) -> dict[str, float]:
    """||found - wanted|| / ||wanted|| of the gradient of each part on this rank."""
    full, errors = tensors(wanted, gradients=True), {}
    for name, parameter in found.named_parameters():
        rows = torch.zeros(parameter.shape[0], dtype=torch.bool)
        for part in found.parameter_slices()[name]:
            ours, theirs = (
                parameter.grad[part.start : part.stop].float(),
                piece(full[part.name], part).float(),
            )
            rows[part.start : part.stop] = True
            if box_size(part.box) == 0:
                continue
            scale = full[part.name].norm() if part.name.endswith("k_proj.bias") else theirs.norm()
            if part.name.endswith("k_proj.bias") and found.shape.qk_norm is False:
                scale = torch.ones(())  # softmax ignores it: its true gradient is 0
            errors[part.name] = float((ours - theirs).norm() / scale)
        assert not parameter.grad[~rows].any(), f"{name}: gradient of padding"
    return errors


@torch.no_grad()
def decoded(model: GPT) -> Tensor:
    """Logits behind rows of different lengths, which the cache has read before."""
    cache, tokens = model.new_cache(), torch.arange(27).view(3, 9)
    model.logits(tokens[:, :7], cache.rows([5, 2, 7]))
    return torch.stack([model.logits(tokens[:, at : at + 1], cache.rows([1, 1, 1])) for at in (7, 8)])


def same_on_all_ranks(model: GPT, mesh: Mesh) -> bool:
    """Whether the gradients of what is not cut are bit for bit the same on all ranks."""
    for _, parameter in model.named_parameters():
        if "tensor" in placement(parameter).copies:
            copies = [torch.empty_like(parameter.grad) for _ in range(mesh["tensor"].size)]
            dist.all_gather(copies, parameter.grad, group=mesh["tensor"].group)
            if not all(torch.equal(copies[0], copy) for copy in copies):
                return False
    return True


def compare(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """On a rank: the worst differences of each case."""
    results, meshes = [], {size: make_mesh(size) for size in sorted({case["size"] for case in cases})}
    for case in cases:
        shape, mesh = SHAPES[case["shape"]], meshes[case["size"]]
        reference = random_model(shape, case.get("attention", "sdpa"))
        if case.get("bf16"):
            reference.bfloat16()
        tp = mesh.tensor_parallel(shape.num_key_value_heads, case["sequence"])
        terms = LossTerms(*case.get("terms", CROSS_ENTROPY))
        reference.head.terms = terms
        head_loss_chunks.BUFFER_BYTES = 0 if case.get("head") == "in chunks" else BUFFER_BYTES
        model = sharded_model(
            reference,
            tp,
            case.get("attention", "sdpa"),
            case.get("head", "chunked").removeprefix("in ").replace("chunks", "chunked"),
            **case.get("options", {}),
        )
        model.head.terms = terms
        if case.get("compiled"):
            torch._dynamo.reset()
            model.compile_parts(print, COMPILER)
        batch = batch_of(shape, case["documents"])
        wanted, found = reference(batch), model(batch)
        wanted.objective.backward()
        sent = None
        if "options" in case:
            with profile() as seen:
                found.objective.backward()
            sent = sum(event.count for event in seen.key_averages() if event.key in SENT)
        else:
            found.objective.backward()
        errors = differences(model, reference)
        logits = 0.0
        if not case["sequence"]:
            exact = decoded(reference)
            logits = float((decoded(model) - exact).norm() / exact.norm())
        if case.get("bf16"):  # as far from fp32 as the uncut model is: the ratio of the two distances
            exact = random_model(shape)
            exact(batch).nats.sum().backward()
            uncut, errors = differences(reference, exact), differences(model, exact)
            errors = {name: error / (uncut[name] + 0.01) for name, error in errors.items()}
        groups = {"attention": ("q_proj", "k_proj", "q_norm", "k_norm"), "gradient": ("",)}
        worst = {}
        for group, members in groups.items():
            named = {name: errors.pop(name) for name in list(errors) if any(m in name for m in members)}
            worst[group] = max((error, name) for name, error in named.items())
        results.append(
            {
                "loss": float(((found.nats - wanted.nats).abs() / wanted.nats.clamp(min=1.0)).max()),
                "extras": [float(found.extras[name] / extra) for name, extra in wanted.extras.items()],
                "targets": bool((found.targets == wanted.targets).all()),
                "same": same_on_all_ranks(model, mesh),
                "logits": logits,
                "sent": sent,
                "breaks": case.get("compiled", False) and len(torch._dynamo.utils.counters["graph_break"]),
                **worst,
            }
        )
    return results


CASES = [
    {"shape": shape, "size": size, "sequence": sequence, "documents": documents}
    for number, shape in enumerate(SHAPES)
    for size in (2, 4)
    for sequence in (False, True)
    for documents in (bool((number + size // 2 + sequence) % 2),)
]
CASES += [
    {"shape": "grouped", "size": 4, "sequence": True, "documents": True, "attention": "matmul"},
    {"shape": "gpt2", "size": 4, "sequence": False, "documents": False, "attention": "matmul"},
]
TERMS = LossTerms(softcap=3.0, z_loss=1e-2, label_smoothing=0.1)
CASES += [
    {"shape": "gpt2", "size": size, "sequence": sequence, "documents": False, "head": head, "terms": TERMS}
    for size, sequence, head in (
        (4, False, "chunked"),
        (2, True, "in chunks"),
        (4, False, "full"),
        (2, True, "full"),
    )
]
CASES += [{"shape": "unpadded", "size": 4, "sequence": True, "documents": False, "head": "in chunks"}]
RECOMPUTED = [
    {
        "shape": shape,
        "size": 4,
        "sequence": sequence,
        "documents": False,
        "options": {"activation_checkpointing": how},
    }
    for shape, sequence in (("grouped", True), ("gpt2", False))
    for how in ("none", "selective", "full")
]
COMPILED = [
    {
        "shape": "shared",
        "size": 2,
        "sequence": True,
        "documents": False,
        "options": {"activation_checkpointing": how},
    }
    for how in ("none", "selective", "full")
]
COMPILED = [{**case, "compiled": True} for case in COMPILED]
CASES += [  # a tile of 6 positions is 3 of each rank's piece, and then 1
    {"shape": "gpt2", "size": 2, "sequence": True, "documents": False, "options": {"mlp_tile": 6}},
    {"shape": "grouped", "size": 2, "sequence": False, "documents": False, "options": {"mlp_tile": 7}},
]
CASES += RECOMPUTED
BF16 = [
    {"shape": shape, "size": 2, "sequence": sequence, "documents": False, "bf16": True}
    for shape, sequence in (("gpt2", False), ("shared", True))
]


@pytest.fixture(scope="module")
def outcome() -> list[list[dict[str, Any]]]:
    return run_ranks(4, "tests.model.test_tensor_parallel:compare", cases=CASES + BF16)


def both_dropouts() -> list[dict[str, bool]]:
    return [with_dropout(sequence) for sequence in (False, True)]


@pytest.fixture(scope="module")
def compiled() -> list[list[dict[str, Any]]]:
    return run_ranks(2, "tests.model.test_tensor_parallel:compare", cases=COMPILED)


@pytest.fixture(scope="module")
def dropouts() -> list[list[dict[str, bool]]]:
    return run_ranks(2, "tests.model.test_tensor_parallel:both_dropouts")


def case_name(case: dict[str, Any]) -> str:
    options = case.get("options", {})
    return "-".join(str(value) for value in (case | options).values() if isinstance(value, str | int))


def check(found: dict[str, Any]) -> None:
    assert found["loss"] <= 1e-6 and found["targets"]
    assert found["extras"] == pytest.approx([1.0] * len(found["extras"]), rel=2e-6)
    assert found["gradient"][0] <= 4e-6, found["gradient"]
    assert found["attention"][0] <= 1e-4, found["attention"]  # of queries and keys: small differences
    assert found["same"] and not found["breaks"]
    assert found["logits"] <= 2e-6


@pytest.mark.parametrize("number", range(len(CASES)), ids=[case_name(case) for case in CASES])
def test_loss_and_every_gradient_equal_the_unsharded_models(outcome, number):
    for rank in outcome:
        check(rank[number])


@pytest.mark.exhaustive
@pytest.mark.parametrize("number", range(len(COMPILED)), ids=[case_name(case) for case in COMPILED])
def test_compiled_parts_give_the_same(compiled, number):
    for rank in compiled:
        check(rank[number])


def check_sent(found: list[dict[str, Any]]) -> None:
    none, selective, full = (case["sent"] for case in found)
    assert 0 < none == selective < full


def test_selective_recomputation_sends_nothing_again(outcome):
    first = len(CASES) - len(RECOMPUTED)
    check_sent(outcome[0][first : first + 3])
    check_sent(outcome[0][first + 3 : first + 6])


@pytest.mark.exhaustive
def test_compiled_selective_recomputation_sends_nothing_again(compiled):
    check_sent(compiled[0])


@pytest.mark.parametrize("number", range(len(BF16)), ids=[case_name(case) for case in BF16])
def test_bf16_differs_by_rounding_only(outcome, number):
    for rank in outcome:
        found = rank[len(CASES) + number]
        assert found["loss"] <= 2e-3 and found["same"] and found["logits"] <= 2e-2
        assert found["gradient"][0] <= 2.0, found["gradient"]
        assert found["attention"][0] <= 2.0, found["attention"]


def with_dropout(sequence: bool) -> dict[str, bool]:
    """On one of 2 ranks, for two steps: what agrees between the ranks, and what repeats."""
    shape = replace(SHAPES["gpt2"], hidden_dropout=0.3, attention_dropout=0.3)
    mesh = make_mesh(2)
    tp = mesh.tensor_parallel(shape.num_key_value_heads, sequence)
    hidden: dict[str, Tensor] = {}

    def step(activation_checkpointing: str) -> dict[str, Tensor]:
        """Loss and gradients; also what leaves the last norm, the attention's weights and the generator."""
        dropped: list[Tensor] = []
        model = sharded_model(
            random_model(shape), tp, "matmul", activation_checkpointing=activation_checkpointing
        )
        model.norm.register_forward_hook(lambda *call: hidden.update(out=call[-1].detach()))
        with pytest.MonkeyPatch.context() as patch:
            plain = kernels.F.dropout

            def watched(*arguments: Any, **options: Any) -> Tensor:
                out = plain(*arguments, **options)
                dropped.append((out == 0)[..., -1, :])  # the last query sees all keys
                return out

            patch.setattr(kernels, "F", SimpleNamespace(dropout=watched))
            seed_step(1, 2)
            nats = model(batch_of(shape, False)).nats
            mask = torch.stack(dropped)
            nats.sum().backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        return {
            "loss": nats.detach(),
            "hidden": hidden["out"],
            "mask": mask,
            "next": torch.rand(3),
        } | gradients

    def agrees(x: Tensor) -> bool:
        copies = [torch.empty_like(x) for _ in range(2)]
        dist.all_gather(copies, x.contiguous())
        return torch.equal(*copies)

    first, again, replayed = step("none"), step("none"), step("full")
    return {
        "same loss": agrees(first["loss"]),
        "same hidden": agrees(first["hidden"]),
        "same mask": agrees(first["mask"].byte()),
        "same generator": agrees(first["next"]),
        "repeats": all(torch.equal(first[name], again[name]) for name in first),
        "replays": all(torch.equal(first[name], replayed[name]) for name in first),
    }


@pytest.mark.parametrize("sequence", [False, True])
def test_dropout_agrees_where_activations_do_and_differs_where_they_are_cut(dropouts, sequence):
    for rank in dropouts:
        assert rank[sequence] == {
            "same loss": True,
            "same hidden": not sequence,
            "same mask": False,
            "same generator": True,
            "repeats": True,
            "replays": True,
        }


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_ranks_parts_are_each_tensor_once(shape, size):
    counts: dict[str, Tensor] = {}
    for rank in range(size):
        model = GPT(shape, tp=TensorParallel(rank=rank, size=size))
        cut = [name for name, p in model.named_parameters() if "tensor" in placement(p).sharded]
        for name, parts in model.parameter_slices().items():
            for part in parts:
                assert part.stop - part.start == box_shape(part.box)[0]
                seen = counts.setdefault(part.name, torch.zeros(part.shape, dtype=torch.int64))
                if name in cut or rank == 0:
                    piece(seen, part).add_(1)
    assert all(bool((seen == 1).all()) for seen in counts.values())
    assert sum(seen.numel() for seen in counts.values()) == shape.num_parameters


def test_a_wrong_placement_is_noticed():
    for change in ("missing", "surplus", "other dimension"):
        model = GPT(GPT2_STYLE, tp=TensorParallel(rank=1, size=2))
        check_placements(model)
        if change == "missing":
            place(model.blocks[1].mlp.down_proj.weight, REPLICATED)
        elif change == "surplus":
            place(model.blocks[1].mlp.down_proj.bias, tensor_sharded(0))
        else:
            place(model.blocks[1].mlp.down_proj.weight, tensor_sharded(0))
        with pytest.raises(AssertionError, match=r"blocks\.1\.mlp\.down_proj"):
            check_placements(model)
