"""`llmkit train` from the outside: what a run leaves behind, how it stops and how it goes on."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import signal
import threading

import numpy as np
import pytest

from llmkit.checkpoint.read import open as open_checkpoint
from llmkit.checkpoint.read import verify
from llmkit.config.load import load
from llmkit.data import prefetch
from llmkit.data.batches import BatchReader
from llmkit.data.building.parts import held_out
from llmkit.engine.native import NativeEngine
from llmkit.errors import RunFault
from llmkit.loop.trainer import Trainer
from llmkit.model.initial import InitialWeights
from llmkit.monitor.columns import column_of
from llmkit.monitor.goodput import LOST
from llmkit.monitor.wandb_file import history
from llmkit.monitor.wandb_session import Timeouts
from tests.limits import HANG
from tests.program import at_step, events, recorded, rows, timeless, train

COLUMNS = {
    "step", "tokens", "epochs", "loss", "loss_mean", "grad_norm", "learning_rate", "skipped_total",
    "restarts", "step_seconds", "data_seconds", "tokens_per_second", "tokens_per_second_per_device", "mfu",
    "mfu_causal", "mfu_peak", "time/start", "time/data", "time/compile", "time/step", "time/evaluate",
    "time/save", "time/other", "time/optimizer", "elapsed_seconds", "goodput",
    *(f"lost/{name}" for name in LOST), "peak_memory_gib", "reserved_memory_gib",
    "power_watts", "energy_kwh", "joules_per_token", "energy_source", "device_hours", "cost", "co2_grams",
}  # fmt: skip
EVALUATED = {"step", "eval_loss", "eval_perplexity", "eval_bits_per_byte"}


def test_a_run_leaves_a_whole_record(project, capsys):
    assert train("evaluate.every_steps=6") == 0
    folder = project / "runs" / "tiny"
    training = [row for row in rows(folder) if "loss" in row]
    evaluations = [row for row in rows(folder) if "eval_loss" in row]
    assert all(set(row) == COLUMNS for row in training)
    assert all(set(row) >= EVALUATED and all(map(column_of, row)) for row in evaluations)
    assert all(column_of(name) for name in COLUMNS), "every column is on the page"
    assert [row["step"] for row in training] == list(range(1, 13))
    assert [row["tokens"] for row in training] == [step * 4 * 32 for step in range(1, 13)]
    assert training[-1]["loss"] < training[0]["loss"] - 0.3
    assert training[0]["loss"] == pytest.approx(math.log(257), abs=0.1)
    assert [row["learning_rate"] for row in training][:4] == pytest.approx(
        [0.01 / 3, 0.02 / 3, 0.01, 0.00978], rel=1e-2
    )
    assert [row["step"] for row in evaluations] == [6, 12]
    texts = [path.read_bytes() for path in sorted((project / "corpus").iterdir())]
    held = held_out(0, np.arange(len(texts)), 20)
    heldout = [text for text, out in zip(texts, held, strict=True) if out]
    for row in evaluations:  # every byte is a token, and so is the end of each document
        nats = row["eval_loss"] * sum(len(text) + 1 for text in heldout)
        bits = nats / math.log(2) / sum(len(text) for text in heldout)
        assert row["eval_bits_per_byte"] == pytest.approx(bits, rel=1e-9)
        assert row["eval_perplexity"] == pytest.approx(math.exp(row["eval_loss"]))
    assert events(folder) == ["start", "save", "save", "save", "done"]
    assert [path.name[-2:] for path in sorted((folder / "checkpoints").iterdir())] == ["05", "10", "12"]
    assert all(not verify(path) for path in (folder / "checkpoints").iterdir())
    wanted = load("tiny.yaml", ["evaluate.every_steps=6"]).config
    assert load(folder / "configs" / "start-0001.yaml").config == wanted
    kept = load(folder / "config.yaml").config  # the same from any working directory
    assert (kept.model, kept.train) == (wanted.model, wanted.train)
    assert kept.data.sources[0].path == str(project / "corpus")
    assert kept.run.dir == str(project / "runs")
    manifest = json.loads((folder / "manifest.json").read_text())
    known = {"precision": "fp32", "max_steps": 12, "devices": 1, "tokens_per_step": 128}
    known["flops_per_token"] = 6 * 26_848 + 12 * 2 * 32 * 32
    assert manifest | known == manifest
    trained = sum(len(text) + 1 for text, out in zip(texts, held, strict=True) if not out)
    assert [row["epochs"] for row in training] == pytest.approx([n * 128 / trained for n in range(1, 13)])
    assert (folder / "DONE").exists()
    assert "held-out loss" in (folder / "logs" / "rank-00000.log").read_text()
    printed = capsys.readouterr().out
    for fact in (
        "parameters",
        "4 sequences of 32 tokens = 128 tokens",
        "bits per byte",
        "xz -9e",
        "gzip -9",
        "llmkit generate",
        "in steps that count",
    ):
        assert fact in printed


def test_the_mean_loss_since_the_last_row_covers_resumes(project, monkeypatch, capsys):
    assert train("run.name=every") == 0
    losses = [row["loss"] for row in rows(project / "runs" / "every") if "loss" in row]
    at_step(monkeypatch, 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert train("monitor.log_every=4") == 75
    capsys.readouterr()
    assert train("monitor.log_every=4") == 0
    training = [row for row in rows(project / "runs" / "tiny") if "loss" in row]
    assert [row["step"] for row in training] == [1, 4, 8, 12]
    assert [row["loss"] for row in training] == [losses[step - 1] for step in (1, 4, 8, 12)]
    means = [losses[0], *(sum(losses[a:b]) / (b - a) for a, b in ((1, 4), (4, 8), (8, 12)))]
    assert [row["loss_mean"] for row in training] == pytest.approx(means, rel=1e-12)
    assert f"step  8/12  loss {means[2]:.4f}" in capsys.readouterr().out


def test_the_first_step_of_a_process_counts_in_no_mean_of_times(project, monkeypatch):
    at_step(monkeypatch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert train() == 75
    assert train() == 0
    training = [row for row in rows(project / "runs" / "tiny") if "loss" in row]
    for column in ("step_seconds", "tokens_per_second", "data_seconds", "mfu"):
        assert [row["step"] for row in training if row[column] is None] == [1, 4]


def test_the_account_of_time_goes_on_over_a_fault_in_a_moved_folder(project, monkeypatch, capsys):
    def fail():
        raise RunFault("the machine is gone")

    folder = project / "runs" / "moved"
    at_step(monkeypatch, 9, fail)  # the newest checkpoint is that of step 5
    assert train() == 1
    os.rename(project / "runs" / "tiny", folder)
    before = [row for row in rows(folder) if "loss" in row]
    assert [row["step"] for row in before] == list(range(1, 8)), "the row of step 8 was on its way"
    fault = recorded("fault", folder)[0]["account"]
    assert train("run.name=moved") == 0

    assert capsys.readouterr().out.count("% in steps that count") == 1
    after = [row for row in rows(folder) if "loss" in row and row["step"] > 5]
    assert {row["restarts"] for row in before} == {0} and {row["restarts"] for row in after} == {1}
    assert after[0]["time/start"] > 0.0 and not any(row["time/start"] for row in after[1:])
    saved = next(event["account"] for event in recorded("save", folder) if event["step"] == 5)
    redone = fault["useful"] - saved["useful"]
    assert redone > 0.0
    for row in after:
        assert row["lost/redone"] == pytest.approx(redone, abs=2e-3)
        assert row["lost/down"] == pytest.approx(after[0]["lost/down"]) and row["lost/down"] >= 0.0
        parts = sum(row[f"lost/{name}"] for name in LOST)
        assert row["goodput"] == pytest.approx(1 - parts / row["elapsed_seconds"], abs=1e-2)
    elapsed = [row["elapsed_seconds"] for row in (*before, *after)]
    assert elapsed == sorted(elapsed)
    done = recorded("done", folder)[0]
    assert done["account"]["lost"]["redone"] == pytest.approx(redone, abs=2e-3)


def test_a_finished_run_without_checkpoints_is_not_started_over(project, capsys):
    assert train() == 0
    folder = project / "runs" / "tiny"
    before = (folder / "metrics.jsonl").read_bytes()
    shutil.rmtree(folder / "checkpoints")
    assert train() == 2
    assert "checkpoints are gone" in capsys.readouterr().err
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_a_corpus_may_move_and_sources_may_get_other_weights(project):
    one, other = "{type: text, name: a, path: PLACE, weight: WEIGHT}", "{type: text, name: b, path: corpus}"
    sources = f"data.sources=[{one}, {other}]"
    first = sources.replace("PLACE", "corpus").replace("WEIGHT", "1")
    assert train(first) == 0
    shutil.copytree("corpus", "elsewhere")
    assert train(first.replace("corpus", "elsewhere", 1), "train.max_steps=14") == 0
    moved = sources.replace("PLACE", "elsewhere").replace("WEIGHT", "3")
    assert train(moved, "train.max_steps=16") == 2
    assert train(moved, "train.max_steps=16", "--allow-data-change") == 0
    segments = open_checkpoint(project / "runs" / "tiny").state["data"]["segments"]
    assert segments == [[0, [1.0, 1.0]], [14 * 4, [3.0, 1.0]]]


def test_a_run_with_rotary_positions_may_go_on_with_longer_rows(project, capsys):
    assert train() == 0
    longer = ("data.sequence_length=64", "train.max_steps=14", "train.micro_batch_size=2")
    assert train(*longer) == 2
    assert "data.sequence_length: 32 -> 64" in capsys.readouterr().err
    assert train(*longer, "model.max_position_embeddings=96", "--allow-data-change") == 0
    checkpoint = open_checkpoint(project / "runs" / "tiny")
    assert (checkpoint.step, checkpoint.model["max_position_embeddings"]) == (14, 96)


def test_learned_positions_cannot_become_more(project, capsys):
    learned = "model.position_embedding=learned"
    assert train(learned) == 0
    assert train(learned, "data.sequence_length=64", "train.max_steps=14", "--allow-data-change") == 2
    assert "holds another model: max_position_embeddings 32 -> 64" in capsys.readouterr().err


def test_initial_weights_are_drawn_for_a_new_run_alone(project, monkeypatch):
    drawn = []
    read = InitialWeights.read
    monkeypatch.setattr(InitialWeights, "read", lambda *args: drawn.append(1) or read(*args))
    assert train("train.max_steps=3") == 0
    assert drawn
    drawn.clear()
    assert train("train.max_steps=4") == 0
    assert not drawn


@pytest.mark.parametrize("where", ["run folder", "STOP_FILE"])
def test_the_stop_file_saves_and_is_forgotten_by_the_next_start(project, where, monkeypatch):
    folder = project / "runs" / "tiny"
    stop = folder / "STOP" if where == "run folder" else project / "please-stop"
    if where == "STOP_FILE":
        monkeypatch.setenv("STOP_FILE", str(stop))
    at_step(monkeypatch, 3, stop.touch)
    assert train() == 75
    assert open_checkpoint(folder).step == 3
    assert train() == 0
    assert not stop.exists()


@pytest.mark.drill(
    "D9",
    injection="SIGTERM, and a second one while the save that it asked for is written",
    expected="one save, of the step of the signal",
)
def test_a_second_signal_while_saving_changes_nothing(project, monkeypatch):
    import llmkit.loop.saving

    saves = []

    def slow_save(*arguments, **named):
        os.kill(os.getpid(), signal.SIGTERM)
        saves.append(arguments[1].step)
        return save(*arguments, **named)

    save = llmkit.loop.saving.write_and_commit
    monkeypatch.setattr(llmkit.loop.saving, "write_and_commit", slow_save)
    at_step(monkeypatch, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert train() == 75
    assert saves == [2]
    assert open_checkpoint(project / "runs" / "tiny").step == 2


@pytest.mark.parametrize("blocks", [0, 3])
def test_a_signal_while_a_batch_is_awaited_saves_what_was_trained(project, blocks, monkeypatch):
    assert train("run.name=straight") == 0
    folder, released = project / "runs" / "tiny", threading.Event()
    made, done = BatchReader.blocks, 2**blocks - 1  # blocks of 1, 2 and 4 steps
    stop_code = Trainer.stop_code

    def stalling(self):
        yield from itertools.islice(made(self), blocks)
        assert released.wait(HANG)

    def signalled(trainer):
        if trainer.state.step == done:
            os.kill(os.getpid(), signal.SIGTERM)
        return stop_code(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(prefetch, "CLOSE_SECONDS", 0.0)
        patch.setattr(BatchReader, "blocks", stalling)
        patch.setattr(Trainer, "stop_code", signalled)
        assert train() == 75
    released.set()
    if done:  # before, there is nothing to save
        assert open_checkpoint(folder).step == done
    assert events(folder)[-1] == "stop"
    assert train() == 0
    assert timeless(folder) == timeless(project / "runs" / "straight")


def poison(monkeypatch, steps: set[int]) -> None:
    """Makes one gradient of these steps NaN."""
    train_step = NativeEngine.train_step
    done = [0]

    def poisoned(self, *arguments):
        done[0] += 1
        third = list(self.weights.values())[2]
        hook = third.register_hook(lambda g: g * (math.nan if done[0] in steps else 1.0))
        result = train_step(self, *arguments)
        hook.remove()
        return result

    monkeypatch.setattr(NativeEngine, "train_step", poisoned)


def test_non_finite_gradients_are_skipped_counted_and_logged(project, monkeypatch):
    poison(monkeypatch, {3, 4, 9})
    assert train("train.max_nonfinite_steps=3", "monitor.log_every=5") == 0
    folder = project / "runs" / "tiny"
    training = [row for row in rows(folder) if "loss" in row]
    assert [row["step"] for row in training] == [1, 3, 4, 5, 9, 10, 12]
    assert [row["step"] for row in training if row.get("skipped")] == [3, 4, 9]
    assert [row["grad_norm"] for row in training if row.get("skipped")] == [None] * 3
    state = open_checkpoint(folder).state
    assert (state["progress"]["skipped"], state["updates"]) == (3, 9)


def test_too_many_non_finite_gradients_end_the_run(project, monkeypatch, capsys):
    poison(monkeypatch, set(range(7, 100)))
    assert train("train.max_nonfinite_steps=3") == 1
    folder = project / "runs" / "tiny"
    message = capsys.readouterr().err
    assert "not finite 3 times in a row" in message and "goes on from step 5." in message
    assert events(folder)[-1] == "fault"
    assert not (folder / "DONE").exists()
    assert open_checkpoint(folder).step == 5


def test_too_many_non_finite_gradients_at_a_step_that_is_saved_are_no_failed_save(project, monkeypatch):
    poison(monkeypatch, {7, 8, 9})
    assert train("train.max_nonfinite_steps=3", "checkpoint.every_steps=3") == 1
    folder = project / "runs" / "tiny"
    assert events(folder) == ["start", "save", "save", "fault"]
    assert rows(folder)[-1]["step"] == 9
    assert open_checkpoint(folder).step == 6


def test_too_many_non_finite_gradients_before_the_first_checkpoint_do_not_promise_one(
    project, monkeypatch, capsys
):
    poison(monkeypatch, set(range(1, 100)))
    assert train("train.max_nonfinite_steps=2") == 1
    assert "The same command starts anew, as nothing was saved." in capsys.readouterr().err


def test_early_stopping_ends_the_run_and_lifting_it_goes_on(project, capsys):
    still = ["optimizer.learning_rate=1e-30", "evaluate.every_steps=2"]
    assert train(*still, "evaluate.early_stopping=2") == 0
    folder = project / "runs" / "tiny"
    assert open_checkpoint(folder).step == 6  # best at 2, no gain at 4 and 6
    assert events(folder)[-2:] == ["save", "done"]
    assert "stopping early" in capsys.readouterr().out
    assert train(*still, "evaluate.early_stopping=2", "train.max_steps=20") == 0
    assert "finished since step 6, where early stopping ended it" in capsys.readouterr().out
    assert open_checkpoint(folder).step == 6
    assert train(*still) == 0
    assert open_checkpoint(folder).step == 12


def test_a_time_budget_becomes_steps_and_is_kept_on_resume(project, monkeypatch, capsys):
    monkeypatch.setattr("llmkit.loop.budget.END_SECONDS", 0.0)
    budget = ["train.max_steps=null", "train.max_minutes=0.15"]
    folder = project / "runs" / "tiny"
    at_step(monkeypatch, 14, (folder / "STOP").touch)
    assert train(*budget) == 75
    chosen = open_checkpoint(folder).state["progress"]["max_steps"]
    assert chosen > 14
    while (code := train(*budget)) == 75:  # on a machine that has slowed down meanwhile
        pass
    assert (code, open_checkpoint(folder).step) == (0, chosen)
    assert events(folder).count("max_steps") == 1
    assert f"max_steps = {chosen}" in capsys.readouterr().out


def test_accumulation_changes_nothing(project):
    exact = ["model.hidden_dropout=0.0", "optimizer.eps=1e-5"]  # a small eps makes noise of gradients near 0
    assert train("run.name=whole", *exact) == 0
    assert train("run.name=parts", *exact, "train.micro_batch_size=1") == 0
    whole, parts = (rows(project / "runs" / name) for name in ("whole", "parts"))
    for a, b in zip(whole, parts, strict=True):
        for column, tolerance in (("loss", 1e-5), ("eval_loss", 1e-5), ("grad_norm", 5e-3)):
            if column in a:
                assert b[column] == pytest.approx(a[column], rel=tolerance)


def test_a_save_that_fails_does_not_stop_training(project, monkeypatch, capsys):
    import llmkit.loop.saving
    import llmkit.ownership.claim

    save, fail = llmkit.loop.saving.write_and_commit, [True]

    def failing(*arguments, **named):
        if fail.pop() if fail else False:
            monkeypatch.setattr(llmkit.ownership.claim, "newest_generation", once_broken)
            raise RunFault("the disk is full")
        return save(*arguments, **named)

    newest_generation = llmkit.ownership.claim.newest_generation

    def once_broken(path):  # nor does the disk tell whose the run is
        monkeypatch.setattr(llmkit.ownership.claim, "newest_generation", newest_generation)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(llmkit.loop.saving, "write_and_commit", failing)
    assert train() == 0
    folder = project / "runs" / "tiny"
    assert events(folder) == ["start", "save_failed", "save", "save", "done"]
    assert "NOT SAVED, training goes on: the disk is full" in capsys.readouterr().out


def test_a_damaged_checkpoint_is_passed_over(project, capsys):
    assert train("checkpoint.every_steps=4") == 0
    folder = project / "runs" / "tiny"
    newest = sorted((folder / "checkpoints").iterdir())[-1]
    pieces = next(newest.glob("*.safetensors"))
    content = bytearray(pieces.read_bytes())
    content[len(content) // 2] ^= 1
    pieces.write_bytes(content)
    before = timeless(folder)
    assert train("checkpoint.every_steps=4") == 0
    assert "step-00000012 is not usable" in capsys.readouterr().out
    assert timeless(folder) == before  # the last four steps were done again, with the same outcome


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_over(project, capsys):
    assert train("checkpoint.keep_last=1") == 0
    folder = project / "runs" / "tiny"
    next(folder.glob("checkpoints/*/*.safetensors")).write_bytes(b"")
    before = (folder / "metrics.jsonl").read_bytes()
    assert train("train.max_steps=20") == 2
    assert "none of the 1 checkpoints" in capsys.readouterr().err
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_weights_and_biases_gets_every_row(project, capsys, monkeypatch):
    patient = Timeouts(*[HANG] * 6)  # a busy machine may take longer than a run would wait
    monkeypatch.setattr("llmkit.monitor.wandb_mirror.Timeouts", lambda: patient)
    assert train("monitor.wandb.mode=offline", "evaluate.every_steps=4") == 0
    folder = project / "runs" / "tiny"
    (log,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    mirrored = list(history(log))
    assert mirrored.pop()["faults/events.nrows"] == len(events(folder)), "the end of the run, too"
    assert [row["train/step"] for row in mirrored] == [row["step"] for row in rows(folder)]
    assert "W&B: offline" in capsys.readouterr().out


def test_without_a_compiler_training_goes_on_without_compiling(project, monkeypatch, capsys):
    monkeypatch.setattr("llmkit.device.compiler_missing", lambda device: "no C++ compiler is found")
    assert train("kernels.compile=auto") == 0
    assert "training without torch.compile: no C++ compiler is found" in capsys.readouterr().out
    assert train("run.name=other", "kernels.compile=true") == 2
    assert "kernels.compile" in capsys.readouterr().err


@pytest.mark.exhaustive
def test_compiled_training_equals_eager_training(project):
    settings = ["train.max_steps=6", "model.hidden_dropout=0.0", "evaluate.every_steps=3"]
    assert train("run.name=eager", *settings) == 0
    assert train("run.name=compiled", "kernels.compile=true", *settings) == 0
    for a, b in zip(rows(project / "runs" / "eager"), rows(project / "runs" / "compiled"), strict=True):
        for column in {"loss", "grad_norm", "eval_loss"} & set(a):
            assert b[column] == pytest.approx(a[column], rel=1e-4)
