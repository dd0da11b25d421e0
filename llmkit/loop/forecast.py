"""What a run is expected to take, and how long its first steps took beside that."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch

from llmkit.cores import available_cores
from llmkit.engine.base import StepResult
from llmkit.errors import UserError
from llmkit.estimate.calibration import MEASURED, calibration_file, cpu_fleet, read_calibration, this_machine
from llmkit.estimate.devices import Hardware
from llmkit.estimate.forecast import Measured, comparison, show
from llmkit.estimate.step_time import StepEstimate, step_time
from llmkit.estimate.workload import workload_of
from llmkit.loop.hook import Hook
from llmkit.loop.launch import Launch
from llmkit.plan import Plan

if TYPE_CHECKING:
    from llmkit.loop.trainer import Trainer

COMPARED = 50
"""Steps that are timed, beside the first one and those that compile."""
FEWEST = 5
"""So many must be timed in a run that ends earlier."""


def forecast(plan: Plan, launch: Launch) -> tuple[StepEstimate | None, str]:
    """The estimate of a step on the devices of this launch, or why there is none."""
    if workload_of(plan) is None:
        return None, f"nothing is known of the layers of the model type {plan.config.model.type}"
    device, ranks = launch.mesh.device, launch.mesh.world_size
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        hardware = Hardware()
        known = hardware.labelled(name)
        if known is None:
            return None, f"{name} is not in the table of devices"
        nodes = -(-ranks // launch.local_size)
        return step_time(plan, hardware.fleet(known.name, launch.local_size, nodes)), ""
    threads, machine = torch.get_num_threads(), this_machine(available_cores())
    path = calibration_file(machine, threads, launch.environment)
    if not path.exists():
        return None, "this CPU is not calibrated (llmkit doctor --calibrate)"
    try:
        found = read_calibration(path, machine, threads)
    except UserError as error:
        return None, str(error)
    rates = found.rates(plan.precision.name, plan.kernels.compiled)
    if rates is None:
        return (
            None,
            f"this CPU is calibrated for {', '.join(found.modes)} only (llmkit doctor --calibrate --full)",
        )
    return step_time(plan, cpu_fleet(rates, ranks), rates, MEASURED), ""


class Forecast(Hook):
    """Compares the first steps of this process with what was predicted; on rank 0.

    It reads what the log of steps adds up anyway.
    """

    def __init__(self, launch: Launch, plan: Plan) -> None:
        self.step: StepEstimate | None = None
        self.missing = ""
        if launch.mesh.rank == 0:
            self.step, self.missing = forecast(plan, launch)
        self._began: tuple[float, float] | None = None

    @property
    def text(self) -> str:
        """For the start."""
        return f"none: {self.missing}" if self.step is None else show(self.step)

    def columns(self) -> dict[str, Any]:
        """Of a row: what trackers show beside the time of steps."""
        return {} if self.step is None else {"step_seconds_predicted": self.step.seconds}

    def after_step(self, t: Trainer, result: StepResult) -> None:
        """Begins with the first step that counts, and compares after the last one."""
        if self.step is None or t.mesh.rank > 0:
            return
        steps = t.log.counted.steps
        if steps and self._began is None:
            self._began = time.process_time(), t.clock()
        if steps >= COMPARED:
            self._compare(t)

    def on_end(self, t: Trainer) -> None:
        """A short run is compared with as many steps as it had."""
        if self.step is not None and t.mesh.rank == 0 and t.log.counted.steps >= FEWEST:
            self._compare(t)

    def _compare(self, t: Trainer) -> None:
        step, self.step = self.step, None
        assert step is not None
        fields = comparison(step, self._measured(t))
        t.record_event("predicted", step=t.state.step, **fields)
        text = f"steps take {fields['measured']:.3g} s; {step.seconds:.3g} s were predicted"
        if fields["cause"]:
            text += f"; most likely because of {fields['cause']}"
        t.console.note(text)

    def _measured(self, t: Trainer) -> Measured:
        counted, processor = t.log.counted, None
        if t.mesh.device.type == "cpu" and self._began is not None and t.clock() > self._began[1]:
            used, passed = time.process_time() - self._began[0], t.clock() - self._began[1]
            processor = used / (passed * torch.get_num_threads())
        n = counted.steps
        known = counted.parts_steps
        return Measured(
            n, counted.seconds / n, counted.data / n, counted.other / n,
            counted.communication / known if known else None,
            counted.optimizer / known if known else None, processor,
        )  # fmt: skip
