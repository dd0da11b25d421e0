"""The norm of a gradient is exact however long it is."""

from __future__ import annotations

import pytest
import torch

from llmkit.engine.deepspeed import import_deepspeed, take_norm_precisely
from llmkit.kernels.gradient_norm import RUN, sum_of_squares
from llmkit.kernels.operators import TORCH

CPU = torch.device("cpu")


def exact(tensors: list[torch.Tensor]) -> float:
    return sum(float(tensor.double().square().sum()) for tensor in tensors)


def test_gpt2s_embedding_has_its_norm_to_seven_digits():
    embedding = torch.randn(50_257, 768, generator=torch.Generator().manual_seed(0))
    assert float(sum_of_squares([embedding], CPU)) == pytest.approx(exact([embedding]), rel=2e-7)
    wrong = float(torch.linalg.vector_norm(embedding)) ** 2  # else this test would show nothing
    assert wrong != pytest.approx(exact([embedding]), rel=1e-4)


@pytest.mark.parametrize("value", [0.1, 1.1, 3e-4])
def test_equal_elements_round_the_same_way_and_do_no_harm(value):
    same = torch.full((1000, 1001), value)
    assert float(sum_of_squares([same], CPU)) == pytest.approx(exact([same]), rel=5e-7)


def test_all_tensors_count_whatever_their_size_and_layout():
    generator = torch.Generator().manual_seed(1)
    sizes = [(), (1,), (RUN - 1,), (RUN,), (RUN + 1,), (3, 5, RUN), (0,)]
    tensors = [torch.randn(size, generator=generator) for size in sizes]
    tensors.append(torch.randn(40, 30, generator=generator).T)
    assert float(sum_of_squares(tensors, CPU)) == pytest.approx(exact(tensors), rel=1e-7)
    assert float(sum_of_squares([], CPU)) == 0.0


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_one_element_that_is_not_finite_shows(poison):
    tensors = [torch.ones(700), torch.ones(700)]
    tensors[1][650] = poison
    assert not torch.isfinite(sum_of_squares(tensors, CPU))


def test_the_norm_of_a_long_gradient_is_exact_where_deepspeed_would_take_it_in_fp32():
    import_deepspeed()
    from deepspeed.runtime.utils import get_global_norm_of_tensors

    class Zero:
        """What the norm of stage 1 in bf16 is taken of."""

        gradients = (torch.randn(2**25, generator=torch.Generator().manual_seed(0)),)

        def get_grads_for_norm(self, for_clipping: bool = False):
            return list(self.gradients) if for_clipping else (list(self.gradients), {})

    zero = Zero()
    wanted = exact(list(zero.gradients)) ** 0.5
    assert float(get_global_norm_of_tensors(zero.get_grads_for_norm()[0])) != pytest.approx(wanted, rel=1e-5)
    take_norm_precisely(zero, CPU, TORCH)
    gradients, experts = zero.get_grads_for_norm()
    assert float(get_global_norm_of_tensors(gradients)) == pytest.approx(wanted, rel=2e-7) and experts == {}
    assert zero.get_grads_for_norm(for_clipping=True)[0] is zero.gradients[0]
