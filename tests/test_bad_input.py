"""Every mistake gives one clear message on standard error, exit code 2, and harms nothing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llmkit.cli import main
from llmkit.files import write_sealed
from llmkit.run_folder import RunFolder
from tests.limits import HANG
from tests.program import environment


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file under `folder` that a run could harm; what attempts leave behind, such as logs, aside."""
    attempts = {"run.lock", "generations", "rank-00000.log", "events.jsonl"}
    kept = {path for path in folder.rglob("*") if path.is_file() and not attempts & set(path.parts)}
    return {str(path): path.read_bytes() for path in kept}


def refused(capsys, *overrides: str, config: str = "tiny.yaml") -> str:
    """The message of a train command that must be refused before it changes anything."""
    before = snapshot(Path("runs"))
    capsys.readouterr()
    assert main(["train", config, "run.deterministic=false", *overrides]) == 2
    message = capsys.readouterr().err
    assert message.startswith("llmkit: ")
    assert "Traceback" not in message
    assert snapshot(Path("runs")) == before
    return message


def trained(*overrides: str) -> None:
    assert main(["train", "tiny.yaml", "run.deterministic=false", "train.max_steps=3", *overrides]) == 0


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.max_step=3", ["unknown key", "did you mean train.max_steps?"]),
        ("learning_rate=3", ["did you mean optimizer.learning_rate?"]),
        ("train.max_steps=many", ["train.max_steps", "whole number"]),
        ("optimizer.betas=[0.9]", ["optimizer.betas"]),
        ("model.mlp=relu", ["swiglu", "gelu"]),
        ("train.micro_batch_size=3", ["micro_batch_size 3", "does not divide", "global_batch_size 4"]),
        ("data.sources.0.path=nowhere", ["data.sources.0.path: ", "nowhere"]),
        ("model.vocab_size=100", ["vocab_size 100", "257"]),
        ("data.tokenizer={type: file, path: none.json}", ["none.json", "cannot be read"]),
        ("data.tokenizer={type: file, path: .}", ["Is a directory", "name the file in it"]),
    ],
)
def test_settings(project, capsys, override, says):
    message = refused(capsys, override)
    assert all(part in message for part in says), message


def test_a_setting_without_effect_is_noted_at_the_start(project, capsys):
    trained("schedule.decay_fraction=0.5")
    printed = capsys.readouterr().out
    assert "note: schedule.decay_fraction 0.5 (command line) has no effect: schedule.name" in printed


def test_all_mistakes_are_told_at_once(project, capsys):
    message = refused(
        capsys, "train.max_step=3", "optimizer.lr=1", "model.hidden_size=-1", "monitor.log_every=x"
    )
    assert "4 mistakes" in message


def test_a_configuration_that_is_not_there(project, capsys):
    assert "nowhere.yaml" in refused(capsys, config="nowhere.yaml")


@pytest.mark.parametrize("documents", [[], ["", "", ""]], ids=["no-files", "empty-files"])
def test_an_empty_corpus(project, capsys, documents):
    shutil.rmtree("corpus")
    Path("corpus").mkdir()
    for number, text in enumerate(documents):
        Path(f"corpus/{number}.txt").write_text(text)
    assert "corpus" in refused(capsys) or "no usable document" in refused(capsys)


def test_documents_that_are_no_text_are_counted(project, capsys):
    good = [json.dumps({"text": f"number {n} " * 40}) for n in range(30)]
    bad = [
        '{"text": null}',
        '{"text": ""}',
        '{"text": 5}',
        '{"other": "x"}',
        '{"text": "\\ud800"}',
        "{broken",
    ]
    lines = b"\n".join(line.encode() for line in good + bad) + b'\n{"text": "\xff\xfe"}\n'
    Path("records.jsonl").write_bytes(lines)
    source = "data.sources=[{type: jsonl, path: records.jsonl}]"
    trained(source)
    printed = capsys.readouterr().out
    assert "7 documents left out" in printed
    message = refused(capsys, source, "data.errors=raise", "run.name=strict")
    assert "records.jsonl:3" in message


@pytest.mark.drill(
    "D38",
    injection="shards whose index names another tokenizer",
    expected="refused at the start",
)
def test_another_tokenizer_than_the_shards(project, capsys):
    trained()
    (folder,) = Path("data-cache").glob("text-0-*")
    index = json.loads((folder / "train" / "index.json").read_text())
    del index["checksum"]
    write_sealed(folder / "train" / "index.json", {**index, "tokenizer": "another"})
    message = refused(capsys, "train.max_steps=6")
    assert "tokenizer" in message


@pytest.mark.drill(
    "D38",
    injection="a tokenizer of another size than that of the checkpoint",
    expected="refused at the start, with the checkpoint's name",
)
def test_another_tokenizer_than_the_checkpoint(project, capsys):
    trained("data.tokenizer={type: bpe, vocab_size: 270}")
    message = refused(capsys, "data.tokenizer={type: bpe, vocab_size: 280}", "train.max_steps=6")
    assert "tokenizer" in message
    assert "step-00000003" in message


def test_other_data_than_the_checkpoint(project, capsys):
    trained()
    Path("corpus/new.txt").write_text("something else " * 50)
    message = refused(capsys, "train.max_steps=6")
    assert "tokens" in message


@pytest.mark.drill(
    "D38",
    injection="model.vocab_size one smaller than the tokenizer",
    expected="refused before data are built; both numbers are shown",
)
def test_a_vocabulary_that_is_too_small_is_refused_before_the_sources_are_built(project, capsys):
    trained("data.tokenizer={type: bpe, vocab_size: 280}")
    (made,) = Path("data-cache").glob("tokenizer-*/tokenizer.json")
    shutil.copy(made, "tokenizer.json")
    shutil.rmtree("data-cache")
    local = "data.tokenizer={type: file, path: tokenizer.json}"
    message = refused(capsys, local, "model.vocab_size=279", "run.name=other")
    assert "model.vocab_size 279 (command line) is smaller than the 280 tokens of the tokenizer" in message
    assert not list(Path("data-cache").glob("text-0-*"))


def test_a_run_folder_of_another_model(project, capsys):
    trained()
    message = refused(capsys, "model.num_hidden_layers=3", "model.mlp=gelu")
    assert "model.num_hidden_layers: 2 -> 3" in message
    assert "model.mlp" in message
    assert "run.name" in message


def test_fresh_refuses_a_folder_with_checkpoints(project, capsys):
    trained()
    before = snapshot(Path("runs"))
    assert main(["train", "tiny.yaml", "run.deterministic=false", "--fresh"]) == 2
    assert "step 3" in capsys.readouterr().err
    assert snapshot(Path("runs")) == before


def test_two_runs_in_one_folder(project, capsys):
    with RunFolder.open(Path("runs/tiny"), "the first run"):
        message = refused(capsys)
    assert "the first run" in message


def test_a_place_in_a_world_that_is_not_whole(project, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "WORLD_SIZE is 2, but not set: RANK, LOCAL_RANK" in refused(capsys)


def test_another_world_than_the_configuration_names(project, capsys):
    message = refused(capsys, "parallel.world_size=4")
    assert "parallel.world_size 4 (command line), but the world that was joined has 1" in message


def test_a_batch_that_the_processes_cannot_share_is_refused_before_data_are_read(project, capsys):
    message = refused(capsys, "train.global_batch_size=10", "train.micro_batch_size=3", "run.name=shared")
    assert "train.micro_batch_size 3 (command line) does not divide train.global_batch_size 10" in message
    assert not Path("data-cache").exists()


def test_a_run_folder_that_cannot_be_made(project, capsys):
    Path("file").write_text("")
    assert "file/tiny" in refused(capsys, "run.dir=file")


def test_a_disk_without_room_is_refused_before_training(project, capsys, monkeypatch):
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    assert main(["train", "tiny.yaml", "run.deterministic=false"]) == 1
    message = capsys.readouterr().err
    assert re.search(r"is too full: checkpoints need [0-9.]+ MiB, free are 1,000 bytes; make room", message)
    assert not list(Path("runs/tiny/checkpoints").iterdir())
    assert not Path("data-cache").exists()


def test_a_model_without_room_in_memory_is_refused_before_data_are_read(project, capsys):
    sizes = ["model.hidden_size=16384", "model.num_attention_heads=128", "model.num_hidden_layers=126"]
    message = refused(capsys, *sizes, "run.name=large")
    assert "parameters does not fit into memory" in message
    assert "(16 bytes a parameter in fp32" in message
    assert "model.hidden_size 16384 (command line)" in message
    assert not Path("data-cache").exists()


def test_a_wrong_wandb_mode_is_refused_before_anything_else(project, capsys, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "sometimes")
    assert "WANDB_MODE=sometimes" in refused(capsys, "monitor.wandb.mode=auto")
    assert not Path("data-cache").exists()


def mounted(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a shell script in a mount namespace of its own; skips where that is not allowed."""
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-m", "true"], capture_output=True).returncode:
        pytest.skip("mount namespaces are not allowed here")
    command = [unshare, "-m", "sh", "-c", script, "sh", sys.executable]
    return subprocess.run(
        command, cwd=folder, env=environment(), text=True, capture_output=True, timeout=HANG
    )


@pytest.mark.drill(
    "D17",
    injection="the run folder is on a read-only bind mount at the start",
    expected="refused at once, by path and reason",
)
def test_a_read_only_run_folder(project):
    Path("runs").mkdir()
    done = mounted('mount -o bind,ro runs runs && exec "$1" -m llmkit train tiny.yaml', project)
    assert done.returncode == 2, done.stderr
    assert "runs/tiny as the run folder" in done.stderr
    assert "Read-only file system" in done.stderr


@pytest.mark.drill(
    "D16",
    injection="the disk has no room for the checkpoints of the run at the start",
    expected="refused before training: bytes that are needed, bytes that are free",
)
def test_no_free_disk(project):
    Path("runs").mkdir()
    done = mounted('mount -t tmpfs -o size=300k none runs && exec "$1" -m llmkit train tiny.yaml', project)
    assert done.returncode == 1, done.stderr
    assert "too full" in done.stderr
    assert "Traceback" not in done.stderr
