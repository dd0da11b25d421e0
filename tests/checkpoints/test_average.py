"""`llmkit checkpoint average`: against numpy in fp64, whatever the layouts that saved."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from llmkit.checkpoint import files
from llmkit.checkpoint.pieces import Piece
from llmkit.checkpoint.read import load, verify
from llmkit.checkpoint.write import save
from llmkit.checkpoints.listing import lines_of
from llmkit.cli import main
from llmkit.parallel.slices import full_box
from llmkit.weights import open_weights
from tests.checkpoints.recut import recut
from tests.limits import HANG
from tests.program import start_ranks

TINY, OTHER = Path("runs/tiny/checkpoints"), Path("runs/other/checkpoints")


def average(*arguments: str, code: int = 0) -> Path:
    assert main(["checkpoint", "average", *arguments, "--out", "out"]) == code
    return Path("out")


def step(number: int, root: Path = TINY) -> Path:
    return root / f"step-{number:08d}"


def check(out: Path, folders: list[Path], shares: list[float]) -> None:
    """The average is that of numpy, and all that is stored."""
    found, members = load(out), [load(folder) for folder in folders]
    assert found.kinds() == ["master"]
    assert set(found.names("master")) == set(members[0].names("master"))
    for name in found.names("master"):
        values = [member.read(name, "master").double().numpy() for member in members]
        wanted = sum(share * value for share, value in zip(shares, values, strict=True))
        got = found.read(name, "master")
        assert got.dtype == torch.float32
        np.testing.assert_allclose(got.numpy(), wanted, rtol=1e-7, atol=1e-12)
        assert not np.array_equal(wanted, values[0]) or np.array_equal(values[0], values[-1])


def test_the_command_to_try_is_whole_on_a_terminal(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmkit.command_line.terminal_width", lambda stream: 40)
    assert main(["checkpoint", "average", "runs/tiny", "--last", "2", "--out", "a name with spaces"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "try        llmkit evaluate 'a name with spaces'"


def test_of_a_run_in_equal_shares(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = average("runs/tiny")
    assert verify(out) == []
    check(out, [step(number) for number in (2, 4, 6, 8)], [0.25] * 4)
    printed = capsys.readouterr().out
    assert f" 25.00 %  {step(2)}" in printed and "average    of 4: out" in printed
    about = load(out).state["average"]
    assert about["decay"] is None and [each["step"] for each in about["of"]] == [2, 4, 6, 8]
    assert about["of"][0]["digest"] == open_weights(step(2)).digest()
    assert about["of"][0]["path"] == str(step(2).absolute())


def test_with_shares_that_decay(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = average("runs/tiny", "--steps", "8,2,6", "--decay", "0.5", "--json")
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert found["path"] == str(out) and found["tensors"] == len(load(out).names("master"))
    assert [(each["path"], each["step"]) for each in found["of"]] == [(str(step(n)), n) for n in (2, 6, 8)]
    assert sum(each["share"] for each in found["of"]) == pytest.approx(1)
    assert found["bytes"] < load(out).nbytes and "14.29 %" in printed.err
    check(
        out,
        [step(number) for number in (2, 6, 8)], [1 / 7, 2 / 7, 4 / 7],
    )  # fmt: skip


def test_of_the_newest_and_across_runs_and_layouts(project: Path) -> None:
    cut = recut(step(8, OTHER), project / "recut")
    out = average("runs/tiny", str(cut), "--last", "2")
    check(out, [step(6), step(8), step(8, OTHER)], [1 / 3] * 3)


def test_by_evaluation_loss(project: Path) -> None:
    losses = {6: 2.5, 8: 2.25, 2: 2.0, 4: 9.0}
    with open("runs/tiny/metrics.jsonl", "a") as file:
        for number, loss in losses.items():
            file.write(json.dumps({"step": number, "eval_loss": loss}) + "\n")
    out = average("runs/tiny", "--best", "3")
    check(out, [step(number) for number in (2, 6, 8)], [1 / 3] * 3)
    assert [each["heldout"] for each in load(out).state["average"]["of"]] == [2.0, 2.5, 2.25]


def test_it_is_used_as_any_other(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.program import train

    out = str(average("runs/tiny"))
    capsys.readouterr()
    assert main(["evaluate", out, "--json"]) == 0
    loss = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert any(isinstance(value, float) and math.isfinite(value) for value in loss.values())
    assert main(["generate", out, "--prompt", "the", "--max-new-tokens", "4"]) == 0
    assert main(["export", out, "exported", "--no-check"]) == 0
    assert "average of" in Path("exported/README.md").read_text()
    exported = load_file("exported/model.safetensors")
    assert sum(tensor.numel() for tensor in exported.values()) > 0
    assert train("run.name=next", f"train.init_from={out}", "train.max_steps=2") == 0
    assert main(["checkpoint", "list", out]) == 0
    assert "average of 4" in capsys.readouterr().out


def test_other_models_are_refused_and_nothing_is_left(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.program import train

    assert train("run.name=wide", "model.intermediate_size=96", "train.max_steps=1") == 0
    average("runs/tiny", "runs/wide", code=2)
    assert "are not of one model: intermediate_size 96 -> 64" in capsys.readouterr().err
    assert train("run.name=turned", "model.rope_theta=500", "train.max_steps=1") == 0
    average("runs/tiny", "runs/turned", code=2)
    assert "are not of one model: rope_theta 500.0 -> 10000.0" in capsys.readouterr().err
    assert not [path for path in Path().iterdir() if "out" in path.name]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["runs/tiny", "--last", "1"], "gives one checkpoint, an average needs two"),
        (["runs/tiny", "--steps", "2,3"], "has no checkpoint of step 3, but of 2, 4, 6 and 8"),
        (["runs/tiny", str(TINY / "step-00000004")], "step-00000004 is named twice; name it once"),
        (["runs/other", "--best", "2"], "none is on record for step-00000002"),
        (["nowhere", "runs/tiny"], "nowhere: no such folder"),
    ],
)
def test_mistakes_are_one_message(
    project: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    average(*arguments, code=2)
    assert says in capsys.readouterr().err and not Path("out").exists()


def test_nothing_is_overwritten_and_no_checkpoint_of_a_run_is_made(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("out").mkdir()
    average("runs/tiny", code=2)
    assert "out: is there already" in capsys.readouterr().err
    assert main(["checkpoint", "average", "runs/tiny", "--out", str(step(9))]) == 2
    assert "that is the name of a checkpoint of a run" in capsys.readouterr().err


def test_damage_and_values_that_are_no_numbers(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pieces = step(4) / "pieces-00000-00000.safetensors"
    content = pieces.read_bytes()
    pieces.write_bytes(content[:-9] + b"?" + content[-8:])
    average("runs/tiny", code=1)
    assert "are not what was written" in capsys.readouterr().err
    assert not Path("out").exists() and not Path(".tmp-out").exists()


def test_adapters_are_merged_before(project: Path) -> None:
    from tests.program import train

    more = ["train.lora.rank=4", "optimizer.learning_rate=0.1", "checkpoint.every_steps=2"]
    assert train("run.name=lora", "train.init_from=runs/tiny", "train.max_steps=4", *more) == 0
    members = [open_weights(step(number, Path("runs/lora/checkpoints"))) for number in (2, 4)]
    out = load(average("runs/lora"))
    assert set(out.names("master")) == set(members[0].names())
    changed = set()
    for name in out.names("master"):
        one, other = (each.read(name, full_box(each.shape(name))).double() for each in members)
        found = out.read(name, "master").double()
        torch.testing.assert_close(found, (one + other) / 2, rtol=1e-7, atol=1e-12)
        changed |= set() if torch.equal(one, other) else {name.split(".")[-2]}
    assert {"q_proj", "down_proj"} <= changed and "embedding" not in changed
    assert main(["generate", "out", "--prompt", "the", "--max-new-tokens", "2"]) == 0
    assert train("run.name=next", "train.init_from=out", "train.max_steps=1") == 0


def test_models_in_other_formats(project: Path) -> None:
    """The mean of bf16 weights is no bf16 number: it is kept in fp32."""
    for number in (4, 8):
        assert main(["export", str(step(number)), f"hf-{number}", "--dtype", "bf16", "--no-check"]) == 0
    assert main(["import", "hf-8", "imported"]) == 0
    out = load(average("hf-4", "imported"))
    members = [open_weights(Path(name)) for name in ("hf-4", "imported")]
    for name in out.names("master"):
        one, other = (each.read(name, full_box(each.shape(name))).double() for each in members)
        assert torch.equal(out.read(name, "master").double(), ((one + other) / 2).float().double())
    assert out.config == {} and main(["generate", "out", "--prompt", "the", "--max-new-tokens", "2"]) == 0


def test_a_value_that_is_no_number_is_refused(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = load(step(8))
    name = checkpoint.names("master")[-1]
    manifest = checkpoint.manifest
    pieces = []
    for each in checkpoint.names("master"):
        data = checkpoint.read(each, "master").flatten()
        if each == name:
            data[-1] = torch.inf
        shape = checkpoint.shape(each, "master")
        pieces.append(Piece(each, "master", shape, full_box(shape), (0, len(data)), data))
    extra = {entry.name: checkpoint.extra_file(entry.name) for entry in manifest.files}
    Path("broken").mkdir()
    bad = save(
        Path("broken"), 8, pieces, state=manifest.state, model=manifest.model, config=manifest.config,
        extra_files=extra, keep_last=1,
    )  # fmt: skip
    average("runs/tiny", str(bad), code=2)
    assert f"{bad}: {name} holds values that are no finite numbers" in capsys.readouterr().err
    assert not Path("out").exists()


def test_few_files_are_open_whatever_is_averaged(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    most = 0
    descriptor = files.OpenFiles.descriptor

    def counted(opened: files.OpenFiles, path: Path, size: int) -> int:
        nonlocal most
        found = descriptor(opened, path, size)
        most = max(most, len(opened._descriptors))
        return found

    monkeypatch.setattr(files.OpenFiles, "descriptor", counted)
    average("runs/tiny", "runs/other")
    assert most == 8 * 4 <= files.OPEN_FILES  # one limit for all; of each its pieces, index and tokenizer


@pytest.mark.exhaustive
def test_of_runs_that_trained_under_other_layouts(project: Path) -> None:
    """DDP, ZeRO-2, and ZeRO-3 x TP 2, with what each of the ranks has written itself."""
    settings = ["train.max_steps=2", "model.hidden_dropout=0", "parallel.engine=auto"]
    layouts = {"ddp": (2, 0, 1), "zero2": (2, 2, 1), "zero3": (4, 3, 2)}
    for name, (world, stage, tensor) in layouts.items():
        more = [f"run.name={name}", f"parallel.zero_stage={stage}", f"parallel.tensor_parallel_size={tensor}"]
        processes = start_ranks(project, world, "train", "tiny.yaml", *settings, *more)
        assert [process.wait(HANG) for process in processes] == [0] * world, processes[0].output()
    folders = [step(2, Path(f"runs/{name}/checkpoints")) for name in layouts]
    check(average(*(f"runs/{name}" for name in layouts), "runs/tiny", "--steps", "2"),
          [step(2), *folders], [0.25] * 4)  # fmt: skip
    assert main(["checkpoint", "verify", "out"]) == 0
    found = [lines_of(Path("runs", name), quick=True)[-1].layout for name in layouts]
    assert found == ["2", "2: ZeRO-2", "4: ZeRO-3, TP 2"]
    assert main(["checkpoint", "diff", "runs/ddp", "runs/zero3"]) == 0
