"""The command line of `llmkit doctor`; imported by every command, so nothing heavy."""

from __future__ import annotations

import argparse

from llmkit.command_line import add_json, positive


def add_doctor_options(doctor: argparse.ArgumentParser) -> None:
    """Adds what it can be asked for, beside the comparison of layouts."""
    doctor.add_argument("--full", action="store_true", help="measure for longer, and compile something")
    doctor.add_argument(
        "--calibrate",
        metavar="FILE",
        nargs="?",
        const="",
        help="measure how fast this CPU trains, for llmkit plan and the forecast of runs; with --full in "
        "every precision; default: a file of this user's for this machine",
    )
    add_json(doctor)
    doctor.add_argument(
        "--report",
        metavar="RUN",
        nargs="?",
        const="",
        help="print a page for whoever is asked about a problem: this machine, and what is known of a run; "
        "without passwords, keys and tokens",
    )
    doctor.add_argument("--run-folder", metavar="DIR", help="check the disk of this folder; default: runs")
    doctor.add_argument("--expect-gpus", metavar="N", type=positive, help="fail where there are not as many")
    doctor.add_argument("--config", metavar="FILE", help="a configuration that all nodes must see alike")
    doctor.add_argument(
        "--node",
        action="store_true",
        help="one node of many: write what is found --into a folder, within 30 s",
    )
    doctor.add_argument(
        "--seconds",
        type=positive,
        help="for all checks of a node; what there is no time for is left out; default: 60, with --node 25",
    )
    doctor.add_argument("--into", metavar="FOLDER", help="with --node: a folder that all nodes share")
    doctor.add_argument(
        "--table", metavar="FOLDER", help="compare what all nodes have written into this folder"
    )
    doctor.add_argument("--nodes", metavar="N", type=positive, help="with --table: how many there should be")
