"""The device's peak is the published one of exactly this GPU, or none; a CPU is measured."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from llmkit.monitor.hardware import (
    device_peak,
    has_avx512_bf16,
    has_bf16_units,
    measured_matrix_rate,
    peak_memory_gib,
    reserved_memory_gib,
)

CPU = torch.device("cpu")


def test_a_gpu_is_compared_with_its_bf16_peak_and_the_label_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 PCIe")
    peak, label = device_peak(torch.device("cuda"), torch.float32)
    assert peak == pytest.approx(756e12)
    assert label == "published dense bf16 peak of NVIDIA H100 PCIe, 756.0 TFLOP/s"
    assert device_peak(torch.device("cuda"), torch.bfloat16, fp8=True) == (
        pytest.approx(756e12), f"{label}, half of its fp8 peak"
    )  # fmt: skip


def test_an_unknown_gpu_has_no_peak_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA GeForce RTX 3060")
    assert device_peak(torch.device("cuda"), torch.bfloat16) == (
        None,
        "no published bf16 peak known for NVIDIA GeForce RTX 3060",
    )


def test_a_cpu_is_measured_in_the_dtype_of_the_training() -> None:
    peak, label = device_peak(CPU, torch.float32)
    assert peak is not None and 1e8 < peak < 1e15
    cpu = f"this CPU, {torch.get_num_threads()} threads?"
    assert re.fullmatch(rf"measured fp32 matrix rate of {cpu}: [1-9]\d* GFLOP/s", label)


@pytest.fixture(autouse=True)
def measured_anew() -> Iterator[None]:
    measured_matrix_rate.cache_clear()
    yield
    measured_matrix_rate.cache_clear()


def test_the_measured_rate_is_that_of_the_fastest_product_by_the_threads_own_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times = iter([0.0, 0.0, 0.5, 0.5, 0.7, 0.7, 1.1])  # products of 0.5, 0.2 and 0.4 s
    monkeypatch.setattr("llmkit.monitor.hardware.time.thread_time", lambda: next(times))
    assert measured_matrix_rate(torch.float32, seconds=1.0, sizes=(8,)) == pytest.approx(2 * 8**3 / 0.2)


def test_a_cpu_is_measured_once_in_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    first = measured_matrix_rate(torch.float32, seconds=0.0, sizes=(16,))
    monkeypatch.setattr("llmkit.monitor.hardware._matrix_rate", lambda *_: pytest.fail("measured again"))
    assert measured_matrix_rate(torch.float32, seconds=0.0, sizes=(16,)) == first


def test_products_that_would_take_too_long_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def slow(dtype: torch.dtype, seconds: float, size: int) -> float:
        tried.append(size)
        return 1e9

    monkeypatch.setattr("llmkit.monitor.hardware._matrix_rate", slow)
    assert measured_matrix_rate(torch.float32, seconds=0.3, sizes=(256, 512, 1024)) == 1e9
    assert tried == [256, 512]  # 1024 would take 2.1 s


def test_measuring_leaves_the_random_numbers_of_a_run_alone() -> None:
    before = torch.get_rng_state()
    measured_matrix_rate(torch.float32, seconds=0.0, sizes=(16,))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("line", "expected", "avx512"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16 sse", True, True),
        ("flags\t\t: fpu avx512_bf16 amx_tile amx_bf16", True, False),
        ("Features\t: fp asimd bf16 i8mm", True, False),
        ("flags\t\t: fpu avx512f avx2", False, False),
        ("model name\t: bf16 avx512_bf16", False, False),
    ],
)
def test_a_cpus_bf16_units_are_read_from_its_flags(
    tmp_path: Path, line: str, expected: bool, avx512: bool
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\n{line}\n")
    assert has_bf16_units(CPU, cpuinfo) is expected
    assert has_avx512_bf16(cpuinfo) is avx512


def test_a_system_that_does_not_list_its_flags_is_taken_to_have_no_bf16_units(tmp_path: Path) -> None:
    assert has_bf16_units(CPU, tmp_path / "missing") is False
    assert has_avx512_bf16(tmp_path / "missing") is False


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_gpus_have_bf16_units_from_ampere_on(
    capability: tuple[int, int], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert has_bf16_units(torch.device("cuda")) is expected


def test_peak_memory_of_a_cpu_run_is_what_the_kernel_counts() -> None:
    status = Path("/proc/self/status").read_text()
    kibibytes = int(status.split("VmHWM:")[1].split()[0])
    assert peak_memory_gib(CPU) == pytest.approx(kibibytes / 2**20, rel=0.05)


def test_memory_of_a_gpu_run_is_what_the_allocator_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**29)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 5 * 2**29)
    device = torch.device("cuda")
    assert (peak_memory_gib(device), reserved_memory_gib(device)) == (1.5, 2.5)
    assert reserved_memory_gib(CPU) is None
