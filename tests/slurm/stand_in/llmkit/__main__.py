"""Stands for the trainer where only the batch script is tested: starts fast, keeps the script's contract.

From the environment it reads RUN_FOLDER, where its files lie; TRAIN_SECONDS, how long it trains; and FAULT,
the rank that dies as soon as it starts. All ranks die once there is a file FAULT in the folder.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

STOPPED = 75


def main() -> int:
    if sys.argv[1] == "config":
        return 0
    folder, rank = Path(os.environ["RUN_FOLDER"]), os.environ["RANK"]
    facts = {"arguments": sys.argv[1:], "host": os.uname().nodename, "rank": rank}
    facts |= {name: os.environ[name] for name in ("LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")}
    start = os.environ.get("SLURM_RESTART_COUNT", "0")
    (folder / f"start-{start}-rank-{rank}.json").write_text(json.dumps(facts))
    if rank == os.environ.get("FAULT"):
        return 17
    stop, saved = Path(os.environ["STOP_FILE"]), Path(os.environ["SAVED_FILE"])
    end = time.monotonic() + float(os.environ["TRAIN_SECONDS"])
    while time.monotonic() < end:
        if (folder / "FAULT").exists():
            return 17
        if stop.exists() or (folder / "STOP").exists():
            if rank == "0":
                saved.touch()
            while not saved.exists():  # ranks leave together: a launcher ends those that are left over
                time.sleep(0.01)
            return STOPPED
        time.sleep(0.05)
    return 0


sys.exit(main())
