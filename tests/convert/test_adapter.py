"""Runs that train adapters: what they save, how they go on, and what is made of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from llmkit.checkpoint.read import open as open_checkpoint
from llmkit.cli import main
from llmkit.config.adapters import is_adapter
from llmkit.errors import UserError
from llmkit.hf.folder import HFFolder
from llmkit.inference import evaluate_weights, load_for_use
from llmkit.parallel.mesh import Mesh
from llmkit.weights import open_base, open_weights
from tests.program import events, losses, make_project, rows, train
from tests.ranks import free_ports, run_ranks

LORA = """\
run: {name: lora}
train:
  init_from: base
  lora: {rank: 3, alpha: 6, targets: [q_proj, v_proj, "*.mlp.*"]}
  ema: {decay: 0.6, evaluate: true}
  max_steps: 4
  global_batch_size: 4
  precision: fp32
data:
  sources: [{type: text, path: corpus}]
  sequence_length: 32
optimizer: {name: muon, learning_rate: 0.02, eps: 1.0e-5}
schedule: {name: constant, warmup_steps: 1}
model: {hidden_dropout: 0.0}
kernels: {compile: false}
checkpoint: {every_steps: 2}
monitor: {log_every: 1, wandb: {mode: disabled}}
"""
STARTS = ["start", "resume"]
KINDS = {"master", "ema", "momentum_buffer"}
TOKENS = torch.randint(250, (2, 20), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with a base, run and exported, and a run that has trained adapters of it."""
    folder = tmp_path_factory.mktemp("lora")
    make_project(folder)
    (folder / "lora.yaml").write_text(LORA)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert train("train.max_steps=8", "evaluate.every_steps=0", "model.hidden_dropout=0.0") == 0
        assert main(["export", "runs/tiny", "base", "--no-check"]) == 0
        assert main(["train", "lora.yaml"]) == 0
    return folder


@pytest.fixture(autouse=True)
def in_project(project, monkeypatch):
    monkeypatch.chdir(project)


def state_of(name: str) -> dict[tuple[str, str], torch.Tensor]:
    checkpoint = open_checkpoint(Path("runs") / name)
    return {(k, n): checkpoint.read(n, k) for k in checkpoint.kinds() for n in checkpoint.names(k)}


def test_checkpoints_hold_adapters_with_their_moments_and_name_the_base():
    state, base = state_of("lora"), open_weights(Path("base"))
    assert {kind for kind, _ in state} == KINDS and all(is_adapter(name) for _, name in state)
    assert len(state) == 3 * 2 * (2 + 3) * 2  # kinds, A and B, layers, blocks
    record = open_checkpoint(Path("runs/lora")).state["init_from"]
    assert record == {"path": str(Path("base").absolute()), "digest": base.digest()}


def test_other_layouts_train_alike_and_go_on_exactly(project):
    layouts = {
        "zero3": ["parallel.zero_stage=3"],
        "tensor": ["parallel.tensor_parallel_size=2", "parallel.sequence_parallel=true"],
    }
    cases = [
        {"name": name, "file": "lora.yaml", "hook": None, "seconds": [1.0, 1.0], "overrides": overrides}
        for name, given in layouts.items() for overrides in ([*given, "train.max_steps=2"], given)
    ]  # fmt: skip
    cases[1]["overrides"], cases[3]["overrides"] = cases[3]["overrides"], cases[1]["overrides"]  # crosswise
    outcome = run_ranks(
        2, "tests.loop.rank_cases:runs", joined=False,
        folder=str(project), ports=free_ports(len(cases)), cases=cases,
    )  # fmt: skip
    assert [[found["code"] for found in rank] for rank in outcome] == [[0] * 4] * 2, outcome
    alone = state_of("lora")
    for name in layouts:
        assert losses(name) == pytest.approx(losses("lora"), rel=2e-6)
        for key, tensor in state_of(name).items():
            assert float((tensor - alone[key]).norm() / alone[key].norm()) < 1e-4, (name, key)
        assert [each for each in events(Path("runs") / name) if each in ("start", "resume")] == STARTS


def test_a_run_in_two_parts_is_the_run_in_one():
    for steps in ("train.max_steps=2", "train.max_steps=4"):
        assert main(["train", "lora.yaml", "run.name=parts", steps]) == 0
    one, two = state_of("lora"), state_of("parts")
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_the_merged_weights_are_those_that_were_trained(tmp_path, capsys):
    weights = open_weights(Path("runs/lora"))
    (found,) = (row["eval_loss"] for row in rows(Path("runs/lora")) if "eval_loss" in row)
    assert evaluate_weights(weights, "fp32", None, print).loss == pytest.approx(found, rel=1e-6)
    assert main(["export", "runs/lora", str(tmp_path / "merged")]) == 0
    assert "gives llmkit's logits" in capsys.readouterr().out
    assert "adapters" in (tmp_path / "merged/README.md").read_text()
    merged, base = (load_file(each / "model.safetensors") for each in (tmp_path / "merged", Path("base")))
    for name, tensor in base.items():
        same = not name.endswith(("q_proj.weight", "v_proj.weight")) and ".mlp." not in name
        assert torch.equal(merged[name], tensor) is same, name


def test_the_averaged_adapters_are_merged_exported_and_evaluated_likewise(tmp_path, capsys):
    weights, averaged = (open_weights(Path("runs/lora"), ema=ema) for ema in (False, True))
    (found,) = (row["eval_ema_loss"] for row in rows(Path("runs/lora")) if "eval_loss" in row)
    assert evaluate_weights(averaged, "fp32", None, print).loss == pytest.approx(found, rel=1e-6)
    assert averaged.digest() != weights.digest()
    assert main(["export", "runs/lora", str(tmp_path / "adapter"), "--adapter", "--ema"]) == 0
    assert "peft 0" in capsys.readouterr().out
    stored = load_file(tmp_path / "adapter/adapter_model.safetensors")
    layer = "blocks.0.attention.q_proj"
    (theirs,) = (t for name, t in stored.items() if "layers.0" in name and "q_proj.lora_B" in name)
    state = state_of("lora")
    assert torch.equal(theirs, state["ema", f"{layer}.lora_B"])
    assert not torch.equal(theirs, state["master", f"{layer}.lora_B"])


def test_peft_computes_with_the_exported_adapter_what_the_run_does(tmp_path, capsys):
    out = tmp_path / "adapter"
    assert main(["export", "runs/lora", str(out), "--adapter", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["rank"] == 3 and told["parameters"] > 0 and told["base"].endswith("base")
    assert "peft 0" in told["proof"] and told["unproved"] is None and told["path"] == str(out)
    model, _ = load_for_use(open_weights(Path("runs/lora")), "cpu", "fp32")
    from peft import PeftModel  # which imports much that no other test needs

    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base", dtype=torch.float32), out)
    with torch.no_grad():
        wanted, ours = theirs.eval()(input_ids=TOKENS).logits[:, -1], model.logits(TOKENS)
    assert float((ours - wanted).norm() / wanted.norm()) < 1e-5
    again, tokenizer = load_for_use(open_weights(out), "cpu", "fp32")  # and llmkit with that folder
    assert tokenizer.hash == open_weights(Path("runs/lora")).tokenizer().hash
    assert (out / "tokenizer.json").is_file()
    torch.testing.assert_close(again.logits(TOKENS), ours, rtol=1e-5, atol=1e-6)


def test_a_run_may_start_from_merged_adapters_and_adapt_them_again():
    again = ["run.name=second", "train.init_from=runs/lora", "train.max_steps=1"]
    assert main(["train", "lora.yaml", *again]) == 0
    first, second = (open_weights(Path("runs") / name) for name in ("lora", "second"))
    name = "blocks.1.attention.v_proj.weight"
    region = tuple((0, size) for size in first.shape(name))
    change = second.read(name, region) - first.read(name, region)
    torch.testing.assert_close(change, second.adapters.change(name.removesuffix(".weight"), region))
    assert second.base.digest() == first.digest() and float(change.norm()) > 0.0


def test_of_a_base_that_cannot_be_exported_there_is_no_adapter_either(tmp_path, capsys):
    shifted = ["run.name=shifted", "model.key_shift=0.5", "train.max_steps=1", "evaluate.every_steps=0"]
    assert train(*shifted) == 0
    ours = ["run.name=of-shifted", "train.init_from=runs/shifted", "train.max_steps=1"]
    assert main(["train", "lora.yaml", *ours]) == 0
    capsys.readouterr()
    assert main(["export", "runs/of-shifted", str(tmp_path / "adapter"), "--adapter"]) == 2
    assert "cannot express model.key_shift = 0.5" in capsys.readouterr().err


def test_an_adapter_of_a_run_names_an_export_of_it(tmp_path):
    ours = ["run.name=ours", "train.init_from=runs/tiny", "train.max_steps=1"]
    assert main(["train", "lora.yaml", *ours]) == 0
    out = ["export", "runs/ours", str(tmp_path / "adapter"), "--adapter"]
    assert main(out) == 2
    shutil.copytree("base", tmp_path / "other")
    tensors = load_file("base/model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][5, 7] += 1.0
    save_file(tensors, tmp_path / "other/model.safetensors", {"format": "pt"})
    assert main([*out, "--base", str(tmp_path / "other")]) == 2
    assert main([*out, "--base", "base"]) == 0
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(Path("base").absolute())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--adapter"], "no adapters were trained there"),
        (["--adapter", "--dtype", "bf16"], "--dtype is for a model"),
        (["--base", "base"], "--base is for --adapter"),
    ],
)
def test_what_cannot_be_exported_as_an_adapter(arguments, says, capsys):
    assert main(["export", "runs/tiny", "none", *arguments]) == 2
    assert says in capsys.readouterr().err


def test_a_project_may_be_moved_and_its_runs_go_on(project, tmp_path, monkeypatch):
    shutil.copytree(project, tmp_path / "moved")
    before = open_weights(Path("runs/lora")).digest()
    Path("base").rename("gone")
    try:
        monkeypatch.chdir("/")
        assert open_weights(tmp_path / "moved/runs/lora").digest() == before
        monkeypatch.chdir(tmp_path / "moved")
        assert main(["train", "lora.yaml", "train.init_from=./base/", "train.max_steps=5"]) == 0
        assert open_base(open_checkpoint(Path("runs/lora"))).path == Path("base")
    finally:
        (project / "gone").rename(project / "base")


def test_one_rank_compares_the_bytes_of_the_base_for_all(monkeypatch):
    checkpoint = open_checkpoint(Path("runs/lora"))
    digest, hashed = checkpoint.state["init_from"]["digest"], []

    class Other(Mesh):
        """As the second of two ranks sees it."""

        def all_gather_text(self, text: str) -> list[str]:
            return [text, text]

        def broadcast_text(self, text: str) -> str:
            return digest

    monkeypatch.setattr(HFFolder, "digest", lambda self: hashed.append(self.path) or digest)
    assert open_weights(Path("runs/lora"), Other(rank=1, world_size=2)).path == checkpoint.path
    assert hashed == []
    open_weights(Path("runs/lora"), Other(rank=0, world_size=2))
    assert hashed == [(Path("base").absolute())]
    digest = "another"
    with pytest.raises(UserError, match="holds adapters of other weights"):
        open_base(checkpoint, Other(rank=1, world_size=2))


def test_another_base_and_none_are_refused(tmp_path, capsys):
    checkpoint = open_checkpoint(Path("runs/lora"))
    shutil.move("base", tmp_path / "base")
    try:
        with pytest.raises(UserError, match=r"are not at .*base any more; bring them back"):
            open_base(checkpoint)
        assert main(["train", "lora.yaml", "train.max_steps=5"]) == 2
        assert "base" in capsys.readouterr().err
        shutil.copytree(tmp_path / "base", "base")
        with Path("base/model.safetensors").open("r+b") as file:
            file.seek(-1, 2)
            file.write(b"x")
        with pytest.raises(UserError, match=r"holds adapters of other weights than those in .*base"):
            open_weights(Path("runs/lora"))
        assert main(["train", "lora.yaml", "train.max_steps=5"]) == 2
        assert "other weights than those that the adapters" in capsys.readouterr().err
    finally:
        shutil.rmtree("base", ignore_errors=True)
        shutil.move(tmp_path / "base", "base")
