"""Numbers that depend on the step, the rank and the key, and on nothing else."""

from __future__ import annotations

import torch

from llmkit.parallel.randomness import keyed_bits, own_stream, seed_step


def test_a_step_draws_what_it_drew_before_whatever_came_between():
    def drawn(seed: int, step: int, rank: int) -> torch.Tensor:
        seed_step(seed, step, rank)
        return torch.rand(4)

    first = drawn(3, 5, 1)
    torch.rand(17)
    assert torch.equal(drawn(3, 5, 1), first)
    for other in ((4, 5, 1), (3, 6, 1), (3, 5, 2), (35, 1, 1)):
        assert not torch.equal(drawn(*other), first)


def test_neighbouring_keys_and_positions_choose_independently():
    index = torch.arange(1 << 16)
    bits = torch.stack([keyed_bits(index, torch.tensor(key)) for key in (5, 6, 5 + (1 << 32))]).double()
    assert float(torch.corrcoef(bits).triu(1).abs().max()) < 0.02
    for distance in (1, 2, 64, 256):
        pair = torch.stack((bits[0, distance:], bits[0, :-distance]))
        assert abs(float(torch.corrcoef(pair)[0, 1])) < 0.02
    assert bits.min() >= 0.0 and bits.max() < 2**24


def test_ranks_draw_differently_and_go_on_alike():
    drawn, agreed, after = [], [], []
    for rank in (0, 1):
        seed_step(3, 5, data_rank=1)
        with own_stream(rank, torch.device("cpu")) as number:
            agreed.append(number)
            drawn.append(torch.rand(4))
        after.append(torch.rand(4))
    assert agreed[0] == agreed[1] and torch.equal(*after) and not torch.equal(*drawn)
