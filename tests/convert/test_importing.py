"""`llmkit import`: a checkpoint of the weights alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmkit.checkpoint.read import verify
from llmkit.cli import main
from llmkit.data.tokens.chat import CHATML
from llmkit.hf.folder import HFFolder
from llmkit.weights import CheckpointWeights, open_weights
from tests.data.tokens.tokenizers_for_tests import bytes_tokenizer
from tests.hf.models import save


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder as from the hub, in bf16, with a template."""
    monkeypatch.chdir(tmp_path)
    save("gpt2", tmp_path / "hub", vocab_size=260).bfloat16().save_pretrained(tmp_path / "hub")
    bytes_tokenizer("<|end|>").save(tmp_path / "hub")
    (tmp_path / "hub/chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    return tmp_path / "hub"


def test_an_import_is_a_checkpoint_with_the_types_and_the_template(hub, capsys):
    assert main(["import", "hub", "imported", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert verify(hub.parent / "imported") == []
    ours, theirs = open_weights(hub.parent / "imported"), HFFolder(hub)
    assert isinstance(ours, CheckpointWeights)
    assert {told["class"], told["experts"]} == {"GPT2LMHeadModel", None} and told["path"] == "imported"
    assert told["tensors"] == len(ours.names()) and told["bytes"] == 2 * told["parameters"]
    assert ours.model == theirs.model and set(ours.names()) == set(theirs.names())
    for name in theirs.names():
        box = tuple((0, size) for size in theirs.shape(name))
        found = ours.read(name, box)
        assert found.dtype == torch.bfloat16 and torch.equal(found, theirs.read(name, box))
    assert ours.tokenizer().hash == theirs.tokenizer().hash
    assert ours.tokenizer().chat_template == "{{ messages[0]['content'] }}"


def test_text_can_be_generated_from_it(hub, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("llmkit.command_line.terminal_width", lambda stream: 40)
        assert main(["import", "hub", "a name with spaces"]) == 0
    commands = capsys.readouterr().out.splitlines()[-2:]  # to be copied, so not wrapped
    assert commands == [
        "try        llmkit generate 'a name with spaces' --prompt 'Once upon a time'",
        "           llmkit train CONFIG 'train.init_from=a name with spaces'",
    ]
    Path("a name with spaces").rename("imported")
    outputs = []
    for path in ("hub", "imported"):
        assert main(["generate", path, "--prompt", "a", "--max-new-tokens", "5", "--precision", "fp32"]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] and len(outputs[0]) > 2


def test_nothing_is_left_of_what_cannot_be_imported(hub, capsys):
    config = json.loads((hub / "config.json").read_text()) | {"add_cross_attention": True}
    (hub / "config.json").write_text(json.dumps(config))
    assert main(["import", "hub", "imported"]) == 2
    assert "add_cross_attention = true" in capsys.readouterr().err
    assert main(["import", "hub", "step-00000007"]) == 2
    assert "that is the name of a checkpoint of a run" in capsys.readouterr().err
    assert main(["import", "nowhere/llama", "imported"]) == 2
    assert "Nothing is downloaded" in capsys.readouterr().err
    assert sorted(path.name for path in hub.parent.iterdir()) == ["hub"]


def test_a_template_of_another_model_is_noted(hub, capsys):
    (hub / "chat_template.jinja").write_text(CHATML)
    assert main(["import", "hub", "imported"]) == 0
    assert "the chat template writes <|im_start|>, <|im_end|>, which is no token" in capsys.readouterr().out
    assert main(["generate", "hub", "--chat", "--prompt", "a", "--max-new-tokens", "1"]) == 0
    assert "was the template made for another model?" in capsys.readouterr().err
    assert main(["import", "imported", "again"]) == 2
    assert "imported: is a checkpoint of llmkit already" in capsys.readouterr().err


def test_weights_that_are_no_numbers_are_one_message(hub, capsys):
    tensors = load_file(hub / "model.safetensors")
    tensors["transformer.h.1.ln_1.bias"][3] = torch.nan
    save_file(tensors, hub / "model.safetensors", {"format": "pt"})
    assert main(["import", "hub", "imported"]) == 2
    assert "blocks.1.attention_norm.bias holds values that are no finite numbers" in capsys.readouterr().err
    assert not (hub.parent / "imported").exists()
    assert main(["export", "hub", "out"]) == 2
    assert "the logits of this model are no finite numbers" in capsys.readouterr().err
