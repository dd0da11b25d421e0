from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

from llmkit.config import schema
from llmkit.data.tokens.fast_bpe import PATTERNS
from llmkit.data.tokens.make_tokenizer import make_tokenizer
from llmkit.data.tokens.tokenizer import Tokenizer
from llmkit.errors import UserError
from tests.data.tokens.tokenizers_for_tests import train_bpe

END = "<|endoftext|>"
CODE = [
    "class A:\n    def f(self):\n        return [x for x in self.items()]\n" * 3,
    "import os\n\n\nx = 1\n",
] * 3


def never() -> Iterator[str]:
    raise AssertionError("no text is needed")
    yield


def test_training_gives_the_size_asked_for_with_end_of_text_and_all_bytes() -> None:
    tokenizer = make_tokenizer(schema.Tokenizer(vocab_size=280), CODE)
    assert tokenizer.vocab_size == 280
    assert tokenizer.end_of_text_id == 0
    assert len({tokenizer.encode(chr(i)).size for i in range(128)}) == 1


SPLIT = "def f(x):\n    return x's  12345 + naïve\n\n  # ok"


PIECES_OF = {
    None: "def| f|(x|):\n    |return| x|'s| | |123|45| +| naïve|\n\n  |#| ok",
    "gpt2": "def| f|(|x|):|\n   | return| x|'s| | 12345| +| naïve|\n\n | #| ok",
    "llama3": "def| f|(x|):\n|   | return| x|'s| | |123|45| +| naïve|\n\n| | #| ok",
}


@pytest.mark.parametrize(("pattern", "pieces"), PIECES_OF.items())
def test_tokens_stay_inside_the_pieces_of_the_pattern(pattern: str | None, pieces: str) -> None:
    spec = schema.Tokenizer.model_validate({"vocab_size": 290, "pattern": pattern})
    tokenizer = make_tokenizer(spec, [SPLIT] * 20)
    alone = [int(token) for piece in pieces.split("|") for token in tokenizer.encode(piece)]
    assert tokenizer.encode(SPLIT).tolist() == alone
    assert tokenizer.encode(SPLIT).size < len(SPLIT.encode()) / 2  # so that some tokens could cross a border


def test_the_pattern_of_gpt2_is_the_one_that_its_tokenizer_has() -> None:
    from tokenizers import Regex, pre_tokenizers

    ours = pre_tokenizers.Split(Regex(PATTERNS["gpt2"]), behavior="isolated").pre_tokenize_str(SPLIT)
    theirs = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True).pre_tokenize_str(SPLIT)
    assert [place for _, place in ours] == [place for _, place in theirs]


def test_training_is_the_same_every_time() -> None:
    assert len({train_bpe(iter(CODE), 290, END).hash for _ in range(3)}) == 1


def test_a_small_corpus_gives_a_smaller_vocabulary() -> None:
    assert train_bpe(["ab"], 500, END).vocab_size == 258


def test_the_smallest_vocabulary_is_bytes_and_end_of_text() -> None:
    assert train_bpe(CODE, 257, END).encode("abc").size == 3


def test_a_line_end_and_the_next_indentation_can_be_one_token() -> None:
    tokenizer = train_bpe(CODE, 330, END)
    assert tokenizer.encode("):\n        ").size == 1


def test_end_of_text_in_the_training_text_is_not_learned_as_a_token() -> None:
    tokenizer = train_bpe([f"a{END}b " * 50], 300, END)
    assert tokenizer.end_of_text_id not in tokenizer.encode(END)


def test_a_mistake_in_the_text_stops_training_with_its_own_message() -> None:
    def texts() -> Iterator[str]:
        yield "fine"
        raise UserError("bad.txt: byte 3 is no UTF-8")

    with pytest.raises(UserError, match=r"bad.txt: byte 3"):
        train_bpe(texts(), 300, END)


def test_bytes_need_no_text() -> None:
    assert make_tokenizer(schema.Tokenizer(type="bytes"), never()).vocab_size == 257


def test_a_file_is_used_as_it_is(tmp_path: Path) -> None:
    trained = train_bpe(CODE, 280, END)
    trained.save(tmp_path)
    spec = schema.Tokenizer(type="file", path=str(tmp_path / "tokenizer.json"))
    assert make_tokenizer(spec, never()).hash == trained.hash


@pytest.mark.drill(
    "D38",
    injection="a tokenizer whose file or template is not there",
    expected="refused by name, with what to do",
)
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"type": "file"}, "data.tokenizer.path: a tokenizer of type file needs"),
        ({"type": "file", "path": "gone.json"}, "data.tokenizer.path: gone.json cannot be read"),
        ({"chat_template": "gone.jinja"}, "data.tokenizer.chat_template: gone.jinja cannot be read"),
        ({"type": "hub"}, "data.tokenizer.name: a tokenizer of type hub needs a hub id"),
        (
            {"type": "hub", "name": "not//a name"},
            "data.tokenizer.name: cannot get tokenizer.json of 'not//a name'",
        ),
    ],
)
def test_what_is_missing_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_tokenizer(schema.Tokenizer(**fields), never())


def test_without_a_network_the_hub_is_one_clear_message(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    spec = schema.Tokenizer(type="hub", name="someone/something")
    with pytest.raises(UserError, match=r"cannot get tokenizer.json of 'someone/something' .*use type: file"):
        make_tokenizer(spec, never())


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder that stands for the repository someone/something, with a tokenizer.json in it."""
    train_bpe(CODE, 280, END).save(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()

    def download(name: str, file: str, *, revision: str | None) -> str:
        assert (name, revision) == ("someone/something", "v1")
        if not (tmp_path / file).exists():
            answer = SimpleNamespace(headers={}, request=None)
            raise RemoteEntryNotFoundError("404 Not Found", response=cast(Any, answer))
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return tmp_path


HUB = schema.Tokenizer(type="hub", name="someone/something", revision="v1")


def test_a_hub_tokenizer_needs_no_more_than_its_tokenizer_file(hub: Path) -> None:
    tokenizer = make_tokenizer(HUB, never())
    assert tokenizer.hash == train_bpe(CODE, 280, END).hash
    assert (tokenizer.chat_template, tokenizer.named_tokens) == (None, {"eos_token": END})
    (hub / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"cannot get tokenizer.json of 'someone/something'"):
        make_tokenizer(HUB, never())


@pytest.mark.parametrize(
    ("config", "template"),
    [
        ({"chat_template": "one"}, "one"),
        (
            {
                "chat_template": [
                    {"name": "tool_use", "template": "x"},
                    {"name": "default", "template": "two"},
                ]
            },
            "two",
        ),
        ({"chat_template": [{"name": "tool_use", "template": "x"}]}, None),
        ([], None),
    ],
)
def test_the_chat_template_comes_from_the_hub(hub: Path, config: Any, template: str | None) -> None:
    (hub / "tokenizer_config.json").write_text(json.dumps(config))
    assert make_tokenizer(HUB, never()).chat_template == template
    (hub / "chat_template.jinja").write_text("file")
    assert make_tokenizer(HUB, never()).chat_template == "file"


def test_a_given_template_comes_before_the_hubs(hub: Path) -> None:
    (hub / "tokenizer_config.json").write_text('{"chat_template": "theirs"}')
    (hub / "mine.jinja").write_text("mine")
    spec = HUB.model_copy(update={"chat_template": str(hub / "mine.jinja")})
    assert make_tokenizer(spec, never()).chat_template == "mine"


def test_the_names_of_tokens_come_from_the_hub(hub: Path) -> None:
    config = {"bos_token": "<s>", "pad_token": {"content": "<pad>"}, "eos_token": "</s>", "unk_token": None}
    (hub / "tokenizer_config.json").write_text(json.dumps(config))
    named = {"bos_token": "<s>", "pad_token": "<pad>"}
    # Of the end only what the vocabulary has: it would be no token.
    assert make_tokenizer(HUB, never()).named_tokens == named | {"eos_token": END}
    (hub / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": "a"}))
    made = make_tokenizer(HUB, never())
    assert (made.end_of_text, made.named_tokens) == (END, named | {"eos_token": "a"})
    made.save(hub / "saved")
    loaded = Tokenizer.load(hub / "saved")
    assert (loaded.end_of_text, loaded.named_tokens) == (END, made.named_tokens)


@pytest.mark.drill(
    "D38",
    injection="a tokenizer without the token that ends a text",
    expected="refused; the one that it has is named",
)
def test_where_the_end_of_text_is_missing_the_tokenizers_own_is_named(hub: Path) -> None:
    (hub / "tokenizer_config.json").write_text(json.dumps({"eos_token": END}))
    with pytest.raises(
        UserError, match=r"has no token '<eos>'; its own end is '<\|endoftext\|>', and its added"
    ):
        make_tokenizer(local(hub).model_copy(update={"end_of_text": "<eos>"}), never())


def test_a_broken_file_of_the_hub_is_named(hub: Path) -> None:
    (hub / "tokenizer_config.json").write_text("{")
    for spec, setting in ((HUB, "name"), (local(hub), "path")):
        with pytest.raises(
            UserError, match=rf"data.tokenizer.{setting}: tokenizer_config.json .*is not valid JSON"
        ):
            make_tokenizer(spec, never())


def local(folder: Path) -> schema.Tokenizer:
    return schema.Tokenizer(type="file", path=str(folder / "tokenizer.json"))


@pytest.mark.parametrize(
    "config",
    [
        {"additional_special_tokens": ["<|im_end|>"]},
        {"extra_special_tokens": {"end_of_turn": {"content": "<|im_end|>"}}},
        {"pad_token": "<|im_end|>"},
    ],
)
def test_tokens_that_the_settings_call_special_cannot_be_spelled_by_text(
    hub: Path, config: dict[str, Any]
) -> None:
    content = json.loads((hub / "tokenizer.json").read_text())
    token = content["added_tokens"][0] | {"id": 280, "content": "<|im_end|>", "special": False}
    content["added_tokens"].append(token)
    (hub / "tokenizer.json").write_text(json.dumps(content))
    for spec in (HUB, local(hub)):
        (hub / "tokenizer_config.json").write_text("{}")
        assert 280 in make_tokenizer(spec, never()).encode("a<|im_end|>")
        (hub / "tokenizer_config.json").write_text(json.dumps(config))
        made = make_tokenizer(spec, never())
        assert 280 not in made.encode("a<|im_end|>")
        assert made.control_tokens["<|im_end|>"] == 280


BOS = {"bos_token": {"content": "<s>"}}


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"tokenizer_config.json": {**BOS, "pad_token": "<pad>", "chat_template": "{{ bos_token }}a"}},
        {"tokenizer_config.json": {"bos_token": "<x>"}, "special_tokens_map.json": BOS},
        {"tokenizer_config.json": {"added_tokens_decoder": {}}, "special_tokens_map.json": BOS},
        {"tokenizer_config.json": {"chat_template": "a"}, "chat_template.jinja": "b"},
        {"tokenizer_config.json": {"chat_template": "a"}, "chat_template.json": {"chat_template": "b"}},
        {"tokenizer_config.json": {}, "chat_template.json": {"chat_template": "b"}},
        {"chat_template.jinja": "c"},
    ],
)
def test_a_local_copy_of_a_hub_tokenizer_is_the_same_tokenizer(hub: Path, files: dict[str, Any]) -> None:
    for name, content in files.items():
        (hub / name).write_text(content if isinstance(content, str) else json.dumps(content))
    there, here = make_tokenizer(HUB, never()), make_tokenizer(local(hub), never())
    assert (here.hash, here.named_tokens, here.chat_template) == (
        there.hash,
        there.named_tokens,
        there.chat_template,
    )
    expected = {"{{ bos_token }}a", "a", "b", "c"} & {here.chat_template}
    assert bool(expected) == any("template" in f"{name}{content}" for name, content in files.items())
    if "<s>" in f"{files}" and "added_tokens_decoder" not in f"{files}":
        assert here.named_tokens["bos_token"] == "<s>"


def test_a_fault_of_the_network_is_not_taken_for_a_missing_file(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = huggingface_hub.hf_hub_download

    def download(name: str, file: str, **how: Any) -> str:
        if file != "tokenizer.json":
            raise LocalEntryNotFoundError("the connection broke")
        return whole(name, file, **how)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(UserError, match=r"cannot get tokenizer_config.json .*the connection broke"):
        make_tokenizer(HUB, never())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert make_tokenizer(HUB, never()).chat_template is None


def test_a_broken_template_is_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "chat.jinja").write_text("\n\n{{ }")
    spec = schema.Tokenizer(type="bytes", chat_template=str(tmp_path / "chat.jinja"))
    with pytest.raises(UserError, match=r"chat.jinja: line 3 is no valid Jinja"):
        make_tokenizer(spec, never())


def test_the_settings_reach_the_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "chat.jinja").write_text("template")
    spec = schema.Tokenizer(
        vocab_size=280, control_tokens_in_text=True, chat_template=str(tmp_path / "chat.jinja")
    )
    tokenizer = make_tokenizer(spec, CODE)
    assert (tokenizer.chat_template, tokenizer.control_tokens_in_text) == ("template", True)
    assert tokenizer.encode(f"a{END}")[-1] == tokenizer.end_of_text_id


def test_texts_are_taken_from_any_iterable() -> None:
    assert train_bpe(itertools.chain(CODE, CODE), 280, END).vocab_size == 280
