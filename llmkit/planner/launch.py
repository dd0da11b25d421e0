"""The command lines that start a run with a layout."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from llmkit.config.schema import Config
from llmkit.estimate.hardware import Fleet
from llmkit.estimate.search import PATHS, WORLD, Candidate, setting_of
from llmkit.parallel.layout import usual_engine

ENGINE, LAYOUT = "parallel.engine", "parallel.layout"


def overrides_of(candidate: Candidate, config: Config) -> list[str]:
    """What must be set beside a configuration for it to have this layout."""
    changed = [override(LAYOUT, "given")] if config.parallel.layout != "given" else []
    layout = candidate.plan.layout
    usual = usual_engine(layout.zero_stage, layout.offload, layout.expert_parallel_size)
    for path in PATHS:
        section, _, name = path.partition(".")
        before, now = getattr(getattr(config, section), name), setting_of(candidate.plan, path)
        if before == now or (path == ENGINE and before == "auto" and now == usual):
            continue
        changed.append(override(path, now))
    return changed


def override(path: str, value: Any) -> str:
    """`section.key=value`, the value as YAML in a line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=2**16, sort_keys=False)
    return f"{path}={text.removesuffix('...' + chr(10)).strip()}"


def launch_lines(
    config: str, overrides: Sequence[str], fleet: Fleet, assumed: Mapping[str, Any] | None = None
) -> list[str]:
    """Commands that start CONFIG with these overrides on a fleet; the last one by SLURM.

    assumed: settings that CONFIG lacks; of what is in capitals the user knows the right value.
    """
    given = [override(path, value) for path, value in (assumed or {}).items()]
    given += [each for each in overrides if not each.startswith(f"{WORLD}=")]  # the fleet decides
    on_cpu, processes = fleet.device.architecture == "cpu", str(fleet.size)
    train = ["llmkit", "train", config, *given, f"{WORLD}={processes}"]
    if fleet.nodes > 1:
        accelerate = [
            "accelerate", "launch", "--config_file", "launch/multinode.yaml", "--num_machines",
            str(fleet.nodes), "--machine_rank", "R", "--num_processes", processes, "--main_process_ip",
            "FIRST_MACHINE", "-m", *train,
        ]  # fmt: skip
    elif fleet.size == 1:
        accelerate = train
    else:
        file = "launch/cpu.yaml" if on_cpu else "launch/ddp.yaml"
        accelerate = ["accelerate", "launch", "--config_file", file, "--num_processes", processes]
        accelerate += ["-m", *train]
    each = "--processes-per-node" if on_cpu else "--gpus-per-node"
    submit = ["llmkit", "submit", config, "--nodes", str(fleet.nodes), each, str(fleet.devices_per_node)]
    return [shlex.join(accelerate), shlex.join([*submit, *given])]
