"""Rates of single operations on a GPU."""

from __future__ import annotations

import pytest

from llmkit.estimate.devices import Hardware
from llmkit.estimate.rates import FP8_GAIN, GpuRates, attention_chart

H100 = GpuRates(Hardware().device("h100"))


def test_a_large_product_runs_at_the_rate_that_was_measured() -> None:
    rate = 2 * 8192**3 / H100.product(8192, 8192, 8192, "bf16")
    assert rate == pytest.approx(0.86 * 798e12, rel=0.002)  # of which so much lasts
    assert H100.product(8192, 8192, 8192, "bf16") / H100.product(8192, 8192, 8192, "fp8") == pytest.approx(
        FP8_GAIN
    )
    assert H100.product(8192, 8192, 8192, "fp32") > 10 * H100.product(8192, 8192, 8192, "bf16")


def test_products_lose_by_a_short_sum_by_waves_and_by_memory() -> None:
    def rate(rows: int, columns: int, inner: int) -> float:
        return 2 * rows * columns * inner / H100.product(rows, columns, inner, "bf16")

    assert rate(16384, 16384, 256) < 0.75 * rate(16384, 16384, 8192)
    # 133 tiles, one more than there are multiprocessors: a second wave for it alone
    assert rate(128 * 19, 256 * 7, 4096) < 0.6 * rate(128 * 12, 256 * 11, 4096)
    one_row = H100.product(1, 8192, 8192, "bf16")
    assert one_row >= 8192 * 8192 * 2 / 3.01e12  # the weight must be read


def test_attention_is_faster_on_long_rows_and_by_newer_kernels() -> None:
    def rate(length: int, form: str, backward: bool = False) -> float:
        return 1e15 / H100.attention(1e15, 128, length, form, backward)

    assert rate(1024, "cudnn") < rate(8192, "cudnn")
    assert rate(8192, "flash") < rate(8192, "cudnn") < rate(8192, "flash3")
    assert rate(8192, "cudnn", backward=True) < rate(8192, "cudnn")
    assert rate(8192, "sdpa") == rate(8192, "cudnn")
    assert rate(8192, "efficient") < rate(8192, "flash")


@pytest.mark.parametrize("name", sorted(Hardware().devices))
def test_every_device_has_a_chart_for_every_form(name: str) -> None:
    architecture = Hardware().device(name).architecture
    for form in ("sdpa", "cudnn", "flash", "flash3", "flash4", "varlen", "efficient", "matmul", "blocks"):
        assert attention_chart(architecture, form).keys() == {64, 128}


def test_memory_and_launches() -> None:
    assert H100.pointwise(3.0e12) == pytest.approx(1.0, rel=0.01)
    assert H100.loss(3.0e11, 10) == H100.updated(3.0e11, 10) == H100.accumulated(3.0e11, 10)
    assert H100.loss(3.0e11, 10) == H100.pointwise(3.0e12)
    assert H100.launched(1000) == pytest.approx(4.5e-3)
