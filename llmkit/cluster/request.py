"""What `llmkit submit` was asked for: checked, and as the parts of a script."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from llmkit.cluster.environment import exported, wrong_variables
from llmkit.cluster.fields import FIELDS, JOB_NAME, further_options, unfit_for_scripts, wrong_value
from llmkit.cluster.script import script_variables
from llmkit.cluster.sweep import Sweep, read_sweep
from llmkit.cluster.time_limit import too_short
from llmkit.config.mistakes import NOT_SHOWN, display, without_secrets

SCRIPT_OPTIONS = ("launcher", "accelerate_config", "container", "container_mounts", "container_python")
"""Options that the script reads from its environment, by the same names."""
LONGEST_ARGUMENT = 10_000
"""Characters of CONFIG or an override."""


@dataclass(frozen=True)
class Request:
    """A job. world_size: its processes. options, removed, variables: as `script.render` takes them.

    exports: names of the variables that go along. mistakes: what is wrong with the request, a sentence each.
    """

    nodes: int
    per_node: int
    on_gpus: bool
    sweep: Sweep
    options: Mapping[str, str | None]
    removed: tuple[str, ...]
    variables: Mapping[str, str]
    exports: tuple[str, ...]
    mistakes: tuple[str, ...] = ()

    @property
    def world_size(self) -> int:
        """Processes of the run."""
        return self.nodes * self.per_node

    @property
    def layout(self) -> str:
        """As in "2 nodes x 8 GPUs"."""
        unit = "GPU" if self.on_gpus else "process"
        nodes = "1 node" if self.nodes == 1 else f"{self.nodes} nodes"
        return f"{nodes} x {self.per_node} {unit}" + (
            "" if self.per_node == 1 else "s" if self.on_gpus else "es"
        )


def read_request(options: argparse.Namespace, script: str, environment: Mapping[str, str]) -> Request:
    """The job that the command line asks for. script: the template."""
    sweep = read_sweep(options.array)
    on_gpus = options.gpus_per_node is not None
    per_node: int = options.gpus_per_node or options.processes_per_node
    given, wrong = _given(options)
    sbatch: dict[str, str | None] = {"nodes": str(options.nodes), **given}
    removed = list[str]()
    if on_gpus:
        sbatch["gpus-per-node"] = str(per_node)
    else:
        removed.append("gpus-per-node")
    if options.share_nodes:
        removed += [name for name in ("exclusive", "mem") if name not in sbatch]
    if sweep.axes:
        sbatch["array"] = sweep.spec()
    if options.job_name is not None:
        sbatch["job-name"] = options.job_name
    exports = exported(environment, script_variables(script), options.pass_env)
    sbatch["export"] = ",".join(exports) or "NONE"
    wrong += filter(None, [too_short(script, given)])
    mistakes = [*wrong, *sweep.mistakes, *_wrong(options, environment)]
    variables = _variables(options, per_node, on_gpus)
    return Request(
        options.nodes, per_node, on_gpus, sweep, sbatch, tuple(removed), variables, tuple(exports),
        tuple(mistakes),
    )  # fmt: skip


def _given(options: argparse.Namespace) -> tuple[dict[str, str | None], list[str]]:
    """Options for sbatch with their values, and what is wrong with them."""
    given, mistakes = dict[str, str | None](), list[str]()
    for entry in FIELDS:
        if (value := getattr(options, entry.name.replace("-", "_"))) is not None:
            given[entry.name] = value
            mistakes += filter(None, [wrong_value(entry, value)])
    for name, value, wrong in further_options(options.sbatch_option):
        given[name] = value
        mistakes += filter(None, [wrong])
    return given, mistakes


def _variables(options: argparse.Namespace, per_node: int, on_gpus: bool) -> dict[str, str]:
    """What the script reads from its environment, of what was asked for."""
    variables = {"PYTHON": options.python or sys.executable}
    if not on_gpus:
        variables["PROCESSES_PER_NODE"] = str(per_node)
    asked = {name.upper(): getattr(options, name) for name in SCRIPT_OPTIONS}
    return variables | {name: value for name, value in asked.items() if value is not None}


def _wrong(options: argparse.Namespace, environment: Mapping[str, str]) -> Iterator[str]:
    """What is wrong beside the values of sbatch's own options."""
    if options.job_name is not None and not JOB_NAME.fullmatch(options.job_name):
        allowed = "a job's name has 1 to 64 letters, digits, dots, dashes and underscores"
        yield f"--job-name: {display(options.job_name)}: {allowed}"
    for name in ("python", *SCRIPT_OPTIONS):
        value = getattr(options, name)
        if value is not None and (what := unfit_for_scripts(value) or (None if value else "is empty")):
            yield f"{_spelled(name)}: the value {what}"
    for name in ("container_mounts", "container_python"):
        if getattr(options, name) and not options.container:
            yield f"{_spelled(name)} goes with --container"
    if options.accelerate_config and options.launcher != "accelerate":
        yield "--accelerate-config goes with --launcher accelerate"
    yield from _accelerate_without_file(options, environment)
    python = options.python
    if python and not unfit_for_scripts(python) and not shutil.which(python):
        yield f"--python: {display(python)} is no program here; name the interpreter that has llmkit"
    if not options.dry_run and not os.access(".", os.W_OK):
        yield f"{os.getcwd()} cannot be written, where the job's log would be; submit from another folder"
    if options.follow and options.array:
        yield "--follow shows the log of one job; leave it out with --array"
    yield from wrong_variables(environment, options.pass_env)
    yield from wrong_arguments([options.config, *options.overrides, *options.array, options.branch or ""])


def _accelerate_without_file(options: argparse.Namespace, environment: Mapping[str, str]) -> Iterator[str]:
    """Accelerate without a configuration starts several processes only where a node has several GPUs."""
    alone = (options.gpus_per_node or 1) == 1 and options.nodes * (options.processes_per_node or 1) > 1
    if options.launcher != "accelerate" or options.accelerate_config or not alone:
        return
    cache = environment.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    home = environment.get("HF_HOME") or os.path.join(cache, "huggingface")
    if not os.path.isfile(os.path.join(home, "accelerate", "default_config.yaml")):
        cpus = "" if options.gpus_per_node else ", and ACCELERATE_USE_CPU=true in the environment"
        yield (
            "--launcher accelerate: without a configuration of its own it starts one process a node, each "
            f"for itself; add --accelerate-config FILE, such as launch/multinode.yaml{cpus}"
        )


def _spelled(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def wrong_arguments(arguments: Sequence[str]) -> Iterator[str]:
    """What of CONFIG and overrides cannot stand in a script that SLURM keeps, a sentence each."""
    for argument in arguments:
        shown = without_secrets(argument)
        if what := unfit_for_scripts(argument, LONGEST_ARGUMENT):
            yield f"{shown}: the argument {what}"
        elif shown.endswith(NOT_SHOWN):
            yield f"{shown}: looks like a secret, and SLURM keeps the script; put it into the environment"
