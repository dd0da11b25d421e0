"""What a CPU was measured to do, kept in a file: the rates that the time of its steps is estimated from."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import log
from pathlib import Path
from typing import Any

from llmkit.errors import UserError
from llmkit.estimate.constants import Constants
from llmkit.estimate.devices import Hardware
from llmkit.estimate.hardware import Device, Fleet
from llmkit.estimate.rates import Linear
from llmkit.files import read_sealed, user_cache, write_sealed

VERSION = 1
MEASURED = Constants(1.0, 0.0, "measured: nothing is fitted beside the rates of this machine")
"""A CPU's rates are those of whole steps."""
ANEW = "measure again: llmkit doctor --calibrate"


@dataclass(frozen=True)
class Machine:
    """What a calibration is of."""

    host: str
    cpu: str
    cores: int

    def __str__(self) -> str:
        return f"{self.host} ({self.cores} cores of {self.cpu})"


@dataclass(frozen=True)
class CpuRates:
    """See `llmkit.estimate.rates.Rates`: of one process, in one precision, compiled or not.

    products: (tokens, outputs, inputs, then seconds forward, of the inputs' and of the weights' gradients).
    attentions: (head size, length, seconds a FLOP forward, backward). logit, parameter, gradient: seconds for
    each of the loss, of the update, and of adding up. byte: of pointwise operations; kernel: to call one.
    """

    products: tuple[tuple[float, ...], ...]
    attentions: tuple[tuple[float, ...], ...]
    logit: float
    parameter: float
    gradient: float
    byte: float
    kernel: float

    @property
    def waits(self) -> bool:
        """See `Rates.waits`: it does."""
        return True

    def linear(self, tokens: float, outputs: float, inputs: float, number_type: str) -> Linear:
        """See `Rates.linear`: seconds a FLOP as of the measured sizes around these."""
        flops = 2.0 * tokens * outputs * inputs
        points = [
            (row[:3], [each / (2.0 * row[0] * row[1] * row[2]) for each in row[3:]]) for row in self.products
        ]
        return Linear(*(flops * each for each in between(points, (tokens, outputs, inputs))))

    def product(self, rows: float, columns: float, inner: float, number_type: str) -> float:
        """See `Rates.product`."""
        return self.linear(rows, columns, inner, number_type).forward

    def attention(self, flops: float, head_dim: int, length: float, form: str, backward: bool) -> float:
        """See `Rates.attention`."""
        points = [(row[:2], row[2:]) for row in self.attentions]
        return flops * between(points, (float(head_dim), length))[int(backward)]

    def pointwise(self, size: float) -> float:
        """See `Rates.pointwise`."""
        return self.byte * size

    def loss(self, logits: float, size: float) -> float:
        """See `Rates.loss`."""
        return self.logit * logits

    def updated(self, parameters: float, size: float) -> float:
        """See `Rates.updated`."""
        return self.parameter * parameters

    def accumulated(self, gradients: float, size: float) -> float:
        """See `Rates.accumulated`."""
        return self.gradient * gradients

    def launched(self, kernels: float) -> float:
        """See `Rates.launched`."""
        return self.kernel * kernels


def cpu_device(rates: CpuRates, memory: float = 0.0) -> Device:
    """One process of a CPU. memory: bytes that it may use."""
    peak = max(2.0 * row[0] * row[1] * row[2] / row[3] for row in rates.products)
    return Device(
        "cpu", "CPU", {"bf16": peak, "fp32": peak}, memory, 0.0, 0.0, 1, "shared-memory", "eth-10",
        "measured on this machine", "cpu", per_node=1,
    )  # fmt: skip


def cpu_fleet(rates: CpuRates, processes: int = 1) -> Fleet:
    """Processes of one CPU."""
    return Hardware().with_device(cpu_device(rates)).fleet("cpu", processes)


def between(
    points: Sequence[tuple[Sequence[float], Sequence[float]]], wanted: Sequence[float]
) -> list[float]:
    """Values at `wanted` from those at the points of a full grid, linear in the logarithm of each coordinate.

    Outside of the grid the values of its edge count.
    """
    if not wanted:
        return list(points[0][1])
    steps = sorted({point[0][0] for point in points})
    low = max([step for step in steps if step <= wanted[0]], default=steps[0])
    high = min([step for step in steps if step >= wanted[0]], default=steps[-1])
    ends = [
        between([(point[1:], values) for point, values in points if point[0] == step], wanted[1:])
        for step in (low, high)
    ]
    share = 0.0 if low == high else log(wanted[0] / low) / log(high / low)
    return [one * (1.0 - share) + other * share for one, other in zip(*ends, strict=True)]


def mode_of(precision: str, compiled: bool) -> str:
    """What rates are kept under."""
    return f"{precision}, {'compiled' if compiled else 'not compiled'}"


@dataclass(frozen=True)
class Calibration:
    """A file of rates. threads: of the process. torch: its version. modes: see `mode_of`."""

    machine: Machine
    threads: int
    torch: str
    date: str
    modes: Mapping[str, CpuRates]

    def rates(self, precision: str, compiled: bool) -> CpuRates | None:
        """Those of a run; None where its mode was not measured."""
        return self.modes.get(mode_of(precision, compiled))

    def write(self, path: Path) -> None:
        """Keeps it in a file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_sealed(path, {"version": VERSION, **asdict(self)})


def calibration_file(machine: Machine, threads: int, environment: Mapping[str, str]) -> Path:
    """Where the calibration of a machine lies, unless another file is asked for."""
    name = "".join(letter if letter.isalnum() or letter in "-." else "_" for letter in machine.host)
    return user_cache(environment) / "calibration" / f"{name}-{threads}.json"


def read_calibration(path: Path, here: Machine, threads: int | None) -> Calibration:
    """The calibration in a file, of this machine and number of threads; None = of any.

    Raises UserError, with the name of the machine, where it is of another one, and where it is damaged.
    """
    content = read_sealed(path, ANEW, first=VERSION)
    if content.pop("version", None) != VERSION:
        raise UserError(f"{path}: is a calibration of another version of llmkit; {ANEW}")
    try:
        found = _calibration(content)
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path}: is no calibration; {ANEW}") from None
    if found.machine != here:
        raise UserError(f"{path}: is the calibration of {found.machine}, and this is {here}; {ANEW}")
    if threads is not None and found.threads != threads:
        raise UserError(f"{path}: was measured with {found.threads} threads, not {threads}; {ANEW}")
    return found


def _calibration(content: dict[str, Any]) -> Calibration:
    modes = {str(name): _rates(each) for name, each in content["modes"].items()}
    machine = Machine(**content["machine"])
    return Calibration(machine, int(content["threads"]), str(content["torch"]), str(content["date"]), modes)


def _rates(values: dict[str, Any]) -> CpuRates:
    products, attentions = (
        tuple(tuple(float(each) for each in row) for row in values[name])
        for name in ("products", "attentions")
    )
    names = ("logit", "parameter", "gradient", "byte", "kernel")
    numbers = {name: float(values[name]) for name in names}
    if not products or not attentions or min(numbers.values()) < 0:
        raise ValueError("no rates")
    return CpuRates(products, attentions, **numbers)


def this_machine(cores: int, cpuinfo: Path = Path("/proc/cpuinfo")) -> Machine:
    """The machine of this process. cores: that the process may use."""
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return Machine(os.uname().nodename, names[0] if names else os.uname().machine, cores)
