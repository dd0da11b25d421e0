"""Stands for the trainer, and what is asked before it starts, where only the batch script is tested: starts
fast, and keeps the script's contract.

From the environment the trainer reads RUN_FOLDER, where its files lie; TRAIN_SECONDS, how long it trains;
FAULT, the rank that dies as soon as it starts; FAULT_HOST, the host whose ranks do so and name it; MISTAKE,
the rank that finds one. All ranks die once there is a file FAULT in the folder. A node is sick where there is
a file sick-HOST in it, does not answer where there is a file hangs-HOST, and is slow to where there is a file
slow-HOST.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from pathlib import Path

from llmkit.end_file import End, own_host, write_end

STOPPED = 75
FOLDER = Path(os.environ.get("RUN_FOLDER", "."))


def check_node(into: Path) -> int:
    host = own_host(os.environ)
    if (FOLDER / f"hangs-{host}").exists():
        time.sleep(600)
    if (FOLDER / f"slow-{host}").exists():
        time.sleep(2)
    (into / f"{host}.json").write_text(json.dumps((FOLDER / f"sick-{host}").exists()))
    return 0


def show_table(folder: Path, nodes: int) -> int:
    found = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    sick = [host for host, is_sick in found.items() if is_sick]
    if len(found) < nodes:
        sick.append("n2")  # the one that hangs in the tests
    print("the table\nsick:", *sick)
    return 1 if sick else 0


def train() -> int:
    rank, host, start = os.environ["RANK"], own_host(os.environ), os.environ.get("SLURM_RESTART_COUNT", "0")
    facts = {"arguments": sys.argv[1:], "host": host, "rank": rank}
    names = ("LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT", "CUDA_VISIBLE_DEVICES")
    facts |= {name: os.environ.get(name) for name in names}
    (FOLDER / f"start-{start}-rank-{rank}.json").write_text(json.dumps(facts))
    if host == os.environ["FAULT_HOST"]:
        write_end(End("fault", f"a rank on {host} has died", hosts=[host]), os.environ)
        return 17
    if rank == os.environ["MISTAKE"]:
        write_end(End("mistake", "no such file on this rank"), os.environ)
        return 2
    if rank == os.environ["FAULT"]:
        return 17
    stop, end_file = Path(os.environ["STOP_FILE"]), Path(os.environ["END_FILE"])
    end = time.monotonic() + float(os.environ["TRAIN_SECONDS"])
    while time.monotonic() < end:
        if (FOLDER / "FAULT").exists():
            return 17
        if stop.exists() or (FOLDER / "STOP").exists():
            if rank == "0":
                save(int(start) + 1)
                reason = f"the batch script's stop file: {stop.read_text()}" if stop.exists() else "STOP"
                write_end(End("stopped", reason), os.environ)
            while not end_file.exists():  # as ranks that leave together
                time.sleep(0.01)
            return 0
        time.sleep(0.05)
    if rank == "0":
        write_end(End("done"), os.environ)
    return 0


def save(step: int) -> None:
    checkpoint = FOLDER / "runs" / "tiny" / "checkpoints" / f"step-{step:08d}"
    checkpoint.mkdir(parents=True, exist_ok=True)
    (checkpoint / "manifest.json").touch()


def main() -> int:
    arguments = sys.argv[1:]
    if arguments[0] == "train":
        return train()
    if arguments[0] == "config":
        print(FOLDER / "runs" / "tiny")
        return 0
    values = dict(itertools.pairwise(arguments))
    if "--node" in arguments:
        return check_node(Path(values["--into"]))
    return show_table(Path(values["--table"]), int(values["--nodes"]))


sys.exit(main())
