"""A SLURM cluster on this machine, and jobs in it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.limits import HANG
from tests.program import environment

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".slurm-tests"
"""Under the checkout, since nodes have their own /tmp."""
SCRIPT = ROOT / "slurm" / "local-cluster.sh"
CANNOT = 4
"""Exit code of the script where this machine cannot have a cluster."""


class Cluster:
    """Four nodes. `up` and `down` start and end it."""

    def __init__(self) -> None:
        in_tmp = any(Path(path).is_relative_to("/tmp") for path in (ROOT, sys.prefix, sys.base_prefix))
        # Not what belongs to another job, where these tests are themselves run in one.
        inherited = environment().items()
        self._environment = {
            **{name: value for name, value in inherited if not name.startswith(("SLURM", "SBATCH"))},
            "SLURM_CLUSTER_DIR": str(FOLDER / "cluster"),
            "SLURM_CLUSTER_TMP": "shared" if in_tmp else "own",
            "NODES": "4",
            "PYTHON": sys.executable,
        }

    def up(self) -> str | None:
        """Starts it; returns why this machine cannot have one, or None."""
        self.down()
        done = self._script("up")
        if done.returncode == CANNOT:
            return done.stderr.strip()
        assert done.returncode == 0, done.stderr
        return None

    def down(self) -> None:
        self._script("down")

    def run(self, *command: str, folder: Path = ROOT, **variables: str) -> str:
        """Output of a command on the login node that must end well."""
        done = self.ask(*command, folder=folder, **variables)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def ask(
        self, *command: str, folder: Path = ROOT, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """A command on the login node, however it ends."""
        return self._script("exec", *command, folder=folder, **variables)

    def start_on(self, node: str, *command: str) -> subprocess.Popen[str]:
        """A command on a node that goes on beside the test; its output can be read."""
        return subprocess.Popen(
            [SCRIPT, "node-exec", node, *command], env=self._environment, text=True, stdout=subprocess.PIPE
        )

    def power(self, *arguments: str) -> None:
        """`crash` or `boot`, and the name of a node."""
        done = self._script(*arguments)
        assert done.returncode == 0, done.stderr

    def submit(self, folder: Path, *arguments: str, options: list[str], **variables: str) -> Job:
        """slurm/train.sbatch with `arguments`, submitted from `folder`; `options` are sbatch's."""
        number = self.run(
            "sbatch", "--parsable", *options, str(ROOT / "slurm" / "train.sbatch"), *arguments,
            folder=folder, **variables,
        )  # fmt: skip
        return Job(self, number, folder)

    def _script(
        self, *arguments: str, folder: Path = ROOT, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [SCRIPT, *arguments],
            cwd=folder, env={**self._environment, **variables}, text=True, capture_output=True, timeout=HANG,
        )  # fmt: skip


class Job:
    """A job that was submitted from `folder`."""

    def __init__(self, cluster: Cluster, number: str, folder: Path) -> None:
        self._cluster, self.number = cluster, number
        self._log, self.state_folder = folder / f"slurm-{number}.out", folder / f"slurm-{number}.state"

    @property
    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def facts(self) -> dict[str, str]:
        """What SLURM says of it."""
        output = self._cluster.run("scontrol", "show", "job", "--oneliner", self.number)
        return dict(part.split("=", 1) for part in output.split() if "=" in part)

    def signal(self, *arguments: str) -> None:
        """What scancel does with these arguments."""
        self._cluster.run("scancel", *arguments, self.number)

    def ask_to_stop(self) -> None:
        """What SLURM does before the time limit."""
        self.signal("--batch", "--signal=USR1")

    def wait(self, seconds: float = HANG) -> str:
        """Waits for its end, through requeues; returns the state it ended in."""
        ends = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        self.wait_until(lambda: self.facts()["JobState"] in ends, seconds)
        return self.facts()["JobState"]

    def wait_until(self, condition: Callable[[], bool], seconds: float = HANG) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"job {self.number}: {self.facts()['JobState']}\n{self.log}"
            time.sleep(0.1)
