"""A run that goes on keeps the tokenizer of its checkpoint, or is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from llmkit.checkpoint.read import open as open_checkpoint
from llmkit.cli import main
from llmkit.config.schema import Config
from llmkit.data.tokens import make_tokenizer
from llmkit.data.tokens.chat import CHATML
from llmkit.loop.run_tokenizer import tokenizer_of_weights
from llmkit.prompts import text_prompt
from llmkit.weights import open_weights
from tests.data.tokens.tokenizers_for_tests import bytes_tokenizer
from tests.hf.models import save
from tests.program import make_project, train

BPE = "data.tokenizer={type: bpe, vocab_size: 270}"
ONE, TWO = (
    f"data.sources=[{', '.join(f'{{type: text, name: {name}, path: {name}}}' for name in names)}]"
    for names in (["corpus"], ["corpus", "more"])
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A project with a run of two steps with a trained tokenizer."""
    folder = tmp_path_factory.mktemp("tokenizer")
    make_project(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert train("train.max_steps=2", BPE, ONE) == 0
    return folder


@pytest.fixture
def project(trained, tmp_path, monkeypatch):
    """A copy of it as working directory, with a second source of other text."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    Path("more").mkdir()
    for number in range(40):
        Path(f"more/{number}.txt").write_text("zwolf boxkampfer jagen viktor quer uber den deich. " * 8)
    return tmp_path


def stored() -> str:
    return open_checkpoint(Path("runs/tiny")).tokenizer_json()


def test_other_sources_train_no_other_tokenizer(project):
    before = stored()
    assert train("train.max_steps=3", BPE, TWO, "--allow-data-change") == 0
    assert (open_checkpoint(Path("runs/tiny")).step, stored()) == (3, before)


@pytest.mark.drill(
    "D38",
    injection="another vocabulary size, end of text or kind of tokenizer on resume",
    expected="refused by the name of the setting, also with --allow-data-change",
)
@pytest.mark.parametrize("flags", [[], ["--allow-data-change"]])
@pytest.mark.parametrize(
    ("tokenizer", "says"),
    [
        ("{type: bpe, vocab_size: 280}", "data.tokenizer.vocab_size: 270 -> 280 (command line)"),
        ("{type: bpe, vocab_size: 270, end_of_text: <end>}", "data.tokenizer.end_of_text: "),
        ("{type: bytes}", 'data.tokenizer.type: "bpe" -> "bytes" (command line)'),
    ],
)
def test_another_tokenizer_is_refused_by_name(project, tokenizer, says, flags, capsys):
    assert train("train.max_steps=3", f"data.tokenizer={tokenizer}", ONE, *flags) == 2
    message = capsys.readouterr().err
    assert "trained with another tokenizer" in message and says in message


@pytest.mark.drill(
    "D38",
    injection="the tokenizer's file has lost a merge since the save",
    expected="refused on resume, also with --allow-data-change",
)
def test_a_file_of_the_same_content_is_the_same_tokenizer_and_a_changed_one_is_refused(project, capsys):
    Path("mine.json").write_text(stored())
    mine = "data.tokenizer={type: file, path: mine.json}"
    assert train("train.max_steps=3", mine, ONE) == 0
    content = json.loads(Path("mine.json").read_text())
    content["model"]["merges"].pop()
    Path("mine.json").write_text(json.dumps(content))
    assert train("train.max_steps=4", mine, ONE, "--allow-data-change") == 2
    assert "data.tokenizer.path: that file has another content now" in capsys.readouterr().err
    assert open_checkpoint(Path("runs/tiny")).step == 3


def test_a_hub_tokenizer_is_not_asked_for_again(project, monkeypatch):
    """So a revision that moved, or a hub that cannot be reached, changes nothing."""
    content, fetched = stored(), []

    def fetch(spec, file):
        fetched.append(file)
        return content if file == "tokenizer.json" else None

    monkeypatch.setattr(make_tokenizer, "_fetch", fetch)
    hub = "data.tokenizer={type: hub, name: someone/something}"
    assert train("train.max_steps=3", hub, ONE) == 0
    assert fetched
    fetched.clear()
    content = "moved"
    shutil.rmtree("data-cache")
    assert train("train.max_steps=4", hub, ONE) == 0
    assert not fetched


def test_data_are_built_for_the_run_of_that_name(project, capsys):
    assert main(["data", "build", "tiny.yaml", BPE, TWO]) == 0
    printed = capsys.readouterr().out
    assert "with the tokenizer of runs/tiny/checkpoints/step-00000002" in printed
    assert "trained a tokenizer" not in printed
    built = set(Path("data-cache").iterdir())
    assert train("train.max_steps=3", BPE, TWO, "--allow-data-change") == 0
    assert set(Path("data-cache").iterdir()) == built
    assert main(["data", "build", "tiny.yaml", "data.tokenizer.type=bytes", ONE]) == 0
    assert "data: this is not for the run in runs/tiny: " in capsys.readouterr().out


def test_a_run_that_starts_from_published_weights_begins_prompts_as_its_documents(tmp_path):
    save("llama", tmp_path, vocab_size=257)
    bytes_tokenizer("<|end|>").save(tmp_path)
    step = {
        "type": "TemplateProcessing", "pair": [],
        "single": [{"SpecialToken": {"id": "b", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {"b": {"id": "b", "ids": [98], "tokens": ["b"]}},
    }  # fmt: skip
    spec = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec | {"post_processor": step}))
    weights = open_weights(tmp_path)
    assert text_prompt(weights.tokenizer(), "a").ids == [98, 97]
    data = {"sources": [{"type": "stdlib"}], "tokenizer": {"type": "init_from"}}
    config = Config.model_validate({"data": data})
    said: list[str] = []
    tokenizer = tokenizer_of_weights(weights, config, said.append)
    assert tokenizer is not None and text_prompt(tokenizer, "a").ids == [256, 97] and not said
    (tmp_path / "chat_template.jinja").write_text(CHATML)
    tokenizer_of_weights(open_weights(tmp_path), config, said.append)
    assert len(said) == 1 and "was the template made for another model?" in said[0]


def test_evaluation_trains_no_tokenizer_either(project, capsys):
    for path in sorted(Path("corpus").iterdir())[1:]:
        path.write_text(path.read_text() * 2)
    assert main(["evaluate", "runs/tiny"]) == 2
    message = capsys.readouterr().err
    assert "has other held-out text" in message
    assert "trained a tokenizer" not in message
