"""Counters of energy: a tree of zones as the kernel shows it, a stand-in for NVML, and sums over both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llmkit.monitor import energy
from llmkit.monitor.energy import Counter, Meter, Unreadable, cpu_counters, find_sources, nvml_counter


def zone(root: Path, name: str, label: str, microjoules: int, top: int = 262_143_328_850) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{label}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text(f"{top}\n")
    return folder


class NVMLError(Exception):
    """As NVML's own, of which each code has a subclass."""


class NotFound(NVMLError):
    """No GPU has this UUID."""


def fake_nvml(millijoules: dict[str, Any]) -> SimpleNamespace:
    """pynvml with the functions that are used. millijoules: of each UUID; an exception is raised."""

    def handle_of(uuid: str) -> str:
        if uuid not in millijoules:
            raise NotFound("Not Found")
        return uuid

    def total(handle: str) -> int:
        value = millijoules[handle]
        if isinstance(value, Exception):
            raise value
        return int(value)

    return SimpleNamespace(
        NVMLError=NVMLError, nvmlInit=lambda: None, nvmlDeviceGetHandleByUUID=handle_of,
        nvmlDeviceGetTotalEnergyConsumption=total,
    )  # fmt: skip


class Bench:
    """A meter of counters that are set by hand, on a clock that is."""

    def __init__(self, **tops: float | None) -> None:
        self.now, self.values = 100.0, dict.fromkeys(tops, 0.0)

        def reader(name: str) -> Callable[[], float]:
            return lambda: self.values[name]

        self.counters = [Counter("rapl", name, reader(name), top) for name, top in tops.items()]

    def meter(self) -> Meter:
        return Meter(self.counters, lambda: self.now)

    def advance(self, meter: Meter, seconds: float, **values: float) -> float:
        self.now += seconds
        self.values |= values
        meter.update()
        return meter.reading(["rapl"]).joules


def test_packages_and_memory_count_and_nothing_counts_twice(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 1_000_000)
    zone(tmp_path, "intel-rapl:0:0", "core", 900_000)
    zone(tmp_path, "intel-rapl:0:1", "dram", 250_000, top=65_712_999_613)
    zone(tmp_path, "intel-rapl:1", "package-1-die-0", 2_000_000)
    zone(tmp_path, "intel-rapl:2", "psys", 9_000_000)
    zone(tmp_path, "intel-rapl-mmio:0", "package-0", 1_000_000)
    (tmp_path / "intel-rapl").mkdir()
    counters = cpu_counters(tmp_path)
    assert [each.name for each in counters] == [
        "intel-rapl:0 package-0", "intel-rapl:0:1 dram", "intel-rapl:1 package-1-die-0",
    ]  # fmt: skip
    assert [each.read() for each in counters] == [1.0, 0.25, 2.0]
    assert counters[1].comes_round == pytest.approx(65_712.999613)


def test_why_no_package_can_be_read(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match=r"shows no CPU package \(RAPL; virtual machines"):
        cpu_counters(tmp_path / "absent")
    zone(tmp_path, "intel-rapl:0", "psys", 1)
    with pytest.raises(Unreadable, match="shows no CPU package"):
        cpu_counters(tmp_path)
    broken = zone(tmp_path, "intel-rapl:1", "package-0", 1)
    (broken / "energy_uj").write_text("")
    with pytest.raises(Unreadable, match=r"intel-rapl:1 cannot be read: could not convert"):
        cpu_counters(tmp_path)


def test_zones_for_root_alone_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locked = zone(tmp_path, "intel-rapl:0", "package-0", 1) / "energy_uj"
    read = Path.read_text

    def refuse(path: Path, *arguments: Any, **options: Any) -> str:  # root may read what it locks
        if path == locked:
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(Unreadable, match=r"intel-rapl:0/energy_uj may be read by root alone"):
        cpu_counters(tmp_path)


def test_a_gpus_counter_is_in_millijoules() -> None:
    nvml = fake_nvml({"GPU-0a": 5_000, "GPU-0b": 1})
    counter = nvml_counter("NVIDIA H100 80GB HBM3", "0a", lambda name: nvml)
    assert (counter.kind, counter.name, counter.read(), counter.comes_round) == ("nvml", "0a", 5.0, None)


def test_why_a_gpu_has_no_counter_of_its_own() -> None:
    def absent(name: str) -> Any:
        raise ImportError(name)

    old = fake_nvml({"GPU-0a": NVMLError("Not Supported")})
    with pytest.raises(Unreadable, match="the GPU is shared"):
        nvml_counter("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "0a", absent)
    with pytest.raises(Unreadable, match=r"pip install 'llmkit\[gpu\]'"):
        nvml_counter("NVIDIA L4", "0a", absent)
    with pytest.raises(Unreadable, match="NVML gives no energy of Tesla P100: Not Supported"):
        nvml_counter("Tesla P100", "0a", lambda name: old)
    with pytest.raises(Unreadable, match="Not Found"):
        nvml_counter("NVIDIA L4", "0c", lambda name: old)


def test_what_is_there_for_a_process_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy.cpu_counters, "__defaults__", (tmp_path,))
    assert find_sources(torch.device("cpu")).missing.keys() == {"rapl"}
    zone(tmp_path, "intel-rapl:0", "package-0", 1)
    counters, missing = find_sources(torch.device("cpu"))
    assert [each.kind for each in counters] == ["rapl"] and missing == {}


def test_counters_are_added_up_from_where_they_stood() -> None:
    bench = Bench(a=None, b=None)
    bench.values = {"a": 1000.0, "b": 50.0}
    meter = bench.meter()
    assert meter.reading(["rapl"]) == (0.0, 0.0)
    assert bench.advance(meter, 10.0, a=1100.0, b=57.0) == pytest.approx(107.0)
    assert meter.reading(["rapl"]).seconds == pytest.approx(10.0)
    assert meter.reading(["nvml"]).joules == 0.0


def test_a_counter_that_comes_round_is_continued() -> None:
    bench = Bench(a=262_143.0)
    bench.values["a"] = 262_000.0
    meter = bench.meter()
    assert bench.advance(meter, 10.0, a=857.0) == pytest.approx(1000.0)


def test_a_counter_that_was_reset_counts_from_zero() -> None:
    """A round would have taken 261 kJ in 10 seconds; and a GPU's counter never comes round."""
    for top in (262_143.0, None):
        bench = Bench(a=top)
        bench.values["a"] = 1000.0
        meter = bench.meter()
        assert bench.advance(meter, 10.0, a=1200.0) == pytest.approx(200.0)
        assert bench.advance(meter, 10.0, a=30.0) == pytest.approx(230.0)


def test_a_reading_that_fails_is_made_up_for_by_the_next() -> None:
    bench = Bench(a=None)
    meter = bench.meter()
    value = bench.values.pop("a")
    bench.now += 10.0
    meter.update()  # KeyError within
    assert meter.reading(["rapl"]) == (0.0, 0.0)
    assert bench.advance(meter, 10.0, a=value + 500.0) == pytest.approx(500.0)
    assert meter.reading(["rapl"]).seconds == pytest.approx(20.0)


def test_the_thread_reads_until_it_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "PERIOD_SECONDS", 0.01)
    calls = []
    meter = Meter([Counter("rapl", "a", lambda: float(calls.append(1) or len(calls)))])
    waits = meter._closed.wait

    def twice(seconds: float) -> bool:
        if len(calls) >= 3:
            meter.close()
        return waits(seconds)

    meter._closed.wait = twice  # type: ignore[method-assign]
    meter._run()
    assert len(calls) == 3 and meter.reading(["rapl"]).joules == pytest.approx(2.0)
