from __future__ import annotations

import pytest

from llmkit.kernels.cpu.load import load
from llmkit.monitor.hardware import has_avx512_bf16

pytestmark = pytest.mark.skipif(not has_avx512_bf16(), reason="needs a CPU with AVX-512 BF16")


def test_a_source_becomes_a_library_once_and_a_wrong_name_is_none() -> None:
    assert load("gradients.cpp").weight_gradient
    with pytest.raises(FileNotFoundError):
        load("absent.cpp")
