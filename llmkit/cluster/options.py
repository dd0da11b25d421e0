"""The command lines of `llmkit submit` and `llmkit jobs`; imported by every command, so nothing heavy."""

from __future__ import annotations

import argparse

from llmkit.cluster.fields import FIELDS
from llmkit.command_line import add_branch, add_config, add_json, positive


def add_submit_options(parser: argparse.ArgumentParser) -> None:
    """What `llmkit submit` takes."""
    add_config(parser)
    add_branch(parser)
    parser.add_argument("--nodes", type=positive, default=1, metavar="N", help="default: 1")
    processes = parser.add_mutually_exclusive_group(required=True)
    processes.add_argument(
        "--gpus-per-node", type=positive, metavar="N", help="GPUs, and so processes, on each node"
    )
    processes.add_argument(
        "--processes-per-node", type=positive, metavar="N", help="processes on each node, without GPUs"
    )
    for field in FIELDS:
        parser.add_argument(f"--{field.name}", metavar=field.metavar, help=f"{field.help}: {field.example}")
    parser.add_argument(
        "--share-nodes", action="store_true", help="leave what is not asked for of a node to other jobs"
    )
    parser.add_argument("--job-name", metavar="NAME", help="default: the run's name")
    parser.add_argument(
        "--array", nargs="+", action="extend", default=[], metavar="KEY=A,B",
        help="a task for each combination of values: --array optimizer.learning_rate=1e-3,3e-4 run.seed=1,2; "
        "%%2 lets two of them run at a time",
    )  # fmt: skip
    parser.add_argument(
        "--launcher",
        choices=["torchrun", "accelerate", "srun"],
        help="what starts the processes of a node; srun: a task for each, which sees one GPU",
    )
    parser.add_argument("--accelerate-config", metavar="FILE", help="accelerate's, such as launch/zero2.yaml")
    parser.add_argument("--python", metavar="FILE", help="the interpreter that has llmkit; default: this one")
    parser.add_argument("--container", metavar="IMAGE", help="train in it, by pyxis or else by apptainer")
    parser.add_argument("--container-mounts", metavar="A:B,C", help="folders that the container sees")
    parser.add_argument("--container-python", metavar="FILE", help="its interpreter; default: python")
    parser.add_argument(
        "--pass-env", action="append", default=[], metavar="NAME",
        help="a variable that the job gets beside the usual ones; SLURM keeps its value",
    )  # fmt: skip
    parser.add_argument(
        "--sbatch-option", action="append", default=[], metavar="--NAME=VALUE",
        help="any other option of sbatch, as in --sbatch-option=--licenses=disk",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="print the script and submit nothing")
    add_json(parser, "print a JSON object instead: number, log, run folders; with --dry-run the script")
    parser.add_argument(
        "--follow", action="store_true", help="show the job's log until it ends; Ctrl-C leaves the job alone"
    )


def add_jobs_options(parser: argparse.ArgumentParser) -> None:
    """What `llmkit jobs` takes."""
    add_json(parser, "print a JSON list instead")
