"""Runs that adapt a base in 8 or 4 bits: what they hold and save, how they go on, what is made of them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from llmkit.checkpoint.read import open as open_checkpoint
from llmkit.cli import main
from llmkit.config.adapters import is_adapter
from llmkit.engine import quantised
from llmkit.inference import evaluate_weights, load_for_use
from llmkit.kernels.operators import Operators
from llmkit.kernels.quantised import rounded
from llmkit.model.gpt import GPT
from llmkit.model.initial import InitialWeights
from llmkit.parallel.mesh import Mesh
from llmkit.weights import open_weights
from tests.program import events, losses, make_project, rows, train
from tests.ranks import free_ports, run_ranks
from tests.shapes import LLAMA_STYLE

FORM = "nf4" if importlib.util.find_spec("bitsandbytes") else "int8"
SIZES = ["model.hidden_size=64", "model.head_dim=32", "model.intermediate_size=128"]
LORA = f"""\
run: {{name: lora}}
train:
  init_from: base
  lora: {{rank: 3, alpha: 6, targets: [q_proj, v_proj, "*.mlp.*"], quantize_base: {FORM}}}
  max_steps: 4
  global_batch_size: 4
  precision: fp32
data:
  sources: [{{type: text, path: corpus}}]
  sequence_length: 32
optimizer: {{learning_rate: 0.02, eps: 1.0e-5}}
schedule: {{name: constant, warmup_steps: 1}}
model: {{hidden_dropout: 0.0}}
kernels: {{compile: false}}
checkpoint: {{every_steps: 2}}
monitor: {{log_every: 1, wandb: {{mode: disabled}}}}
"""
TOKENS = torch.randint(250, (2, 20), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("elements", [100, 2**24])
def test_each_layer_gets_the_rounded_rows_of_its_tensors(elements, monkeypatch):
    monkeypatch.setattr(quantised, "ELEMENTS", elements)
    model = GPT(LLAMA_STYLE, Operators.of({"linear": "int8"}), seed=None)
    source = InitialWeights(model, 3)
    quantised.write_quantised(model, source, Mesh())
    seen = 0
    for weight, parts in model.quantised_weights().values():
        for part in parts:
            seen += 1
            wanted = rounded(source.read(part.name, "master"), "int8")
            assert torch.equal(weight.values(torch.float32)[part.start : part.stop], wanted)
    assert seen == 7 * LLAMA_STYLE.num_hidden_layers
    assert not [name for name, _ in model.named_parameters() if "_proj" in name or "qkv" in name]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with a base, run and exported, and a run that has trained adapters of it in few bits."""
    folder = tmp_path_factory.mktemp("quantised")
    make_project(folder)
    (folder / "lora.yaml").write_text(LORA)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        base = ["train.max_steps=8", "evaluate.every_steps=0", "model.hidden_dropout=0.0", *SIZES]
        assert train(*base) == 0
        assert main(["export", "runs/tiny", "base", "--no-check"]) == 0
        assert main(["train", "lora.yaml"]) == 0
    return folder


@pytest.fixture(autouse=True)
def in_project(project, monkeypatch):
    monkeypatch.chdir(project)


def state_of(name: str) -> dict[tuple[str, str], torch.Tensor]:
    checkpoint = open_checkpoint(Path("runs") / name)
    return {(k, n): checkpoint.read(n, k) for k in checkpoint.kinds() for n in checkpoint.names(k)}


def test_layouts_train_alike_and_go_on_in_each_other_exactly(project):
    layouts = {
        "zero3": ["parallel.zero_stage=3"],
        "tensor": ["parallel.tensor_parallel_size=2", "parallel.sequence_parallel=true"],
        "zero1": ["parallel.zero_stage=1"],
    }
    one = ["train.max_steps=2"]
    given = {
        "zero3": (layouts["zero3"] + one, layouts["tensor"]),
        "tensor": (layouts["tensor"] + one, layouts["zero1"]),
    }
    cases = [
        {"name": name, "file": "lora.yaml", "hook": None, "seconds": [1.0, 1.0], "overrides": overrides}
        for name, both in given.items() for overrides in both
    ]  # fmt: skip
    outcome = run_ranks(
        2, "tests.loop.rank_cases:runs", joined=False,
        folder=str(project), ports=free_ports(len(cases)), cases=cases,
    )  # fmt: skip
    assert [[found["code"] for found in rank] for rank in outcome] == [[0] * 4] * 2, outcome
    alone = state_of("lora")
    assert all(is_adapter(name) for _, name in alone)
    for name in given:
        assert losses(name) == pytest.approx(losses("lora"), rel=2e-6)
        for key, tensor in state_of(name).items():
            assert float((tensor - alone[key]).norm() / alone[key].norm()) < 1e-4, (name, key)
        assert [e for e in events(Path("runs") / name) if e in ("start", "resume")] == ["start", "resume"]


def test_a_run_in_two_parts_is_the_run_in_one():
    for steps in ("train.max_steps=2", "train.max_steps=4"):
        assert main(["train", "lora.yaml", "run.name=parts", steps]) == 0
    one, two = state_of("lora"), state_of("parts")
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_the_first_loss_is_that_of_the_base_but_for_the_rounding():
    assert main(["train", "lora.yaml", "run.name=exact", "train.lora.quantize_base=none"]) == 0
    exact, found = losses("exact")[0], losses("lora")[0]
    assert found != exact and found == pytest.approx(exact, rel=0.02)


def test_the_weights_of_the_run_are_those_that_were_trained(tmp_path, capsys):
    weights = open_weights(Path("runs/lora"))
    (found,) = (row["eval_loss"] for row in rows(Path("runs/lora")) if "eval_loss" in row)
    assert evaluate_weights(weights, "fp32", None, print).loss == pytest.approx(found, rel=1e-6)
    name, region = "blocks.1.mlp.down_proj.weight", ((3, 9), (70, 101))  # begins and ends within blocks
    whole = weights.read(name, tuple((0, size) for size in weights.shape(name)))
    assert torch.equal(weights.read(name, region), whole[3:9, 70:101])
    assert main(["export", "runs/lora", str(tmp_path / "merged")]) == 0
    assert "gives llmkit's logits" in capsys.readouterr().out
    assert f"rounded to {FORM}" in (tmp_path / "merged/README.md").read_text()
    merged, base = (load_file(each / "model.safetensors") for each in (tmp_path / "merged", Path("base")))
    name = "model.layers.0.self_attn.o_proj.weight"  # has no adapter
    torch.testing.assert_close(merged[name], rounded(base[name], FORM), rtol=0.0, atol=1e-7)
    assert torch.equal(merged["model.embed_tokens.weight"], base["model.embed_tokens.weight"])


def test_peft_on_a_base_in_4_bits_computes_what_was_trained(tmp_path, capsys):
    if FORM != "nf4":
        pytest.skip("bitsandbytes is not installed")
    assert main(["export", "runs/lora", str(tmp_path / "adapter"), "--adapter"]) == 0
    shown = capsys.readouterr().out
    assert "peft 0" in shown and "its base in nf4" in shown
    ours, _ = load_for_use(open_weights(Path("runs/lora")), "cpu", "fp32")
    fp32 = torch.float32
    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=fp32)
    base = AutoModelForCausalLM.from_pretrained("base", dtype=fp32, quantization_config=four)
    base = base.dequantize()  # its own product is less exact
    theirs = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        wanted, found = theirs(input_ids=TOKENS).logits[:, -1], ours.logits(TOKENS)
    assert float((found - wanted).norm() / wanted.norm()) < 1e-5
