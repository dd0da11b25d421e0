"""Small tokenizers of several kinds."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Encoder

from llmkit.config import schema
from llmkit.data.tokens.fast_bpe import PATTERNS
from llmkit.data.tokens.make_tokenizer import make_tokenizer
from llmkit.data.tokens.tokenizer import Tokenizer
from llmkit.data.tokens.tokenizer_json import byte_symbols

END = "</s>"
SPECIAL = [
    END, "<s>", "<unk>", "<|im_start|>", "<|im_end|>", "[INST]", "[/INST]", "<start_of_turn>",
    "<end_of_turn>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
]  # fmt: skip
CORPUS = [
    "def f(x):\n        return x + 1\n\n\n",
    "The quick brown fox, it's 1234 metres away; isn't it?  \n\n user assistant system model\n",
    "na\u00efve caf\u00e9 \u65e5\u672c\u8a9e \U0001f600 \U0001f600\n" * 2,
    "     indented\t\ttabs\r\n\r\n!!! ??? ... aaaa aaa aa bbb 0000 000 00\n",
] * 5


def train_bpe(texts: Iterable[str], vocab_size: int, end_of_text: str) -> Tokenizer:
    """Byte-level BPE trained on `texts`."""
    return make_tokenizer(schema.Tokenizer(vocab_size=vocab_size, end_of_text=end_of_text), texts)


def bytes_tokenizer(end_of_text: str) -> Tokenizer:
    """A token a byte, with the byte as its id, and end-of-text as 256."""
    return make_tokenizer(schema.Tokenizer(type="bytes", end_of_text=end_of_text), ())


def byte_level(pattern: str | None = PATTERNS["llmkit"], size: int = 420) -> Encoder:
    """Byte-level BPE; without a pattern GPT-2's is used. Its ids are in no order."""
    encoder = Encoder(models.BPE())
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    cut = [] if pattern is None else [pre_tokenizers.Split(Regex(pattern), behavior="isolated")]
    encoder.pre_tokenizer = pre_tokenizers.Sequence([*cut, bytes_only]) if cut else bytes_only
    encoder.decoder = decoders.ByteLevel()
    special = [AddedToken(token, special=True, normalized=False) for token in SPECIAL]
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=byte_symbols(), show_progress=False
    )
    encoder.train_from_iterator(CORPUS, trainer)
    content = json.loads(encoder.to_str())
    ids = list(range(len(SPECIAL), len(content["model"]["vocab"])))
    random.Random(0).shuffle(ids)
    moved = dict(enumerate([*range(len(SPECIAL)), *ids]))
    vocab = content["model"]["vocab"]
    content["model"]["vocab"] = {token: moved[number] for token, number in vocab.items()}
    return Encoder.from_str(json.dumps(content))


def sentencepiece(scheme: str = "first") -> Encoder:
    """BPE in the manner of SentencePiece; "prepend" = by a normalizer, as Llama 2."""
    encoder = Encoder(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if scheme == "prepend":
        encoder.normalizer = normalizers.Sequence(
            [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        )
    else:
        encoder.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    encoder.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=[*SPECIAL, *fallback], show_progress=False)
    encoder.train_from_iterator([text.replace("\n", " ") for text in CORPUS], trainer)
    content = json.loads(encoder.to_str())
    content["added_tokens"] = content["added_tokens"][: len(SPECIAL)]  # the bytes are plain tokens
    return Encoder.from_str(json.dumps(content))


def word_pieces() -> Encoder:
    """Words of a fixed vocabulary; what is not in it is unknown."""
    encoder = Encoder(models.WordPiece(unk_token="<unk>"))
    encoder.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    encoder.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=SPECIAL, show_progress=False)
    encoder.train_from_iterator(CORPUS, trainer)
    return encoder


def tokenizer(encoder: Encoder, **options: Any) -> Tokenizer:
    return Tokenizer(encoder.to_str(), END, **{"named_tokens": {"bos_token": "<s>"}} | options)


def changed(encoder: Encoder, **changes: Any) -> Tokenizer:
    """The tokenizer with other entries of its tokenizer.json."""
    return Tokenizer(json.dumps(json.loads(encoder.to_str()) | changes), END)


def with_template(tokenizer: Tokenizer, template: str) -> Tokenizer:
    """The same tokenizer with another chat template; tiktoken stays at work."""
    other = Tokenizer.__new__(Tokenizer)
    vars(other).update(vars(tokenizer) | {"chat_template": template})
    return other


def slow(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokenizer, kept from tiktoken."""
    other = Tokenizer(tokenizer.files()["tokenizer.json"].decode(), tokenizer.end_of_text)
    other._encoded = 1 << 60
    return other
