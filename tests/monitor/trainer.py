"""A trainer in miniature: `trainer.py RUN_DIR ROWS` starts the mirror, logs rows, and waits to be killed.

Like a data loader's, its forked worker inherits the pipe to the mirror, and outlives the trainer.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from llmkit.config.monitor_section import Wandb
from llmkit.monitor.metrics import MetricsFile
from llmkit.monitor.wandb_mirror import Mirror
from llmkit.monitor.wandb_session import Timeouts
from tests.limits import HANG

PATIENT = Timeouts(*[HANG] * 6)
run_dir = Path(sys.argv[1])
metrics = MetricsFile(run_dir / "metrics.jsonl")
mirror = Mirror.start(run_dir, Wandb(), {}, PATIENT)
for step in range(1, int(sys.argv[2]) + 1):
    metrics.append({"step": step, "loss": 1.0 / step})
if os.fork():
    print(mirror._process.pid if mirror._process else 0, flush=True)
sys.stdin.read()
