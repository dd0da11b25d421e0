"""Which token of a tokenizer in Hugging Face's format ends a text."""

from __future__ import annotations

import json

import pytest
from transformers import PreTrainedTokenizerFast

from llmkit.data.tokens.chat import CHATML
from llmkit.data.tokens.tokenizer import Tokenizer
from llmkit.errors import UserError
from llmkit.hf.tokenizer_files import end_ids, end_of_text, note_on_template, read_tokenizer
from llmkit.prompts import messages_prompt, text_prompt
from tests.data.tokens.tokenizers_for_tests import bytes_tokenizer


@pytest.fixture
def folder(tmp_path):
    bytes_tokenizer("<|end|>").save(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    return tmp_path


@pytest.mark.parametrize("named", ["<s>", {"content": "<s>", "lstrip": False}])
@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
def test_the_files_name_it(folder, file, named):
    (folder / file).write_text(json.dumps({"eos_token": named}))
    assert end_of_text(folder, {"eos_token_id": 256}) == "<s>"


@pytest.mark.parametrize("number", [256, [256, 3]])
def test_else_the_id_in_config_json_does(folder, number):
    assert end_of_text(folder, {"eos_token_id": number}) == "<|end|>"


@pytest.mark.parametrize("number", [None, 999, []])
def test_else_it_is_one_message(folder, number):
    with pytest.raises(UserError, match="names the token that ends a text"):
        end_of_text(folder, {"eos_token_id": number})


def test_a_tokenizer_that_cannot_be_used_is_one_message_without_settings(folder):
    read = lambda: read_tokenizer(folder, {"eos_token_id": 256}, 300)  # noqa: E731
    assert read().vocab_size == 257
    (folder / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(
        UserError, match=r"its tokenizer cannot be used: its chat template: line 1 is no valid"
    ):
        read()
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    with pytest.raises(UserError, match=r"^[^:]*: its tokenizer cannot be used: [^:]*has no token '</s>'"):
        read()
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")
    with pytest.raises(UserError, match=r"there is no tokenizer.json in it, only tokenizer.model"):
        read()


def test_all_that_ends_an_answer_is_known(folder):
    """By generation_config.json, as in transformers, else by config.json."""
    spec = json.loads((folder / "tokenizer.json").read_text())
    spec["added_tokens"].append(spec["added_tokens"][0] | {"id": 257, "content": "<|turn|>"})
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    config = {"eos_token_id": [256, 10]}
    assert end_ids(folder, config) == {256, 10} and end_ids(folder, {}) == set()
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.6}))
    assert end_ids(folder, config) == {256, 10}
    for given, wanted in ((257, {257}), ([257, 999], {257, 999}), ([], set())):
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": given}))
        assert end_ids(folder, config) == wanted
    tokenizer = read_tokenizer(folder, config, 300, [257, 999])
    assert tokenizer.ends == {256, 257} == text_prompt(tokenizer, "a").stops
    kept = Tokenizer.from_config(
        tokenizer.files()["tokenizer.json"].decode(), json.loads(tokenizer.files()["tokenizer_config.json"])
    )
    assert kept.ends == {256, 257} and kept.hash == tokenizer.hash
    for wrong in ("<|end|>", True, [256, "x"], {"a": 1}):
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": wrong}))
        with pytest.raises(UserError, match=r"generation_config.json: eos_token_id = .* is no id of a token"):
            end_ids(folder, config)


def with_first(folder, token, number):
    """The tokenizer.json of a folder puts this token before each text, as Llama's does."""
    step = {
        "type": "TemplateProcessing", "pair": [],
        "single": [{"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {token: {"id": token, "ids": [number], "tokens": [token]}},
    }  # fmt: skip
    spec = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(spec | {"post_processor": step}))


def test_prompts_begin_as_those_of_transformers(folder):
    """By the token that stood before texts where others have trained the model."""
    assert text_prompt(read_tokenizer(folder, {"eos_token_id": 256}, 300), "a").ids == [256, 97]
    with_first(folder, "b", 98)
    tokenizer = read_tokenizer(folder, {"eos_token_id": 256}, 300)
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    assert text_prompt(tokenizer, "a").ids == theirs("a")["input_ids"] == [98, 97]
    with_first(folder, "c", 300)
    with pytest.raises(UserError, match="post_processor adds the id 300, which is no token of it"):
        read_tokenizer(folder, {"eos_token_id": 256}, 400)


def test_chats_with_a_published_model_are_what_its_template_makes_of_them(folder):
    """Qwen's tokenizer puts nothing before a text; only a model that llmkit has trained knows more."""
    settings = {"eos_token": "<|end|>", "chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    theirs = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer, chat = read_tokenizer(folder, {}, 300), [{"role": "user", "content": "ab"}]
    assert messages_prompt(tokenizer, chat).ids == theirs.apply_chat_template(chat)["input_ids"] == [97, 98]
    assert messages_prompt(tokenizer, [chat[0] | {"content": ""}]).ids == [256], "there must be one id"
    with_first(folder, "b", 98)
    assert messages_prompt(read_tokenizer(folder, {}, 300), chat).ids == [98, 97, 98]
    tokenizer.open_as_documents()
    assert messages_prompt(tokenizer, chat).ids == [256, 97, 98]
    for name, content in tokenizer.files_for_others().items():
        (folder / name).write_bytes(content)
    exported = read_tokenizer(folder, {}, 300)
    assert messages_prompt(exported, chat).ids == [256, 97, 98]
    files = {name: json.loads(content) for name, content in exported.files().items()}
    again = Tokenizer.from_config(json.dumps(files["tokenizer.json"]), files["tokenizer_config.json"])
    assert messages_prompt(again.open_as_published(), chat).ids == [256, 97, 98], "in a checkpoint, too"


def test_control_tokens_of_another_models_template_are_found():
    spec = bytes_tokenizer("<|end|>").files()["tokenizer.json"].decode()
    tokenizer = Tokenizer(spec, "<|end|>", chat_template=CHATML + "{{ '<|end|>' }}")
    assert note_on_template(tokenizer) is None, "a model that we have trained knows them as text"
    note = note_on_template(tokenizer.open_as_published())
    assert note is not None and "writes <|im_start|>, <|im_end|>, which is no token of this" in note
