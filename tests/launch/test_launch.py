"""Every launch file, and torchrun, trains the demo on two processes; each goes on where the last stopped.

One run passes through all layouts, a few steps in each; in the end its losses are those of one process. The
configuration is the demo's own, Muon included; only its size, its data and its steps are those of a test.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from llmkit.cli import main
from llmkit.monitor.wandb_file import history
from llmkit.monitor.wandb_sync import sync_command
from tests.limits import HANG
from tests.monitor.fake_wandb import FakeServer
from tests.program import environment, events, make_project, rows

ROOT = Path(__file__).parents[2]
STEPS = 3
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
OFFLINE = "monitor.wandb.mode=offline"
LAUNCHES = [
    # (name, layout on two processes, overrides)
    ("cpu", {"zero_stage": 0}, [OFFLINE]),
    ("zero1", {"zero_stage": 1, "engine": "deepspeed"}, []),
    ("zero2", {"zero_stage": 2}, ["train.micro_batch_size=1", "monitor.sample=the", OFFLINE]),
    ("torchrun", {"zero_stage": 0, "tensor_parallel_size": 2}, ["parallel.tensor_parallel_size=2", OFFLINE]),
    ("zero3", {"zero_stage": 3}, ["monitor.sample=the"]),
    ("ddp", {"zero_stage": 2}, ["parallel.zero_stage=2"]),
    ("zero3-offload", {"zero_stage": 3, "offload": "cpu"}, []),
    ("multinode", {"zero_stage": 1, "engine": "native"}, ["parallel.world_size=2", "parallel.zero_stage=1"]),
    ("own-file", {"zero_stage": 3}, []),
]
ALWAYS = ("cpu", "zero1", "zero2", "torchrun", "multinode")
"""Those that are launched at every commit; one that is left out leaves its steps to the next. The example
that test_example.py launches uses the file of ZeRO 3."""
OWN_FILES = {
    # One of accelerate's, and one of DeepSpeed's with sizes that cut even this model into many parts.
    "own-file.yaml": (
        "compute_environment: LOCAL_MACHINE\ndistributed_type: DEEPSPEED\n"
        "deepspeed_config: {deepspeed_config_file: own-file.json}\n"
        "num_processes: auto\nmain_process_port: 0\n"
    ),
    "own-file.json": json.dumps(
        {"train_batch_size": "auto", "zero_optimization": {
            "stage": 3, "overlap_comm": True, "sub_group_size": 1000, "reduce_bucket_size": 500,
            "stage3_prefetch_bucket_size": 300, "stage3_param_persistence_threshold": 10,
            "stage3_max_live_parameters": 1e4, "stage3_max_reuse_distance": 1e4,
        }}
    ),
}  # fmt: skip
DEMO = [
    str(ROOT / "configs" / "demo.yaml"), "model.hidden_size=36", "model.num_hidden_layers=2",
    "model.intermediate_size=68", "model.num_attention_heads=2", "model.num_key_value_heads=1",
    "data.sources=[{type: text, path: corpus}]",
    "data.tokenizer={type: bytes, vocab_size: null}", "data.sequence_length=32", "train.max_minutes=null",
    "train.global_batch_size=4", "train.precision=fp32", "run.deterministic=true", "kernels.compile=false",
    "optimizer.eps=1e-5", "schedule.warmup_steps=5", f"schedule.steps={STEPS * len(LAUNCHES)}",
    f"evaluate.every_steps={STEPS}", "checkpoint.every_steps=0", "checkpoint.keep_last=1",
    "monitor.log_every=1", "monitor.sample=null", "monitor.wandb.mode=disabled",
]  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A project in which one process has done all the steps: `runs/straight`."""
    folder = tmp_path_factory.mktemp("launch")
    make_project(folder)
    for name, text in OWN_FILES.items():
        (folder / name).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        steps = f"train.max_steps={STEPS * len(LAUNCHES)}"
        assert main(["train", *DEMO, "run.name=straight", steps]) == 0
    return folder


def commands(name: str, train: list[str]) -> list[list[str]]:
    """What a user types, once for each machine."""
    train = ["-m", "llmkit", "train", *train]
    if name == "torchrun":
        return [[*TORCHRUN, "--standalone", *train]]
    file = f"{name}.yaml" if f"{name}.yaml" in OWN_FILES else str(ROOT / "launch" / f"{name}.yaml")
    launch = [*ACCELERATE, file, "--num_processes", "2"]
    if name != "multinode":
        return [[*launch, *train]]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    machines = ["--num_machines", "2", "--main_process_ip", "127.0.0.1", "--main_process_port", port]
    return [[*launch, *machines, "--machine_rank", rank, *train] for rank in ("0", "1")]


def launch(folder: Path, name: str, overrides: list[str]) -> str:
    """The output of a launch that must end well."""
    # A launch file is for GPUs too; these processes would be more than there are.
    hidden = {**environment(), "CUDA_VISIBLE_DEVICES": ""}
    processes = [
        subprocess.Popen(
            command, cwd=folder, env=hidden, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for command in commands(name, [*DEMO, "run.name=moved", *overrides])
    ]
    outputs = [process.communicate(timeout=HANG)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(outputs)
    return "\n".join(outputs)


def test_every_launch_file_is_launched():
    launched = {name for name, *_ in LAUNCHES} - {"torchrun", "own-file"}
    assert {path.stem for path in (ROOT / "launch").glob("*.yaml")} == launched


@pytest.mark.parametrize(
    ("number", "name"),
    [
        pytest.param(number, name, marks=[] if name in ALWAYS else pytest.mark.exhaustive)
        for number, (name, *_) in enumerate(LAUNCHES)
    ],
)
def test_a_launch_goes_on_as_one_process_would(project, number, name):
    folder, steps = project / "runs" / "moved", STEPS * (number + 1)
    _, layout, overrides = LAUNCHES[number]
    output = launch(project, name, [*overrides, f"train.max_steps={steps}"])
    assert output.count(f"step {steps}/{steps}  loss") == 1  # the first rank alone shows the run

    straight = [row for row in rows(project / "runs" / "straight") if row["step"] <= steps]
    moved = rows(folder)
    assert [row["step"] for row in moved] == [row["step"] for row in straight]
    for ours, theirs in zip(moved, straight, strict=True):
        assert ours.get("tokens") == theirs.get("tokens")
        for column, tolerance in (("loss", 1e-5), ("eval_loss", 1e-5), ("eval_bits_per_byte", 1e-5)):
            if column in theirs:
                assert ours[column] == pytest.approx(theirs[column], rel=tolerance), ours["step"]

    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["layout"] == manifest["layout"] | layout | {"world_size": 2}
    assert (folder / "deepspeed.json").exists() == (manifest["layout"]["engine"] == "deepspeed")
    assert events(folder)[-2:] == ["save", "done"]
    assert (folder / "DONE").exists()
    if name == "own-file":
        zero = json.loads((folder / "deepspeed.json").read_text())["zero_optimization"]
        assert zero == zero | json.loads(OWN_FILES["own-file.json"])["zero_optimization"]
    if name == "zero3":
        stage = json.loads((folder / "deepspeed.json").read_text())["zero_optimization"]["stage"]
        assert stage == 3
    if "monitor.sample=the" in overrides:
        assert "\nthe" in output
    second = (folder / "logs" / "rank-00001.log").read_text()
    assert "2 processes: " in second
    assert "  loss " not in second  # no rows of steps, which rank 0 shows


def test_three_layouts_are_one_run_in_weights_and_biases(project, capsys):
    """Offline and then online; one start between them was without W&B."""
    folder = project / "runs" / "moved"
    expected = [row["step"] for row in rows(folder) if "loss" in row]
    assert expected == list(range(1, len(expected) + 1))
    offline = sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda file: file.parent.name)
    assert len(offline) == 3
    shown = [row["train/step"] for file in offline for row in history(file) if "train/loss" in row]
    assert shown == expected[: len(shown)] and len(shown) > STEPS, "no gap, no step twice"

    with FakeServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        user = {**environment(), "WANDB_API_KEY": "k" * 40, "WANDB_BASE_URL": server.url}
        for said in (f"sent {len(rows(folder))} rows", "nothing is missing"):
            assert sync_command([folder], user) == 0
            assert said in capsys.readouterr().out
        server.shutdown()
    ((run_id, lines),) = server.histories.items()
    assert [row["train/step"] for row in lines if "train/loss" in row] == expected
    assert [row["_step"] for row in lines] == list(range(len(lines)))
    assert server.config(run_id)["layout"]["tensor_parallel_size"] == 2, "that of the newest start with W&B"


@pytest.mark.exhaustive  # tests/slurm/test_slurm.py has it with the batch script
def test_a_stop_file_stops_all_ranks_which_then_go_on(project):
    """The contract with a batch script: STOP_FILE asks, SAVED_FILE answers."""
    folder, stop, saved = project / "runs" / "stopped", project / "stop-please", project / "saved"
    saved.touch()  # of an earlier start
    command = [*TORCHRUN, "--standalone", "-m", "llmkit", "train", *DEMO, "run.name=stopped"]
    process = subprocess.Popen(
        [*command, "train.max_steps=100000", "evaluate.every_steps=0"],
        cwd=project, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**environment(), "CUDA_VISIBLE_DEVICES": "", "STOP_FILE": str(stop), "SAVED_FILE": str(saved)},
    )  # fmt: skip
    assert process.stdout is not None
    printed = []
    for line in process.stdout:
        printed.append(line)
        if "step      5/" in line:
            assert not saved.exists()
            stop.touch()
    process.wait(timeout=HANG)
    assert process.returncode == 1, "".join(printed)  # launchers tell no codes apart
    assert "exitcode  : 75" in "".join(printed)
    assert saved.exists()
    assert events(folder)[-2:] == ["save", "stop"]
    step = json.loads((folder / "events.jsonl").read_text().splitlines()[-1])["step"]
    assert [row["step"] for row in rows(folder)] == list(range(1, step + 1))
    assert (folder / "checkpoints" / f"step-{step:08d}").is_dir()
