"""The devices that the command line asks for: of the table, of a file, or this machine's CPU."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from llmkit.config.schema import Config
from llmkit.cores import available_cores, host_memory
from llmkit.errors import UserError
from llmkit.estimate.calibration import (
    Calibration,
    CpuRates,
    calibration_file,
    cpu_device,
    read_calibration,
    this_machine,
)
from llmkit.estimate.devices import Hardware
from llmkit.estimate.hardware import Fleet
from llmkit.estimate.hardware_file import read_hardware
from llmkit.estimate.search import Ground
from llmkit.plan.facts import DeviceFacts
from llmkit.plan.plan import Known
from llmkit.planner.assumed import Subject

CALIBRATE = "run llmkit doctor --calibrate"


@dataclass(frozen=True)
class Place:
    """Devices to plan for. calibration: of this CPU, where that is the device; fleet: None there."""

    fleet: Fleet | None
    per_node: int
    nodes: int
    host_memory: float | None = None
    calibration: Calibration | None = None

    def ground(self, subject: Subject) -> Ground:
        """Where the layouts of a configuration are tried.

        Raises UserError where a CPU was not measured in the way that the configuration trains.
        """
        known = Known(tokenizer_size=subject.vocab_size)
        if self.fleet is not None:
            return Ground(self.fleet, known, host_memory=self.host_memory)
        assert self.calibration is not None
        rates, facts = measured(self.calibration, subject.loaded.config)
        memory = (host_memory() or 0) / self.per_node
        device = cpu_device(rates, memory)
        device = replace(device, flops={"fp32": device.flops["fp32"]} | _bf16(device.flops, facts))
        fleet = Hardware().with_device(device).fleet("cpu", self.per_node, self.nodes)
        return Ground(fleet, known, rates, memory * self.per_node, facts)


def open_place(options: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> Place:
    """The devices that the command line asks for. Raises UserError for those that there are not."""
    if options.device.lower() == "cpu":
        processes = options.gpus_per_node or 1
        found = _calibration(options.calibration, processes, environment)
        return Place(None, processes, options.nodes, calibration=found)
    if options.calibration is not None:
        raise UserError("plan: --calibration goes with --device cpu")
    hardware = Hardware() if options.hardware is None else read_hardware(Path(options.hardware))
    fleet = hardware.fleet(options.device, options.gpus_per_node, options.nodes)
    host = None if options.host_memory is None else options.host_memory * 2.0**30
    return Place(fleet, fleet.devices_per_node, fleet.nodes, host)


def measured(calibration: Calibration, config: Config) -> tuple[CpuRates, DeviceFacts]:
    """The rates that a configuration trains by on this CPU, and what a plan must know of it.

    Raises UserError where neither compiled nor plain modules were measured in its precision.
    """
    precisions = {mode.partition(",")[0] for mode in calibration.modes}
    usual = "bf16" if "bf16" in precisions else "fp32"
    precision = usual if config.train.precision == "auto" else config.train.precision
    for compiled in (True, False) if config.kernels.compile is not False else (False,):
        if (rates := calibration.rates(precision, compiled)) is not None:
            missing = None if compiled else "this CPU was calibrated without it"
            return rates, DeviceFacts("cpu", usual == "bf16", compiler_missing=missing)
    measured_modes = "; ".join(calibration.modes)
    raise UserError(
        f"plan: this CPU was calibrated for {measured_modes}, and not for {precision}; {CALIBRATE} --full"
    )


def _calibration(file: str | None, processes: int, environment: Mapping[str, str]) -> Calibration:
    """The one of a file; without a name that of this machine, with the threads that a process has."""
    machine = this_machine(available_cores())
    if file is not None:
        return read_calibration(Path(file), machine, None)
    asked = environment.get("OMP_NUM_THREADS", "")
    threads = int(asked) if asked.isdecimal() else max(1, available_cores() // processes)
    path = calibration_file(machine, threads, environment)
    if not path.exists():
        raise UserError(
            f"plan: --device cpu: there is no calibration of this CPU with {threads} threads ({path}); "
            f"{CALIBRATE}, or name a file by --calibration"
        )
    return read_calibration(path, machine, threads)


def _bf16(flops: Mapping[str, float], facts: DeviceFacts) -> dict[str, float]:
    return {"bf16": flops["bf16"]} if facts.has_bf16_units else {}
