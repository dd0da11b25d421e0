"""The model card of an export."""

from __future__ import annotations

import pytest

from llmkit.cli import main
from llmkit.config.load import load
from tests.data.tokens.tokenizers_for_tests import bytes_tokenizer
from tests.hf.models import save
from tests.program import make_project, train


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("card")
    make_project(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert train("train.max_steps=2", "data.sources.0.path=corpus") == 0
        assert main(["export", "runs/tiny", "out"]) == 0
    return folder


def test_the_card_says_what_it_was_trained_on_and_what_was_proved(exported):
    card = (exported / "out/README.md").read_text()
    for said in (
        "# tiny", "| class | Qwen3ForCausalLM, 2 x width 32 |", "| trained | 2 steps, 256 tokens",
        "| data | text corpus (weight 1) |", "| batch | 4 rows of 32 tokens a step |",
        "nats a token, at step 2",
        "| layout | 1 process, on the CPU", "| proof | transformers 5", "llmkit train llmkit.yaml",
    ):  # fmt: skip
        assert said in card, said
    assert card.startswith("---\nlibrary_name: transformers\n")


def test_the_settings_beside_it_are_those_of_the_run(exported, monkeypatch):
    monkeypatch.chdir(exported)
    again, first = load("out/llmkit.yaml").config, load("runs/tiny/config.yaml").config
    assert again.model == first.model and again.optimizer == first.optimizer and again.train == first.train


def test_the_card_of_an_import_says_where_it_is_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save("llama", tmp_path / "Tiny-Llama", vocab_size=257)
    bytes_tokenizer("<|end|>").save(tmp_path / "Tiny-Llama")
    assert main(["import", "Tiny-Llama", "imported"]) == 0
    assert main(["export", "imported", "out", "--no-check", "--dtype", "fp16"]) == 0
    card = (tmp_path / "out/README.md").read_text()
    assert "| imported from | Tiny-Llama, a LlamaForCausalLM |" in card
    assert "| proof | logits were not compared with transformers |" in card
    assert "llmkit.yaml" not in card and "in float16" in card
