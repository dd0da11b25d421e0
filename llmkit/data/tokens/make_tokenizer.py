"""Makes the tokenizer that the settings ask for: trained here, plain bytes, from a file, from a hub."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as HFTokenizer

from llmkit.config import schema
from llmkit.data.tokens.chat import ChatTemplate
from llmkit.data.tokens.fast_bpe import PATTERNS
from llmkit.data.tokens.tokenizer import Tokenizer, named_tokens
from llmkit.data.tokens.tokenizer_json import byte_symbols, with_special
from llmkit.errors import UserError
from llmkit.stopping import in_thread

BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "chat_template.json")
"""Files with settings beside a tokenizer.json."""


def make_tokenizer(spec: schema.Tokenizer, texts: Iterable[str]) -> Tokenizer:
    """The tokenizer of the settings; `texts` are read only where one is trained.

    Raises UserError for settings that contradict each other or a tokenizer that cannot be had.
    """
    template = read_template(spec)  # a mistake in it is named before any work
    content, config, origin = _content(spec, texts)
    return Tokenizer(
        content,
        spec.end_of_text,
        origin,
        control_tokens_in_text=spec.control_tokens_in_text,
        chat_template=template or config.get("chat_template"),
        named_tokens=named_tokens(config),
        opens_chats=config.get("opens_chats") is True,
    )


def read_template(spec: schema.Tokenizer) -> str | None:
    """The chat template that the settings name, None if they name none. Raises UserError for a bad one."""
    if spec.chat_template is None:
        return None
    template = _read(spec.chat_template, "data.tokenizer.chat_template")
    ChatTemplate(template, origin=spec.chat_template)
    return template


def _content(spec: schema.Tokenizer, texts: Iterable[str]) -> tuple[str, dict[str, Any], str]:
    """A tokenizer.json, the settings in the files beside it, and where they come from."""
    if spec.type == "bpe":
        vocab_size = spec.vocab_size or schema.BPE_VOCAB_SIZE
        pattern = PATTERNS[spec.pattern or "llmkit"]
        return _trained(texts, vocab_size, spec.end_of_text, pattern), {}, "the trained tokenizer"
    if spec.type == "bytes":
        return _bytes(spec.end_of_text), {}, "the bytes tokenizer"
    if spec.type == "file":
        if spec.path is None:
            raise UserError("data.tokenizer.path: a tokenizer of type file needs a tokenizer.json")
        path = Path(spec.path)
        content = _read(path, "data.tokenizer.path")
        config = _settings(lambda name: _read_beside(path, name), "data.tokenizer.path")
        return with_special(content, _special_names(config), spec.path), config, spec.path
    if spec.type == "init_from":
        raise UserError("data.tokenizer.type: init_from is the tokenizer of weights, and none are named here")
    if spec.name is None:
        raise UserError("data.tokenizer.name: a tokenizer of type hub needs a hub id")
    fetched = _fetch(spec, "tokenizer.json")
    assert fetched is not None
    config, origin = _settings(lambda name: _fetch(spec, name), "data.tokenizer.name"), f"{spec.name} (hub)"
    return with_special(fetched, _special_names(config), origin), config, origin


def _trained(texts: Iterable[str], vocab_size: int, end_of_text: str, pattern: str) -> str:
    """Byte-level BPE (Sennrich et al. 2016; Radford et al. 2019) trained on `texts`, the same every time.

    The vocabulary holds end-of-text (id 0), all 256 bytes and then merges, most frequent first. A small
    corpus may yield fewer than `vocab_size` tokens: of "ab" 258, the last of which is "ab".
    """
    library = _byte_level(models.BPE(), pattern)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(end_of_text, special=True, normalized=False)],
        initial_alphabet=byte_symbols(),
        show_progress=False,
    )
    in_thread(lambda: library.train_from_iterator(texts, trainer))  # it may take minutes
    return library.to_str()


def _bytes(end_of_text: str) -> str:
    """A token a byte, with the byte as its id, and end-of-text as 256."""
    vocabulary = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
    library = _byte_level(models.BPE(vocabulary, []), PATTERNS["llmkit"])
    library.add_special_tokens([AddedToken(end_of_text, special=True, normalized=False)])
    return library.to_str()


def _byte_level(model: models.Model, pattern: str) -> HFTokenizer:
    library = HFTokenizer(model)
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    library.decoder = decoders.ByteLevel()
    return library


def _read(path: str | Path, setting: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{setting}: {path} cannot be read ({error})") from error


def files_beside(path: Path) -> list[Path]:
    """The files with settings that lie beside a tokenizer.json."""
    return [path.parent / name for name in BESIDE if (path.parent / name).is_file()]


def _read_beside(path: Path, name: str) -> str | None:
    beside = path.parent / name
    return _read(beside, "data.tokenizer.path") if beside.is_file() else None


def _settings(read: Callable[[str], str | None], setting: str) -> dict[str, Any]:
    """What the files beside a tokenizer.json say of it, as transformers takes it; none of them is run.

    read: the text of the file with this name, None if there is none.
    """

    def read_object(name: str) -> dict[str, Any]:
        """The JSON object in this file; empty where there is no such file, or no object in it."""
        try:
            found: Any = json.loads(read(name) or "{}")
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{setting}: {name} beside the tokenizer.json is not valid JSON ({error}); mend it, or use "
                "a copy of the tokenizer.json alone (type file)"
            ) from error
        return found if isinstance(found, dict) else {}

    config = read_object("tokenizer_config.json")
    if "added_tokens_decoder" not in config:  # in older files the names of tokens are apart
        config |= read_object("special_tokens_map.json")
    template = read("chat_template.jinja") or _template_of(config)
    if template is None:  # where a model with images or sound has it
        template = _template_of(read_object("chat_template.json"))
    return config | {"chat_template": template}


def _fetch(spec: schema.Tokenizer, file: str) -> str | None:
    """Text of a file of the hub repository; None if it has no such file and does not need it."""
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RemoteEntryNotFoundError,
    )

    assert spec.name is not None
    try:
        return _read(hf_hub_download(spec.name, file, revision=spec.revision), "data.tokenizer.name")
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        # Without a network on purpose, what was not stored is taken not to exist; a fault of it is no proof.
        unknown = isinstance(error, LocalEntryNotFoundError) and constants.HF_HUB_OFFLINE
        if file != "tokenizer.json" and (unknown or isinstance(error, RemoteEntryNotFoundError)):
            return None
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"data.tokenizer.name: cannot get {file} of {spec.name!r} from the hub ({reason}); check "
            "the name and the network, or download the file and use type: file"
        ) from error


def _special_names(config: dict[str, Any]) -> set[str]:
    """The text of the tokens that a tokenizer_config.json calls special."""
    found = set(named_tokens(config).values())
    for key in ("additional_special_tokens", "extra_special_tokens"):
        more = config.get(key)
        tokens = more.values() if isinstance(more, dict) else more if isinstance(more, list) else ()
        found |= {str(token.get("content") if isinstance(token, dict) else token) for token in tokens}
    return found


def _template_of(config: dict[str, Any]) -> str | None:
    """The chat template of a tokenizer_config.json; of several named ones the default."""
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {one.get("name"): one.get("template") for one in template if isinstance(one, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None
