from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import subprocess
import sys
import unicodedata
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Encoder

from llmkit.data.tokens import fast_bpe
from llmkit.data.tokens.fast_bpe import PATTERNS
from llmkit.data.tokens.hard_texts import HARD_TEXTS
from llmkit.data.tokens.text_encoder import TIKTOKEN_AFTER
from llmkit.data.tokens.tokenizer import Tokenizer
from llmkit.data.tokens.tokenizer_json import byte_symbols
from llmkit.errors import UserError
from tests.data.tokens.tokenizers_for_tests import (
    CORPUS,
    END,
    byte_level,
    bytes_tokenizer,
    changed,
    sentencepiece,
    slow,
    tokenizer,
)  # fmt: skip

OWN = byte_level()


def sped_up(encoder: Encoder | Tokenizer, **options: Any) -> Tokenizer:
    """A tokenizer whose fast encoder is at work."""
    made = encoder if isinstance(encoder, Tokenizer) else tokenizer(encoder, **options)
    made.enable_tiktoken(CORPUS)
    assert made.tiktoken_disabled_because is None
    return made


KINDS = [sped_up(byte_level(pattern)) for pattern in (*PATTERNS.values(), None)]
KINDS.append(sped_up(changed(byte_level(PATTERNS["qwen2"]), normalizer={"type": "NFC"})))
BY_KIND = pytest.mark.parametrize("quick", KINDS, ids=[*PATTERNS, "byte level", "composing"])
HARD = st.text(
    st.sampled_from(list(" \n\t\r'aAsStlLdeE0123!./_-\u0301\u00e9\u65e5\u00a0\x85\x00\U0001f600")),
    max_size=60,
)


@BY_KIND
@given(text=st.text() | HARD)
@settings(deadline=None)
def test_ids_are_the_librarys(quick: Tokenizer, text: str) -> None:
    expected = quick._library.encode(text, add_special_tokens=False).ids
    assert quick.encode(text).tolist() == expected
    assert quick.encode(text).dtype == np.int32


@BY_KIND
@pytest.mark.parametrize("text", HARD_TEXTS, ids=range(len(HARD_TEXTS)))
def test_hard_strings_come_back(quick: Tokenizer, text: str) -> None:
    composed = unicodedata.normalize("NFC", text) if quick is KINDS[-1] else text
    assert quick.decode(quick.encode(text)) == composed


def test_ids_need_not_be_in_the_order_of_the_merges() -> None:
    vocab = json.loads(OWN.to_str())["model"]["vocab"]
    ids = [vocab[left + right] for left, right in json.loads(OWN.to_str())["model"]["merges"]]
    assert ids != sorted(ids)


@pytest.mark.parametrize("run", [" ", "a", "\n ", "!", "\u65e5"], ids=["space", "a", "lines", "sign", "han"])
def test_a_text_without_a_break_has_the_same_ids(run: str) -> None:
    quick = KINDS[0]
    text = "x" + run * (400_000 // len(run)) + "y"
    assert np.array_equal(quick.encode(text), slow(quick).encode(text))


def test_what_the_fast_encoder_gives_up_on_is_left_to_the_other() -> None:
    assert KINDS[0]._fast is not None
    assert KINDS[0]._fast.encode(["a", " " * 1_000_000, "b c"])[1] is None


def test_the_words_for_control_tokens_are_text_and_may_be_asked_to_be_tokens() -> None:
    text = f"a{END}b<|im_start|>"
    assert not {0, 3} & set(KINDS[0].encode(text).tolist())
    parsing = sped_up(byte_level(), control_tokens_in_text=True)
    ids = parsing.encode(text).tolist()
    assert (ids.count(0), ids.count(3)) == (1, 1)
    assert ids == parsing._library.encode(text).ids


def test_added_tokens_that_are_no_control_tokens_are_ordinary_ones() -> None:
    encoder = byte_level()
    encoder.add_tokens([AddedToken("<tool>", special=False), AddedToken("  ", special=False)])
    quick, text = sped_up(encoder), "a <tool> b  c" * 3
    assert quick.encode(text).tolist() == encoder.encode(text).ids
    assert encoder.token_to_id("<tool>") in quick.encode(text)


def test_threads_change_nothing() -> None:
    texts = [text * (i % 7) for i, text in enumerate(CORPUS * 3)]
    one, many = (KINDS[0].encode_batch(texts, threads=threads) for threads in (False, True))
    assert all(map(np.array_equal, one, many))
    assert all(map(np.array_equal, one, slow(KINDS[0]).encode_batch(texts)))


def test_no_text_gives_no_ids() -> None:
    assert KINDS[0].encode_batch([]) == slow(KINDS[0]).encode_batch([]) == []


def test_it_sets_itself_up_after_some_text_and_changes_no_id() -> None:
    made = tokenizer(OWN)
    text = "".join(CORPUS)
    before = made.encode(text).tolist()
    assert made.tiktoken_disabled_because is not None
    assert made.tiktoken_disabled_because == "not tried yet"
    while made._encoded < TIKTOKEN_AFTER:
        assert made.tiktoken_disabled_because is not None
        made.encode_batch([text] * 20)
    assert made.tiktoken_disabled_because is None
    assert made.encode(text).tolist() == before


def test_lone_surrogates_are_refused() -> None:
    with pytest.raises(UserError, match="lone surrogate"):
        KINDS[0].encode("a\ud800")


def test_a_token_that_no_merge_makes_is_never_made() -> None:
    content = json.loads(OWN.to_str())
    for token in ("zq", "zqj"):
        content["model"]["vocab"][token] = len(content["model"]["vocab"])
    quick = sped_up(Encoder.from_str(json.dumps(content)))
    assert quick.encode("zqj zq").tolist() == slow(quick).encode("zqj zq").tolist()


def test_a_token_that_other_merges_forestall_is_never_made() -> None:
    """b + c comes before a + b, so ab + c never meet; but tiktoken would merge a + bc."""
    content = json.loads(OWN.to_str())
    model = content["model"]
    for left, right in (("j", "q"), ("z", "j"), ("zj", "q")):
        model["vocab"][left + right] = len(model["vocab"])
        model["merges"].append([left, right])
    quick = sped_up(Encoder.from_str(json.dumps(content)))
    ids = quick.encode("zjq zj jq").tolist()
    assert model["vocab"]["zjq"] not in ids
    assert ids == slow(quick).encode("zjq zj jq").tolist()


def test_whole_pieces_that_are_tokens_are_taken_as_such_where_the_model_says_so() -> None:
    content = json.loads(OWN.to_str())
    content["model"]["ignore_merges"] = True
    content["model"]["vocab"]["zqjx"] = number = len(content["model"]["vocab"])
    quick = sped_up(Encoder.from_str(json.dumps(content)))
    assert quick.encode("zqjx").tolist() == [number]
    assert number not in quick.encode("zqjxzqjx")
    assert quick.encode("zqjxzqjx zqjx").tolist() == slow(quick).encode("zqjxzqjx zqjx").tolist()
    content["model"]["vocab"]["zq"] = number + 1  # what tiktoken would merge also inside a piece
    made = tokenizer(Encoder.from_str(json.dumps(content)))
    made.enable_tiktoken()
    assert made.tiktoken_disabled_because == "it never merges the parts of its token 'zq'"


def test_merges_may_be_written_as_strings() -> None:
    content = json.loads(OWN.to_str())
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    made = Tokenizer(json.dumps(content), END)
    assert sped_up(made).encode(CORPUS[1]).tolist() == KINDS[0].encode(CORPUS[1]).tolist()


PREFIX = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
DIGITS = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True},
                                                PREFIX | {"add_prefix_space": False}]}  # fmt: skip


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (changed(OWN, normalizer={"type": "NFKC"}), "a normalizer"),
        (changed(OWN, pre_tokenizer=PREFIX), "not cut into bytes as they are"),
        (changed(OWN, pre_tokenizer=None), "not cut into bytes as they are"),
        (changed(OWN, pre_tokenizer=DIGITS), "not cut by one regular expression"),
        (tokenizer(sentencepiece()), "not cut into bytes as they are"),
    ],
    ids=["normalizer", "prefix space", "no pre-tokenizer", "digits", "sentencepiece"],
)
def test_other_kinds_stay_with_the_other_encoder(made: Tokenizer, reason: str) -> None:
    made.enable_tiktoken(CORPUS)
    assert made.tiktoken_disabled_because is not None
    assert reason in (made.tiktoken_disabled_because or "")


def test_an_unknown_pattern_stays_with_the_library() -> None:
    made = tokenizer(byte_level(PATTERNS["llama3"].replace("{1,3}", "{1,2}")))
    made.enable_tiktoken(CORPUS)
    assert made.tiktoken_disabled_because == (
        "its text is cut by another regular expression than those of llmkit, gpt2, llama3, qwen2, qwen3.5, "
        "o200k, tekken"
    )
    assert made.encode("1234 it").tolist() == made._library.encode("1234 it").ids


def test_the_example_of_the_module() -> None:
    symbols = byte_symbols()
    vocabulary = {symbol: byte for byte, symbol in enumerate(symbols)} | {"it": 256, "t'": 257, "12": 258}
    encoder = Encoder(models.BPE(vocabulary, [("i", "t"), ("t", "'"), ("1", "2")]))
    encoder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoder.add_special_tokens([AddedToken(END, special=True)])
    made = sped_up(encoder)
    assert made.encode("it's 12").tolist() == [256, 39, 115, 32, 258] == slow(made).encode("it's 12").tolist()


def test_a_wrong_id_keeps_the_fast_encoder_off(monkeypatch: pytest.MonkeyPatch) -> None:
    right = fast_bpe.build_tiktoken(json.loads(OWN.to_str()))
    monkeypatch.setattr(right, "_ids", np.roll(right._ids, 1))
    monkeypatch.setattr("llmkit.data.tokens.text_encoder.build_tiktoken", lambda spec: right)
    made = tokenizer(OWN)
    made.enable_tiktoken()
    assert made.tiktoken_disabled_because is not None
    assert "gives other ids" in (made.tiktoken_disabled_because or "")


def test_bytes_are_fast_from_the_start() -> None:
    assert bytes_tokenizer(END).tiktoken_disabled_because is None


def test_neither_torch_nor_the_network_are_touched() -> None:
    program = (
        "import sys, llmkit.data.tokens.encode\n"
        "from llmkit.config import schema\n"
        "from llmkit.data.tokens.make_tokenizer import make_tokenizer\n"
        "print([m for m in ('torch', 'transformers', 'tiktoken', 'huggingface_hub') if m in sys.modules])\n"
        "made = make_tokenizer(schema.Tokenizer(vocab_size=270), ['some text'] * 9); made.enable_tiktoken()\n"
        "assert made.tiktoken_disabled_because is None\n"
        "print([m for m in ('torch', 'requests', 'tiktoken_ext.openai_public') if m in sys.modules])\n"
    )
    environment = os.environ | {"TIKTOKEN_CACHE_DIR": "/nonexistent"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout == "[]\n[]\n"


def test_a_pre_tokenizer_that_drops_the_gaps_is_not_taken() -> None:
    encoder = byte_level()
    cut = json.loads(encoder.to_str())["pre_tokenizer"]
    cut["pretokenizers"][0]["behavior"] = "Removed"
    made = changed(encoder, pre_tokenizer=cut)
    made.enable_tiktoken()
    assert made.tiktoken_disabled_because is not None


def test_normalizers_are_applied_as_ever() -> None:
    encoder = byte_level()
    encoder.normalizer = normalizers.Lowercase()
    encoder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    made = tokenizer(encoder)
    made.enable_tiktoken()
    assert made.encode("ABC").tolist() == encoder.encode("abc").ids


def random_merges(choose: random.Random) -> dict[str, Any]:
    """A tokenizer.json with merges that no training would give, and tokens that no merge makes."""
    content = json.loads(OWN.to_str())
    vocab = {symbol: number for number, symbol in enumerate(byte_symbols())}
    merges: list[tuple[str, str]] = []
    tokens = list("abc")
    for _ in range(choose.randint(1, 25)):
        left, right = choose.choices(tokens, k=2)
        if len(left + right) < 10 and left + right not in vocab:
            merges.append((left, right))
            tokens.append(left + right)
            vocab[left + right] = len(vocab)
    vocab.setdefault("".join(choose.choices("abc", k=5)), len(vocab))
    model = {"vocab": vocab, "merges": merges, "ignore_merges": choose.random() < 0.3}
    return content | {"added_tokens": [], "model": content["model"] | model}


def test_any_merges_are_followed_exactly_or_refused() -> None:
    words = ["".join(word) for length in range(1, 6) for word in itertools.product("abc", repeat=length)]
    taken = 0
    for seed in range(60):
        choose = random.Random(seed)
        content = random_merges(choose)
        with contextlib.suppress(fast_bpe.NotFastError):
            quick = fast_bpe.build_tiktoken(content)
            text = " ".join([*words, *("".join(choose.choices("abc", k=100)) for _ in range(20))])
            (ids,) = quick.encode([text])
            assert ids is not None
            assert ids.tolist() == Encoder.from_str(json.dumps(content)).encode(text).ids
            taken += 1
    assert taken > 30


BARE_BYTES = json.loads(bytes_tokenizer(END).files()["tokenizer.json"])


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": {"type": "Lowercase"}},
        {"normalizer": {"type": "NFC"}},
        {"pre_tokenizer": BARE_BYTES["pre_tokenizer"]["pretokenizers"][1] | {"add_prefix_space": True}},
        {"pre_tokenizer": None},
        {"model": BARE_BYTES["model"] | {"continuing_subword_prefix": "#"}},
    ],
    ids=["normalizer", "composing", "prefix", "no bytes", "subwords"],
)
def test_a_vocabulary_of_bytes_is_not_enough_to_be_bytes(changes: dict[str, Any]) -> None:
    made = Tokenizer(json.dumps(BARE_BYTES | changes), END)
    text = "ABC cafe\u0301"
    assert made.encode(text).tolist() == made._library.encode(text, add_special_tokens=False).ids
    assert made.encode(text).tolist() != list(text.encode())
