"""`llmkit export`: transformers loads what was trained, and what cannot be expressed is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from llmkit.cli import main
from llmkit.prompts import text_prompt
from llmkit.weights import open_weights
from tests.data.tokens.tokenizers_for_tests import bytes_tokenizer
from tests.hf.models import CASES, qwen2_tokenizer, save
from tests.program import make_project, train

LLAMA = """\
run: {name: tuned}
train: {global_batch_size: 4, precision: fp32}
data:
  sources: [{type: text, path: corpus}]
  sequence_length: 32
kernels: {compile: false}
monitor: {sample: null, wandb: {mode: disabled}}
"""
OLD_RUNS = Path(__file__).parents[1] / "old_runs"
TEXT = "the model reads <a row> of tokens\n\n  and 1234 others; café"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with a finished run of two steps, and one of a model that no class can express."""
    folder = tmp_path_factory.mktemp("export")
    make_project(folder)
    (folder / "llama.yaml").write_text(LLAMA)
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
    assert "AutoTokenizer puts nothing there" in (project / "out/README.md").read_text()
    assert not list(project.glob(".tmp-*"))


def test_weights_are_rounded_when_asked(project, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(project)
    assert main(["export", "runs/tiny", str(tmp_path / "out"), "--dtype", "bf16", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["dtype"] == "bfloat16" and told["bytes"] == 2 * told["parameters"]
    assert told["weight_files"] == 1 and "gives llmkit's logits" in told["proof"] and told["unproved"] is None
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


def published(folder: Path, ends: object) -> None:
    """A Llama whose tokenizer puts <s> before a text and </s> behind it; ends: of its answers."""
    save("llama", folder, vocab_size=264)
    spec = json.loads(bytes_tokenizer("<|end|>").files()["tokenizer.json"])
    for number, text in enumerate(("<s>", "</s>", "<|turn|>"), 257):
        spec["added_tokens"].append(spec["added_tokens"][0] | {"id": number, "content": text})
    special = [{"SpecialToken": {"id": name, "type_id": 0}} for name in ("<s>", "</s>")]
    numbers = {"<s>": 257, "</s>": 258}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    spec["post_processor"] = {
        "type": "TemplateProcessing", "single": [special[0], text, special[1]], "pair": [],
        "special_tokens": {name: {"id": name, "ids": [numbers[name]], "tokens": [name]} for name in numbers},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "<|end|>"}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))


def written(folder: str) -> tuple[list[int], object, str]:
    """The ids that AutoTokenizer gives for "a", what ends an answer, and the card."""
    generation = json.loads(Path(folder, "generation_config.json").read_text())
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    return theirs("a")["input_ids"], generation["eos_token_id"], Path(folder, "README.md").read_text()


def test_the_tokenizer_of_an_export_begins_texts_as_the_model_knows_them(project, tmp_path, monkeypatch):
    """As published where nothing was trained; else as documents began in training."""
    monkeypatch.chdir(tmp_path)
    published(tmp_path / "hub", [259, 256, 9999])
    assert main(["import", "hub", "imported"]) == 0
    assert main(["export", "imported", "again"]) == 0
    ids, ends, card = written("again")
    assert ids == [257, 97, 258] and ends == [256, 259] and "| a text |" not in card
    again = open_weights(tmp_path / "again").tokenizer()
    assert text_prompt(again, "a").ids == [257, 97] and again.ends == {256, 259}

    monkeypatch.chdir(project)
    start = [f"train.init_from={tmp_path}/imported", "data.tokenizer.type=init_from", "train.max_steps=1"]
    assert main(["train", "llama.yaml", *start]) == 0
    assert main(["export", "runs/tuned", str(tmp_path / "tuned")]) == 0
    ids, ends, card = written(str(tmp_path / "tuned"))
    prompt = text_prompt(open_weights(project / "runs/tuned").tokenizer(), "a")
    assert ids == prompt.ids == [256, 97] and ends == [256, 259] and prompt.stops == {256, 259}
    assert "| a text | began with `<\\|end\\|>` (id 256) in training; AutoTokenizer puts it there |" in card


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
