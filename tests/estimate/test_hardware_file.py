"""Users' own devices and links."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmkit.errors import UserError
from llmkit.estimate.devices import Hardware
from llmkit.estimate.hardware_file import read_hardware

GOOD = """\
devices:
  Ours:
    like: h100
    bf16_tflops: 800
    bandwidth_gb_per_second: 2400
    memory_gib: 95.5
    products_share: 0.7
    between: campus
    source: measured here
  ours-too: {like: ours, watts: 500, source: a guess}
links:
  campus: {gbit_per_second: 100, share: 0.8, latency_us: 30, ports: 2, source: our switches}
"""


def test_a_file_adds_to_the_tables(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(GOOD)
    hardware = read_hardware(file)
    ours, h100 = hardware.device("ours"), Hardware().device("h100")
    assert (ours.flops["bf16"], ours.flops["fp8"]) == (800e12, h100.flops["fp8"])
    assert (ours.bandwidth, ours.memory, ours.units) == (2.4e12, 95.5 * 2**30, h100.units)
    assert (ours.reached.products, ours.reached.memory) == (0.7, h100.reached.memory)
    assert ours.source.startswith("measured here; the rest as h100")
    too = hardware.fleet("ours-too", nodes=2)
    assert (too.device.watts, too.device.flops) == (500, ours.flops)
    assert too.node_bandwidth == pytest.approx(2 * 0.8 * 100e9 / 8)
    assert too.between.latency == pytest.approx(30e-6)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("devices:\n  a:\n    like: h100\n    wats: 3\n    source: x\n", r"mine\.yaml:4: devices.a.wats: E"),
        ("devices:\n  a: {like: h101, source: x}\n", r"mine\.yaml:2: devices.a.like: 'h101' is not one of"),
        ("devices:\n  a: {like: h100, source: x, inside: rope}\n", r"mine\.yaml:2: devices.a.inside: 'rope'"),
        ("devices:\n  a: {like: h100, watts: -1, source: x}\n", r"mine\.yaml:2: devices.a.watts: .*greater"),
        ("links:\n  a: {gbit_per_second: 1, share: 2, latency_us: 1, source: x}\n", r"mine\.yaml:2: .*share"),
        ("devices:\n  a: {like: h100}\n", r"mine\.yaml:2: devices.a.source: Field required"),
        ("- 1\n", "is no mapping"),
    ],
)
def test_mistakes_name_file_and_line(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=says):
        read_hardware(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.yaml"):
        read_hardware(tmp_path / "absent.yaml")
