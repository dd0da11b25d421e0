"""Triton's rotation against complex multiplication in float64: in place, out of place, and back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.kernels.float64 import check, relative_error

BATCH, SEQ = 2, 5
HEADS = {"as many": (3, 3, 10), "grouped": (6, 2, 6), "one": (1, 1, 2)}


def tables(seq: int, half: int, device: str) -> tuple[Tensor, Tensor]:
    angle = torch.outer(torch.arange(seq, dtype=torch.float64) + 3, torch.linspace(1.0, 0.01, half).double())
    return angle.cos().float().to(device), angle.sin().float().to(device)


def complex_rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    def one(x: Tensor) -> Tensor:
        turned = torch.complex(*x.chunk(2, -1)) * torch.complex(cos, sin)[:, None]
        return torch.cat((turned.real, turned.imag), -1)

    return one(q), one(k)


def heads_of(qkv: Tensor, q_heads: int, k_heads: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    parts = qkv.split([q_heads * width, k_heads * width, k_heads * width], -1)
    q, k, v = (each.unflatten(-1, (-1, width)) for each in parts)
    return q, k, v


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
def test_rotation_and_its_gradients(device, heads, dtype):
    from llmkit.kernels.triton.rotation import _rotated, rotate

    q_heads, k_heads, width = heads
    qkv = torch.randn(BATCH, SEQ, (q_heads + 2 * k_heads) * width, device=device).to(dtype)
    q, k, _ = heads_of(qkv, *heads)
    inputs = [q.requires_grad_(), k.requires_grad_(), *tables(SEQ, width // 2, device)]
    check(rotate, complex_rotate, inputs)
    check(lambda *each: _rotated(*each, False), complex_rotate, inputs)


def test_parts_of_one_projection_are_rotated_in_place_and_the_rest_is_left_alone(device):
    from llmkit.kernels.triton.rotation import rotate

    x, weight = torch.randn(BATCH, SEQ, 7, device=device), torch.randn(50, 7, device=device)
    angles = tables(SEQ, 3, device)
    found, wanted = [], []
    for form, into in ((rotate, found), (complex_rotate, wanted)):
        leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
        qkv = leaves[0] @ leaves[1].T
        before = qkv.detach().clone()
        q, k, v = heads_of(qkv[..., :48], 4, 2, 6)
        new_q, new_k = form(q, k, *angles)
        if form is rotate:
            assert new_q.data_ptr() == qkv.data_ptr(), "not in place"
            assert torch.equal(qkv[..., 36:], before[..., 36:]), "v has changed"
        (new_q.square().sum() + (new_k**3).sum() + v.sum()).backward()
        into += [new_q, new_k, *(each.grad for each in leaves)]
    for number, (one, other) in enumerate(zip(found, wanted)):
        assert relative_error(one, other) < 2e-6, f"tensor {number}"


@pytest.mark.parametrize("shared", ["elements of q", "q and k"])
def test_what_shares_memory_is_not_rotated_in_place(device, shared):
    from llmkit.kernels.triton.rotation import rotate

    cos, sin = tables(SEQ, 3, device)
    q = torch.randn(BATCH, SEQ, 1, 6, device=device)
    q, k = (q, q) if shared == "q and k" else (q.expand(BATCH, SEQ, 4, 6), q + 1.0)
    wanted = complex_rotate(q.double(), k.double(), cos.double(), sin.double())
    for one, other in zip(rotate(q, k, cos, sin), wanted):
        assert relative_error(one, other) < 2e-6


def test_cosines_and_sines_may_lie_in_different_tables(device):
    from llmkit.kernels.triton.rotation import rotate

    cos, sin = tables(SEQ, 3, device)
    q, k = (torch.randn(BATCH, SEQ, heads, 6, device=device).requires_grad_() for heads in (4, 2))
    check(rotate, complex_rotate, [q, k, torch.cat((cos, sin), -1)[:, :3], sin])


@pytest.mark.parametrize("how", ["full", "selective"])
def test_a_projection_that_is_rotated_twice_is_rotated_once(device, how):
    """Selective checkpointing keeps the product and computes what follows again."""
    from llmkit.kernels.triton.rotation import rotate
    from llmkit.model.activation_checkpointing import recomputed

    weight, angles = torch.randn(36, 7, device=device), tables(SEQ, 3, device)

    def layer(x: Tensor) -> Tensor:
        q, k, v = heads_of(x @ weight.T, 2, 2, 6)
        q, k = rotate(q, k, *angles)
        return (q.tanh() * k + v).sum()

    x = torch.randn(BATCH, SEQ, 7, device=device)
    gradients = []
    for each in ("none", how):
        leaf = x.clone().requires_grad_()
        recomputed(each, layer, leaf, random=False).backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients), f"{relative_error(*gradients):.1e}"
