"""`llmkit submit` with programs that stand for SLURM's; tests/slurm has a real one."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from llmkit.cli import main
from tests.cluster.programs import Programs
from tests.cluster.test_queue import row
from tests.program import make_project

FACTS = """\
JobId=12 JobName=tiny
   JobState=PENDING Reason=Resources StartTime=Unknown
   StdOut=/w/slurm-12.out
"""


@pytest.fixture
def slurm(programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    """A cluster that takes everything, and a project in the present folder."""
    make_project(tmp_path / "w", documents=1)
    monkeypatch.chdir(tmp_path / "w")
    programs.say("sbatch", "12;local\n")
    programs.say("sbatch", errors="sbatch: Job 13 to start at x\n", given="--test-only")
    programs.say("scontrol", FACTS)
    programs.say("squeue")
    return programs


def submit(*arguments: str) -> int:
    return main(["submit", "tiny.yaml", *arguments])


def head_of(script: str) -> list[str]:
    return [line for line in script.splitlines() if line.startswith(("#SBATCH", "export", "set --", "  "))]


def test_the_job_is_tried_shown_submitted_and_found(
    slurm: Programs, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [
        "--nodes",
        "2",
        "--gpus-per-node",
        "8",
        "--time",
        "24:00:00",
        "--partition",
        "gpu",
        "--qos",
        "long",
    ]
    assert submit("train.max_steps=50", *given, "--exclude", "n[3-4]", "train.global_batch_size=16") == 0
    tried, submitted = slurm.calls("sbatch")
    assert tried["arguments"] == ["--test-only"] and submitted["arguments"] == ["--parsable"]
    assert tried["input"] == submitted["input"]
    head = head_of(submitted["input"])
    for line in (
        "nodes=2",
        "gpus-per-node=8",
        "time=24:00:00",
        "partition=gpu",
        "qos=long",
        "exclude=n[3-4]",
        "job-name=tiny",
    ):
        assert f"#SBATCH --{line}" in head
    assert f'#SBATCH --comment="llmkit {Path.cwd()}/runs/tiny"' in head
    assert "  train.max_steps=50 \\" in head and "  train.global_batch_size=16 \\" in head
    output = capsys.readouterr().out
    assert "#SBATCH --nodes=2" in output and "guard()" not in output
    assert "job 12: 2 nodes x 8 GPUs\n" in output and "log         /w/slurm-12.out\n" in output
    assert "runs/tiny" in output and "llmkit jobs" in output
    assert not Path("runs").exists()


def test_a_terminal_gets_the_lines_of_the_script_whole(
    slurm: Programs, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmkit.command_line.terminal_width", lambda stream: 40)
    assert submit("--gpus-per-node", "1", "run.dir=a folder/with a name/that needs more/than one line") == 0
    head = [line for line in slurm.calls("sbatch")[-1]["input"].splitlines() if line.startswith("#SBATCH")]
    assert max(map(len, head)) > 80
    assert capsys.readouterr().out.splitlines()[: len(head)] == head


def test_what_is_shown_to_be_copied_is_safe_to_copy(
    slurm: Programs, capsys: pytest.CaptureFixture[str]
) -> None:
    slurm.say("scontrol", errors="slurm_load_jobs error: Unable to contact slurm controller\n", code=1)
    assert submit("--gpus-per-node", "1", "run.dir=my runs/$(touch x)") == 0
    output = capsys.readouterr().out
    assert "llmkit top 'my runs/$(touch x)/tiny'\n" in output
    assert "touch 'my runs/$(touch x)/tiny/STOP' to save" in output
    assert "log         slurm-12.out" in output  # SLURM does not answer, but the job is submitted


def test_a_corpus_that_is_not_here_is_noted(slurm: Programs, capsys: pytest.CaptureFixture[str]) -> None:
    elsewhere = "data.sources.0.path=[corpus, 'corpus/*.txt', https://host/x, /node/own, 'none/*.txt']"
    assert submit("--gpus-per-node", "1", elsewhere) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if "data.sources" in line]
    assert len(notes) == 2 and "there is no /node/own here" in notes[0] and "none/*.txt" in notes[1]
    assert submit("--gpus-per-node", "1") == 0
    assert "there is no" not in capsys.readouterr().err


def test_a_folder_that_can_hold_no_log_is_refused(
    slurm: Programs, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: path != ".")  # root may write everywhere
    assert submit("--gpus-per-node", "1") == 2
    assert f"{Path.cwd()} cannot be written, where the job's log" in capsys.readouterr().err
    assert submit("--gpus-per-node", "1", "--dry-run") == 0


def test_a_dry_run_prints_the_script_and_nothing_else(
    slurm: Programs, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # it needs no SLURM
    assert submit("--processes-per-node", "2", "--dry-run", "--nodes", "2") == 0
    script = capsys.readouterr().out
    assert slurm.calls("sbatch") == []
    assert script.startswith("#!/usr/bin/env bash\n")
    subprocess.run(["bash", "-n"], input=script.encode(), check=True)
    assert "#SBATCH --gpus-per-node" not in script and "export PROCESSES_PER_NODE=2" in script


def test_programs_get_the_job_and_its_runs(slurm: Programs, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--processes-per-node", "2", "--array", "run.seed=1,2", "--json"]
    assert submit(*asked, "--follow") == 2 and slurm.calls("sbatch") == []
    assert "leave --follow out" in capsys.readouterr().err
    assert submit(*asked, "--dry-run") == 0
    tried = json.loads(capsys.readouterr().out)
    assert tried["job"] is None and tried.pop("script").startswith("#!/usr/bin/env bash\n")
    assert slurm.calls("sbatch") == []
    assert submit(*asked) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert found["job"] == "12" and found["log"] == "/w/slurm-12.out" and "#SBATCH" in printed.err
    assert len(found["runs"]) == 2 and found["runs"] == tried["runs"] and found["layout"] == tried["layout"]


def test_a_branch_goes_along_and_only_training_is_given_it(
    slurm: Programs, capsys: pytest.CaptureFixture[str]
) -> None:
    step = Path("runs/old/checkpoints/step-00000005")
    step.mkdir(parents=True)
    given = ["--gpus-per-node", "1", "--dry-run", "run.name=new"]
    assert submit(*given, "--from", "runs/old@5", "--data-position", "new") == 0
    script = capsys.readouterr().out
    assert "  run.name=new \\\n  --from=runs/old@5 \\\n  --data-position=new" in script
    assert 'config --run-folder "${settings[@]}"' in script and 'launch "${arguments[@]}"' in script
    for branch, says in (
        (["--from", "runs/old@7"], "--from: runs/old@7: runs/old/checkpoints has no checkpoint of step 7"),
        (["--from", "runs/none"], "--from: runs/none: no such folder; name a run or a checkpoint of it"),
        (["--data-position", "new"], "--data-position new goes with --from: a run that goes on keeps"),
        (["--from", ""], "--from is empty; name a run"),
        (["--from", "s3://bucket/old"], "--from s3://bucket/old: a branch begins with a folder"),
    ):
        assert submit(*given, *branch) == 2
        assert says in capsys.readouterr().err
    Path("runs/new/checkpoints").mkdir(parents=True)
    assert submit(*given, "--from", "runs/none") == 0, "the branch has begun"


def test_all_mistakes_are_named_at_once_and_nothing_is_submitted(
    slurm: Programs, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [
        "--time",
        "soon",
        "--job-name",
        "a b",
        "--pass-env",
        "NOT_SET",
        "--sbatch-option=--wrap=x",
        "--mem",
        "$(x)",
    ]
    wrong = ["train.max_step=5", "parallel.tensor_parallel_size=3"]
    assert (
        submit(
            "--nodes",
            "2",
            "--processes-per-node",
            "1",
            *given,
            *wrong,
            "--array",
            "optimizer.learning_rate=1,x",
        )
        == 2
    )
    error = capsys.readouterr().err
    for what in (
        "--time",
        "--job-name",
        "--pass-env",
        "--wrap",
        "--mem",
        "train.max_steps?",
        "parallel.world_size 2",
        '"x"',
    ):
        assert what in error
    lines = [line for line in error.splitlines() if re.match("  [^ ]", line)]
    assert f"submit: {len(lines)} mistakes, nothing was submitted" in error
    assert sum("train.max_steps?" in line for line in lines) == 1  # not for each task
    assert slurm.calls("sbatch") == []


def test_the_layout_is_checked_with_the_processes_that_there_will_be(
    slurm: Programs, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit("--nodes", "2", "--gpus-per-node", "4", "parallel.world_size=4") == 2
    error = capsys.readouterr().err
    assert "parallel.world_size is 4 (command line" in error and "2 nodes x 4 GPUs make 8" in error


def test_what_slurm_refuses_is_not_submitted(slurm: Programs, capsys: pytest.CaptureFixture[str]) -> None:
    slurm.say("sbatch", errors="allocation failure: Invalid account\n", code=1, given="--test-only")
    assert submit("--gpus-per-node", "1") == 2
    assert (
        "SLURM refuses this job, nothing was submitted: allocation failure: Invalid account"
        in capsys.readouterr().err
    )
    assert len(slurm.calls("sbatch")) == 1


def test_tasks_of_a_sweep_have_runs_of_their_own(slurm: Programs, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit("--gpus-per-node", "1", "--array", "run.seed=1,2", "train.max_steps=3,4", "%2") == 0
    script = slurm.calls("sbatch")[1]["input"]
    assert "#SBATCH --array=0-3%2\n" in script
    assert '  3) set -- "$@" run.seed=2 train.max_steps=4 run.name=tiny-seed_2-max_steps_4 ;;\n' in script
    assert f'--comment="llmkit {Path.cwd()}/runs/tiny-seed_*"' in script
    assert "job 12: 1 node x 1 GPU, 4 tasks" in capsys.readouterr().out


def test_two_tasks_do_not_share_a_run_folder(slurm: Programs, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit("--gpus-per-node", "1", "--array", "run.name=a,b", "run.seed=1,2") == 2
    assert "two tasks have the run folder runs/a" in capsys.readouterr().err


@pytest.mark.drill(
    "D42",
    injection="keys in the environment and in an override of llmkit submit",
    expected="not in the script, not in what is printed",
)
def test_secrets_stay_here(
    slurm: Programs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {
        "HF_TOKEN": "hf_canarycanarycanary",
        "SLURM_JOB_ID": "77",
        "PLAIN": "x,y",
        "NCCL_DEBUG": "a,B=c",
    }.items():
        monkeypatch.setenv(name, value)
    assert submit("--gpus-per-node", "1", "--pass-env", "PLAIN") == 0
    call = slurm.calls("sbatch")[1]
    exported = re.search("--export=(.*)\n", call["input"])[1].split(",")
    assert {"PATH", "PLAIN", "NCCL_DEBUG"} <= set(exported) and "HF_TOKEN" not in exported
    assert "canary" not in call["input"] and "x,y" not in call["input"]  # names alone
    assert "SLURM_JOB_ID" not in call["environment"]
    assert "note: HF_TOKEN stays here" in capsys.readouterr().err
    key = "data.sources.0.path=https://user:word@host/x"
    assert submit("--gpus-per-node", "1", key) == 2
    assert "user:word" not in capsys.readouterr().err


def test_a_run_that_another_job_has_is_noted(slurm: Programs, capsys: pytest.CaptureFixture[str]) -> None:
    run = f"llmkit {Path.cwd()}/runs/tiny"
    there = row("7", "7", "RUNNING", "None", "1", "n1", "0:50", "0:10", "x", "(null)", "tiny", "(null)", run)
    slurm.say("squeue", there)
    assert submit("--gpus-per-node", "1") == 0
    assert "note: job 7 has the run folder" in capsys.readouterr().err
    assert submit("--gpus-per-node", "1", "--dependency", "afterany:7") == 0
    assert submit("--gpus-per-node", "1", "run.name=other") == 0
    slurm.say("squeue", there.replace("RUNNING", "COMPLETED"))
    assert submit("--gpus-per-node", "1") == 0
    assert "run folder" not in capsys.readouterr().err


def test_a_run_folder_of_the_file_adds_no_option(slurm: Programs) -> None:
    file = Path("tiny.yaml")
    file.write_text(file.read_text().replace("run:\n", 'run:\n  dir: "x\\n#SBATCH --wrap=y"\n'))
    assert submit("--gpus-per-node", "1") == 0
    script = slurm.calls("sbatch")[1]["input"]
    assert "#SBATCH --comment=llmkit\n" in script and "--wrap" not in script


def test_nodes_that_others_may_use_too(slurm: Programs) -> None:
    assert submit("--gpus-per-node", "1", "--share-nodes", "--cpus-per-task", "8") == 0
    assert (
        submit("--gpus-per-node", "1", "--share-nodes", "--mem", "64G", "--sbatch-option=--signal=B:USR1@300")
        == 0
    )
    first, second = (call["input"] for call in slurm.calls("sbatch")[1::2])
    assert (
        "--exclusive" not in first and "#SBATCH --mem" not in first and "#SBATCH --cpus-per-task=8\n" in first
    )
    assert (
        "#SBATCH --mem=64G\n" in second
        and "#SBATCH --signal=B:USR1@300\n" in second
        and "USR1@120\n" not in second
    )


def test_a_container_has_an_interpreter_of_its_own(
    slurm: Programs, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        submit(
            "--gpus-per-node",
            "1",
            "--container",
            "nvcr.io#nvidia/py torch:25",
            "--launcher",
            "accelerate",
            "--container-python",
            "/opt/py",
        )
        == 0
    )
    head = head_of(slurm.calls("sbatch")[1]["input"])
    for line in (
        f"export PYTHON={sys.executable}",
        "export CONTAINER_PYTHON=/opt/py",
        "export CONTAINER='nvcr.io#nvidia/py torch:25'",
        "export LAUNCHER=accelerate",
    ):
        assert line in head
    assert submit("--gpus-per-node", "1", "--python", "/not/there", "--container-mounts", "/a") == 2
    error = capsys.readouterr().err
    assert (
        '--python: "/not/there" is no program here' in error
        and "--container-mounts goes with --container" in error
    )


def test_accelerate_needs_a_configuration_where_it_would_start_too_few(
    slurm: Programs, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", "home")
    accelerate = ["--launcher", "accelerate", "--nodes", "2"]
    assert submit(*accelerate, "--gpus-per-node", "1") == 2
    assert "add --accelerate-config FILE, such as launch/multinode.yaml\n" in capsys.readouterr().err
    assert submit(*accelerate, "--processes-per-node", "2") == 2
    assert "launch/multinode.yaml, and ACCELERATE_USE_CPU=true" in capsys.readouterr().err
    assert submit(*accelerate, "--gpus-per-node", "2") == 0
    Path("home/accelerate").mkdir(parents=True)
    Path("home/accelerate/default_config.yaml").touch()
    assert submit(*accelerate, "--gpus-per-node", "1") == 0


def test_what_accelerate_will_be_told_is_checked_too(
    slurm: Programs, capsys: pytest.CaptureFixture[str]
) -> None:
    file = Path("zero.yaml")
    file.write_text("distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: 2}\n")
    given = ["--gpus-per-node", "4", "--launcher", "accelerate", "--accelerate-config", "zero.yaml"]
    assert submit(*given) == 0
    assert "export ACCELERATE_CONFIG=zero.yaml" in head_of(slurm.calls("sbatch")[1]["input"])
    assert submit(*given, "parallel.zero_stage=3") == 2
    assert "zero_stage 2 (ACCELERATE_DEEPSPEED_ZERO_STAGE)" in capsys.readouterr().err
    assert submit("--gpus-per-node", "4", "--accelerate-config", "none.yaml", "train.max_step=1") == 2
    error = capsys.readouterr().err
    assert "none.yaml" in error and "goes with --launcher accelerate" in error and "train.max_steps?" in error
