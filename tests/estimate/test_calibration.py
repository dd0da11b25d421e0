"""Rates of a CPU, and the file that keeps them."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pytest

from llmkit.errors import UserError
from llmkit.estimate.calibration import (
    Calibration,
    CpuRates,
    Machine,
    between,
    calibration_file,
    cpu_device,
    cpu_fleet,
    mode_of,
    read_calibration,
    this_machine,
)

HERE = Machine("node-a", "AMD EPYC", 2)
PRODUCTS = tuple(
    (float(t), float(o), float(i), *[2.0 * t * o * i / 1e9] * 3)
    for t, o, i in product((256, 1024), (64, 256), (64, 256))
)
RATES = CpuRates(
    PRODUCTS, ((64, 128, 1e-9, 2e-9), (64, 1024, 3e-9, 4e-9)), logit=1e-9, parameter=2e-9, gradient=3e-10,
    byte=1e-11, kernel=2e-5,
)  # fmt: skip
FOUND = Calibration(HERE, 1, "2.13.0", "2026-11-30", {mode_of("fp32", False): RATES})


def test_values_between_the_points_of_a_grid() -> None:
    points = [((x, y), (x * 10.0 + y,)) for x in (1.0, 4.0) for y in (1.0, 16.0)]
    assert between(points, (1.0, 1.0)) == [11.0]
    assert between(points, (2.0, 1.0)) == pytest.approx([26.0])  # half of the way from 1 to 4, in logarithms
    assert between(points, (4.0, 4.0)) == pytest.approx([40.0 + 8.5])
    assert between(points, (100.0, 0.1)) == [41.0]


def test_rates_by_what_was_measured() -> None:
    assert RATES.linear(500, 100, 100, "fp32") == pytest.approx([500 * 100 * 100 * 2 / 1e9] * 3)
    assert RATES.product(500, 100, 100, "fp32") == pytest.approx(500 * 100 * 100 * 2 / 1e9)
    assert RATES.attention(1e9, 64, 128, "sdpa", False) == pytest.approx(1.0)
    assert RATES.attention(1e9, 80, 5000, "sdpa", True) == pytest.approx(4.0)
    assert (RATES.loss(10, 99), RATES.updated(10, 99)) == pytest.approx((1e-8, 2e-8))
    assert (RATES.accumulated(10, 99), RATES.pointwise(10)) == pytest.approx((3e-9, 1e-10))
    assert RATES.launched(10) == pytest.approx(2e-4)
    assert RATES.waits


def test_a_file_gives_back_what_was_written(tmp_path: Path) -> None:
    path = calibration_file(HERE, 1, {"XDG_CACHE_HOME": str(tmp_path)})
    assert path == tmp_path / "llmkit/calibration/node-a-1.json"
    FOUND.write(path)
    found = read_calibration(path, HERE, 1)
    assert found == FOUND
    assert found.rates("fp32", False) == RATES
    assert found.rates("fp32", True) is None


def test_a_name_of_a_host_makes_no_path() -> None:
    assert (
        calibration_file(Machine("../../a b", "", 1), 2, {"XDG_CACHE_HOME": "/x"}).name == ".._.._a_b-2.json"
    )


@pytest.mark.parametrize(
    ("here", "threads", "says"),
    [
        (
            Machine("node-b", "AMD EPYC", 2),
            1,
            r"calibration of node-a \(2 cores of AMD EPYC\), and this is node-b",
        ),
        (
            Machine("node-a", "Xeon", 2),
            1,
            "and this is node-a .2 cores of Xeon.; measure again: llmkit doctor",
        ),
        (HERE, 2, "was measured with 1 threads, not 2"),
    ],
)
def test_the_file_of_another_machine_is_refused(
    tmp_path: Path, here: Machine, threads: int, says: str
) -> None:
    FOUND.write(tmp_path / "file.json")
    with pytest.raises(UserError, match=says):
        read_calibration(tmp_path / "file.json", here, threads)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    FOUND.write(path)
    content = json.loads(path.read_text())
    content["modes"]["fp32, not compiled"]["byte"] = 1.0
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="does not match the checksum"):
        read_calibration(path, HERE, 1)
    path.write_text('{"version": 1}')
    with pytest.raises(UserError, match=r"file\.json"):
        read_calibration(path, HERE, 1)
    with pytest.raises(UserError, match=r"absent\.json"):
        read_calibration(tmp_path / "absent.json", HERE, 1)


def test_another_version_or_content_is_refused(tmp_path: Path) -> None:
    from llmkit.files import write_sealed

    path = tmp_path / "file.json"
    write_sealed(path, {"version": 2})
    with pytest.raises(UserError, match="another version"):
        read_calibration(path, HERE, 1)
    write_sealed(path, {"version": 1, "modes": {"fp32": {"products": []}}})
    with pytest.raises(UserError, match="is no calibration; measure again"):
        read_calibration(path, HERE, 1)


def test_a_calibrated_cpu_is_a_device_of_a_fleet() -> None:
    fleet = cpu_fleet(RATES, 4)
    assert (fleet.size, fleet.device.architecture) == (4, "cpu")
    assert fleet.device.peak("bf16") == pytest.approx(1e9)
    assert cpu_device(RATES, 5e9).memory == 5e9


def test_this_machine_is_named_by_its_processor(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor : 0\nmodel name\t: Some CPU\n")
    assert this_machine(3, info).cpu == "Some CPU"
    assert this_machine(3, tmp_path / "absent").cpu
    assert this_machine(3, info).cores == 3
