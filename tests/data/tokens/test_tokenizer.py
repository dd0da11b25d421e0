from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Encoder

from llmkit.data.tokens.tokenizer import Tokenizer
from llmkit.errors import UserError
from tests.data.tokens.tokenizers_for_tests import bytes_tokenizer, train_bpe

END = "<|endoftext|>"
CORPUS = [
    "def f(x):\n        return x + 1\n",
    "the quick brown fox\n\n",
    "na\u00efve \u65e5\u672c \U0001f600",
] * 5

BPE = train_bpe(iter(CORPUS), 300, END)
BYTES = bytes_tokenizer(END)
BOTH = pytest.mark.parametrize("tokenizer", [BPE, BYTES], ids=["bpe", "bytes"])


def metaspace_tokenizer() -> Tokenizer:
    """A tokenizer in the manner of SentencePiece: spaces as symbols, single bytes as a last resort."""
    encoder = Encoder(models.BPE(byte_fallback=True, unk_token="<unk>"))
    encoder.pre_tokenizer = pre_tokenizers.Metaspace()
    encoder.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=290, special_tokens=[END, "<unk>", *fallback], show_progress=False
    )
    encoder.train_from_iterator(["hello world"] * 3, trainer)
    content = json.loads(encoder.to_str())
    content["added_tokens"] = content["added_tokens"][:2]  # the bytes are plain tokens
    return Tokenizer(json.dumps(content), END)


def changed(tokenizer: Tokenizer, **changes: Any) -> Tokenizer:
    return Tokenizer(json.dumps(json.loads(tokenizer.files()["tokenizer.json"]) | changes), END)


@BOTH
@given(text=st.text())
@settings(deadline=None)
def test_any_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@BOTH
@given(text=st.text())
@settings(deadline=None)
def test_streamed_pieces_make_up_the_text(tokenizer: Tokenizer, text: str) -> None:
    stream = tokenizer.stream()
    pieces = [stream.push(token) for token in tokenizer.encode(text)]
    assert "".join(pieces) + stream.finish() == text


def test_a_character_is_streamed_once_its_last_byte_is_there() -> None:
    stream = BYTES.stream()
    assert [stream.push(byte) for byte in "a\U0001f600b".encode()] == ["a", "", "", "", "\U0001f600", "b"]


def test_a_character_that_was_cut_is_shown_at_the_end() -> None:
    stream = BYTES.stream()
    assert [stream.push(byte) for byte in "\U0001f600".encode()[:2]] == ["", ""]
    assert stream.finish() == "\ufffd"


def test_broken_bytes_do_not_hold_up_what_follows() -> None:
    stream = BYTES.stream()
    assert "".join(stream.push(byte) for byte in b"\xff\xf0ab") == "\ufffd\ufffdab"
    assert BYTES.decode(list(b"\xffa")) == "\ufffda"


def test_tokenizers_without_byte_symbols_stream_as_well() -> None:
    tokenizer = metaspace_tokenizer()
    ids = tokenizer.encode("hello world \u65e5 hello").tolist()
    stream = tokenizer.stream()
    assert (
        "".join(map(stream.push, ids)) + stream.finish()
        == tokenizer.decode(ids)
        == " hello world \u65e5 hello"
    )
    cut = tokenizer.stream()
    broken = [tokenizer.encode("\u65e5").tolist()[-1]] * 9
    assert "".join(map(cut.push, broken)) + cut.finish() == "\ufffd" * 9


@BOTH
@pytest.mark.parametrize("text", [END, f"a{END}b", f"{END}{END}", f" {END}\n"])
def test_end_of_text_written_in_a_text_is_plain_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode_batch(["x", text])[1]
    assert tokenizer.end_of_text_id not in ids
    assert tokenizer.decode(ids) == text


def test_other_control_tokens_are_plain_text_too() -> None:
    encoder = Encoder.from_str(BPE.files()["tokenizer.json"].decode())
    encoder.add_special_tokens([AddedToken("<|user|>", special=True)])
    ids = Tokenizer(encoder.to_str(), END).encode("a<|user|>b")
    assert encoder.token_to_id("<|user|>") not in ids


def test_every_special_token_is_plain_text_unless_it_is_asked_for() -> None:
    encoder = Encoder.from_str(BPE.files()["tokenizer.json"].decode())
    encoder.add_special_tokens([AddedToken("<|user|>", special=True), AddedToken("<s>", special=True)])
    encoder.add_tokens([AddedToken("<tool>", special=False)])
    text, content = f"a<|user|>b<s>{END}<tool>", encoder.to_str()
    asked = Tokenizer(content, END, control_tokens_in_text=True)
    special = set(asked.control_tokens.values())
    assert special == {0, *map(encoder.token_to_id, ("<|user|>", "<s>"))}
    plain = Tokenizer(content, END)
    assert not special & set(plain.encode(text).tolist())
    assert special <= set(asked.encode(text).tolist())
    assert all(encoder.token_to_id("<tool>") in one.encode(text) for one in (plain, asked))
    assert asked.decode(asked.encode(text)) == plain.decode(plain.encode(text)) == text
    assert asked.hash != plain.hash


def test_bytes_can_be_asked_for_end_of_text_too() -> None:
    asked = Tokenizer(BYTES.files()["tokenizer.json"].decode(), END, control_tokens_in_text=True)
    assert asked.encode(f"a{END}b").tolist() == [97, 256, 98]


@BOTH
def test_control_tokens_are_asked_for_alike_where_they_are_tokens_anyway(tokenizer: Tokenizer) -> None:
    content = tokenizer.files()["tokenizer.json"].decode()
    always = Tokenizer(content, END, control_tokens_in_text=True)
    text = f"a{END} b"
    assert always.encode_with_controls(text).tolist() == always.encode(text).tolist()
    assert always.encode(text).tolist() == tokenizer.encode_with_controls(text).tolist()


def test_a_control_token_that_the_model_makes_of_text_is_refused() -> None:
    vocab = [["<unk>", 0.0], [END, 0.0], ["<pad>", 0.0], *([c, -2.0] for c in "</pads>\u2581")]
    model = {"type": "Unigram", "unk_id": 0, "vocab": vocab, "byte_fallback": False}
    added = [{"id": i, "content": token, "special": True, "normalized": False, "single_word": False,
              "lstrip": False, "rstrip": False} for i, (token, _) in enumerate(vocab[:3])]  # fmt: skip
    added.append(added[1] | {"id": len(vocab), "content": "<end>"})
    content = json.dumps({"version": "1.0", "model": model, "added_tokens": added})
    with pytest.raises(UserError, match=r"reads the text '<\|endoftext\|>' as a control token; where"):
        Tokenizer(content, "<end>")
    assert Tokenizer(content, END, control_tokens_in_text=True).encode(f"a{END}").tolist()[-1] == 1


def test_end_of_text_is_plain_text_even_where_the_file_does_not_mark_it_special() -> None:
    added = json.loads(BPE.files()["tokenizer.json"])["added_tokens"]
    tokenizer = changed(BPE, added_tokens=[added[0] | {"special": False}])
    assert tokenizer.end_of_text_id not in tokenizer.encode(f"a{END}b")


def test_a_token_that_text_can_spell_cannot_end_documents() -> None:
    with pytest.raises(UserError, match="reads the text 'a' as a control token"):
        Tokenizer(BPE.files()["tokenizer.json"].decode(), "a")


def test_nothing_is_added_cut_or_padded() -> None:
    encoder = Encoder.from_str(BPE.files()["tokenizer.json"].decode())
    encoder.post_processor = processors.TemplateProcessing(single=f"{END} $A", special_tokens=[(END, 0)])
    encoder.enable_truncation(2)
    encoder.enable_padding(length=50)
    text = "the quick brown fox jumps"
    assert Tokenizer(encoder.to_str(), END).encode(text).tolist() == BPE.encode(text).tolist()


def test_dropout_of_merges_is_off() -> None:
    model = json.loads(BPE.files()["tokenizer.json"])["model"]
    tokenizer = changed(BPE, model=model | {"dropout": 0.9})
    assert tokenizer.encode(CORPUS[0]).tolist() == BPE.encode(CORPUS[0]).tolist()


def test_bytes_are_their_own_ids() -> None:
    assert BYTES.encode("a\u00e9").tolist() == [97, 195, 169]
    assert (BYTES.vocab_size, BYTES.end_of_text_id) == (257, 256)
    assert BYTES.decode([97, 256, 98]) == f"a{END}b"


def test_the_vocabulary_reaches_to_the_largest_id_also_over_gaps() -> None:
    added = json.loads(BPE.files()["tokenizer.json"])["added_tokens"]
    model = json.loads(BPE.files()["tokenizer.json"])["model"]
    last = max(model["vocab"], key=model["vocab"].__getitem__)
    tokenizer = changed(BPE, added_tokens=added, model=model | {"vocab": model["vocab"] | {last: 999}})
    assert tokenizer.vocab_size == 1000
    assert tokenizer.decode([998]) == "\ufffd"
    assert 998 not in tokenizer.known_ids and 999 in tokenizer.known_ids
    assert len(tokenizer.known_ids) == BPE.vocab_size


def test_ids_are_arrays_of_int32() -> None:
    ids = BPE.encode_batch(["a", ""])
    assert all(one.dtype == np.int32 and one.ndim == 1 for one in ids)
    assert ids[1].size == 0


@BOTH
def test_text_without_a_utf8_form_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="lone surrogate"):
        tokenizer.encode("a\ud800")


@BOTH
def test_saved_and_loaded_it_is_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tok")
    loaded = Tokenizer.load(tmp_path / "tok")
    assert (loaded.hash, loaded.vocab_size, loaded.end_of_text) == (tokenizer.hash, tokenizer.vocab_size, END)
    assert loaded.encode(CORPUS[0]).tolist() == tokenizer.encode(CORPUS[0]).tolist()
    assert loaded.files() == tokenizer.files()


def test_what_it_does_with_control_tokens_is_saved_too(tmp_path: Path) -> None:
    content = BPE.files()["tokenizer.json"].decode()
    named = {"bos_token": "a", "eos_token": END}
    asked = Tokenizer(content, END, control_tokens_in_text=True, chat_template="{{ x }}", named_tokens=named)
    asked.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert (loaded.control_tokens_in_text, loaded.chat_template, loaded.named_tokens) == (
        True,
        "{{ x }}",
        named,
    )
    assert loaded.hash == asked.hash
    assert loaded.files() == asked.files()


def test_transformers_reads_the_saved_folder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    BPE.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.encode(CORPUS[0], add_special_tokens=False) == BPE.encode(CORPUS[0]).tolist()
    assert theirs.eos_token_id == BPE.end_of_text_id


def test_the_hash_tells_tokenizers_apart_and_not_layouts_of_the_file() -> None:
    content = json.loads(BPE.files()["tokenizer.json"])
    shuffled = json.dumps(dict(reversed(content.items())), indent=7)
    assert Tokenizer(shuffled, END).hash == BPE.hash
    assert train_bpe(iter(CORPUS), 299, END).hash != BPE.hash


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "here: is not valid JSON"),
        ("[" * 100_000, "here: is not valid JSON"),
        ("{}", "here: is not a tokenizer.json: it has no model"),
        ('{"model": {"type": "BPE"}}', "here: is not a usable tokenizer.json"),
        (
            BPE.files()["tokenizer.json"].decode(),
            r"here has no token '<eos>'; its added tokens are <\|endoftext\|>",
        ),
    ],
)
def test_an_unusable_file_is_refused(content: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Tokenizer(content, "<eos>", "here")


def test_a_damaged_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"tokenizer_config.json: cannot be read .*; save the tokenizer again"
    ):
        Tokenizer.load(tmp_path)
    BPE.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(UserError, match="has no eos_token"):
        Tokenizer.load(tmp_path)
