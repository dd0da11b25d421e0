"""`llmkit export`: transformers loads what was trained, and what cannot be expressed is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from llmkit.cli import main
from llmkit.data.tokens.make_tokenizer import bytes_tokenizer
from llmkit.weights import open_weights
from tests.hf.models import CASES, qwen2_tokenizer, save
from tests.program import make_project, train

OLD_RUNS = Path(__file__).parents[1] / "old_runs"
TEXT = "the model reads <a row> of tokens\n\n  and 1234 others; café"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with a finished run of two steps, and one of a model that no class can express."""
    folder = tmp_path_factory.mktemp("export")
    make_project(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert train("train.max_steps=2", "model.hidden_dropout=0.0") == 0
        assert train("train.max_steps=1", "run.name=modern", "model.key_shift=0.5", "model.mlp=relu2") == 0
    return folder


def test_transformers_loads_a_run_with_its_tokenizer(project, monkeypatch, capsys):
    monkeypatch.chdir(project)
    assert main(["export", "runs/tiny", "out", "--max-shard-size", "20KB"]) == 0
    assert "transformers 5" in capsys.readouterr().out
    model = transformers.AutoModelForCausalLM.from_pretrained("out", dtype=torch.float32)
    assert type(model).__name__ == "Qwen3ForCausalLM" and model.config.bos_token_id is None
    weights = open_weights(project / "runs/tiny")
    wanted = weights.read("blocks.1.mlp.up_proj.weight", ((0, 64), (0, 32)))
    assert torch.equal(model.model.layers[1].mlp.up_proj.weight.data, wanted)
    assert (project / "out/model.safetensors.index.json").is_file()
    tokenizer = transformers.AutoTokenizer.from_pretrained("out")
    ids = weights.tokenizer().encode(TEXT).tolist()
    assert tokenizer(TEXT)["input_ids"] == ids and tokenizer.decode(ids) == TEXT
    assert (
        tokenizer.eos_token_id == weights.tokenizer().end_of_text_id == model.generation_config.eos_token_id
    )
    assert tokenizer.model_max_length == 32
    assert not list(project.glob(".tmp-*"))


def test_weights_are_rounded_when_asked(project, monkeypatch, tmp_path):
    monkeypatch.chdir(project)
    assert main(["export", "runs/tiny", str(tmp_path / "out"), "--dtype", "bf16"]) == 0
    tensors = load_file(tmp_path / "out/model.safetensors")
    wanted = open_weights(project / "runs/tiny").read("norm.weight", ((0, 32),))
    assert torch.equal(tensors["model.norm.weight"], wanted.bfloat16())
    assert json.loads((tmp_path / "out/config.json").read_text())["torch_dtype"] == "bfloat16"


def test_tensors_that_a_class_always_has_are_filled_where_a_model_lacks_them(project, monkeypatch):
    monkeypatch.chdir(project)
    plain = ["norm=layernorm", "mlp=gelu", "position_embedding=learned", "qk_norm=false", "norm_weight=false"]
    settings = [f"model.{setting}" for setting in [*plain, "num_key_value_heads=4"]]
    assert train("train.max_steps=1", "run.name=plain", *settings) == 0
    assert main(["export", "runs/plain", "plain"]) == 0
    tensors = load_file("plain/model.safetensors")
    assert torch.equal(tensors["transformer.h.1.attn.c_attn.bias"], torch.zeros(96))
    assert torch.equal(tensors["transformer.h.0.ln_1.weight"], torch.ones(32))


@pytest.mark.parametrize("name", ["2026-11-22-folder/folder", "2026-11-28-built/step-00000004"])
def test_checkpoints_of_older_versions_are_exported(name, tmp_path, monkeypatch, capsys):
    """What they do not say has its default."""
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(OLD_RUNS / name), "out"]) == 0
    assert "gives llmkit's logits" in capsys.readouterr().out
    assert len(load_file("out/model.safetensors")) > 10


def test_what_no_class_can_express_is_named_and_nothing_is_written(project, monkeypatch, capsys):
    monkeypatch.chdir(project)
    assert main(["export", "runs/modern", "none"]) == 2
    message = capsys.readouterr().err
    assert "model.key_shift = 0.5" in message and "model.mlp = relu2" in message
    assert not (project / "none").exists()


def test_what_is_there_is_not_replaced(project, monkeypatch, capsys):
    monkeypatch.chdir(project)
    (project / "there").mkdir()
    assert main(["export", "runs/tiny", "there"]) == 2
    assert "there: is there already" in capsys.readouterr().err


@pytest.mark.parametrize("case", CASES)
def test_import_then_export_gives_the_same_bytes(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(case, tmp_path / "hub", "40KB", vocab_size=259)
    tokenizer = qwen2_tokenizer() if case.startswith("qwen2") else bytes_tokenizer("<|end|>")
    tokenizer.save(tmp_path / "hub")
    assert main(["import", "hub", "imported"]) == 0
    assert main(["export", "imported", "out"]) == 0
    wanted: dict[str, torch.Tensor] = {}
    for file in (tmp_path / "hub").glob("*.safetensors"):
        wanted |= load_file(file)
    found = load_file(tmp_path / "out/model.safetensors")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name].view(torch.uint8), wanted[name].view(torch.uint8)) for name in wanted)
