"""Energy of this process's devices, from counters of the hardware: NVML for GPUs, RAPL for CPU packages."""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

Kind = Literal["nvml", "rapl"]
POWERCAP = Path("/sys/class/powercap")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
PERIOD_SECONDS = 10.0
"""How often the counters are read at least: at 500 W a package's counter begins anew after 9 minutes."""
MAX_WATTS = 2000.0
"""More than any device draws: a counter that seems to have come round faster was reset."""


class Unreadable(Exception):
    """Why there is no counter to read."""


@dataclass(frozen=True)
class Counter:
    """A counter of energy that only grows.

    read: joules since some moment; raises where it cannot be read now. comes_round: joules at which it begins
    at 0 again, None = never.
    """

    kind: Kind
    name: str
    read: Callable[[], float]
    comes_round: float | None = None


class Reading(NamedTuple):
    """Joules since the start of a meter, and the seconds from then to the reading."""

    joules: float
    seconds: float


class Meter:
    """Adds up what counters have counted since this was made; `start` reads them in a thread.

    A counter that has come round is continued; one that was reset (driver loaded anew, machine suspended)
    counts from 0, so that the sum is never negative and never more than was measured. A reading that fails is
    left out; the next one holds its energy too.
    """

    def __init__(self, counters: Sequence[Counter], clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._began, self._lock = clock, clock(), threading.Lock()
        self._sums = [_Sum(counter) for counter in counters]
        self._closed = threading.Event()
        self.update()

    def start(self) -> Meter:
        """Reads the counters every PERIOD_SECONDS from now on, so that none comes round unseen."""
        if self._sums:
            threading.Thread(target=self._run, name="energy", daemon=True).start()
        return self

    def close(self) -> None:
        """Ends the thread."""
        self._closed.set()

    def update(self) -> None:
        """Reads all counters now."""
        with self._lock:
            for each in self._sums:
                each.update(self._clock())

    def reading(self, kinds: Sequence[Kind]) -> Reading:
        """The sum over counters of some kinds as of the last update, and when that was.

        Of several counters with readings of different moments the oldest moment counts.
        """
        with self._lock:
            chosen = [each for each in self._sums if each.counter.kind in kinds]
            at = min((each.at for each in chosen), default=self._began)
            return Reading(sum(each.joules for each in chosen), max(0.0, at - self._began))

    def _run(self) -> None:
        while not self._closed.wait(PERIOD_SECONDS):
            self.update()


class _Sum:
    """What one counter has counted. joules: since its first reading; at: the time of the last one."""

    def __init__(self, counter: Counter) -> None:
        self.counter, self.joules, self.at = counter, 0.0, float("-inf")
        self._last: float | None = None

    def update(self, now: float) -> None:
        try:
            value = self.counter.read()
        except Exception:  # NVML's errors have a class each; the next reading may work
            return
        if self._last is not None:
            self.joules += self._since(self._last, value, now - self.at)
        self._last, self.at = value, now

    def _since(self, last: float, value: float, seconds: float) -> float:
        if value >= last:
            return value - last
        if (top := self.counter.comes_round) is not None and last <= top:
            round_joules = top - last + value
            if round_joules <= MAX_WATTS * max(seconds, 1.0):
                return round_joules
        return value  # it was reset in between


def gpu_counter(device: torch.device) -> Counter:
    """The counter of a GPU, millijoules since the driver was loaded (Volta and newer).

    Raises Unreadable, with the reason, where there is none for this GPU alone.
    """
    if torch.version.hip is not None:
        raise Unreadable("the energy of AMD GPUs is not read")
    properties = torch.cuda.get_device_properties(device)
    return nvml_counter(str(properties.name), str(properties.uuid), importlib.import_module)


def nvml_counter(name: str, uuid: str, load: Callable[[str], Any]) -> Counter:
    """As `gpu_counter`; name, uuid: of the GPU as PyTorch gives them; load: imports a module."""
    if "MIG" in name.split():
        raise Unreadable("the GPU is shared (MIG), and its counter is that of all its parts")
    try:
        nvml = load("pynvml")
    except ImportError:
        raise Unreadable("nvidia-ml-py is not installed (pip install 'llmkit[gpu]')") from None
    try:
        nvml.nvmlInit()
        handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")

        def read() -> float:
            return float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000.0

        read()
    except nvml.NVMLError as error:
        raise Unreadable(f"NVML gives no energy of {name}: {error}") from error
    return Counter("nvml", uuid, read)


def cpu_counters(powercap: Path = POWERCAP) -> list[Counter]:
    """The counters of this host's CPU packages and of their memory, whoever uses them.

    From the kernel's tree of zones, which AMD's processors have too: packages, and `dram` below them, which a
    package does not include. Zones of cores are part of their package; `psys` would hold packages again; what
    lies under intel-rapl-mmio is the same hardware once more. Raises Unreadable, with the reason, where there
    are none, or one may not be read (since 2020 the kernel lets only root, against CVE-2020-8694).
    """
    found = []
    for zone in sorted(powercap.glob("intel-rapl:*")):
        try:
            name = (zone / "name").read_text().strip()
            if not name.startswith(("package-", "dram")):
                continue
            top = float((zone / "max_energy_range_uj").read_text()) / 1e6
            counter = Counter("rapl", f"{zone.name} {name}", _Zone(zone / "energy_uj"), top)
            counter.read()
        except PermissionError as error:
            raise Unreadable(f"{error.filename} may be read by root alone") from error
        except (OSError, ValueError) as error:
            raise Unreadable(f"{zone} cannot be read: {error}") from error
        found.append(counter)
    if not any(" package-" in counter.name for counter in found):
        raise Unreadable(f"{powercap} shows no CPU package (RAPL; virtual machines and containers hide it)")
    return found


@dataclass(frozen=True)
class _Zone:
    """Reads the microjoules in a file, as joules."""

    path: Path

    def __call__(self) -> float:
        return float(self.path.read_text()) / 1e6


class Sources(NamedTuple):
    """What can be read here. counters: of this process's GPU and of this host. missing: of each kind that
    cannot be read and would be wanted, why."""

    counters: list[Counter]
    missing: dict[Kind, str]


def find_sources(device: torch.device) -> Sources:
    """The counters of a process that computes on `device`: that of its GPU, and those of its host's CPUs."""
    counters: list[Counter] = []
    missing: dict[Kind, str] = {}
    if device.type == "cuda":
        try:
            counters.append(gpu_counter(device))
        except Unreadable as why:
            missing["nvml"] = str(why)
    try:
        counters += cpu_counters()
    except Unreadable as why:
        missing["rapl"] = str(why)
    return Sources(counters, missing)


def host_id() -> str:
    """The same for all processes under one kernel, in whatever container; "" where that is not known."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""
