"""Text as Hugging Face's tokenizers read it: special tokens that it spells are meant, and may be added."""

from __future__ import annotations

import json
from collections.abc import Sequence

from jinja2 import Template
from tokenizers import Tokenizer as Encoder

from llmkit.data.tokens.template_environment import BEGIN, END, TemplateEnvironment
from llmkit.data.tokens.tokenizer import Tokenizer
from llmkit.errors import UserError

LAST = "\ufdd4 "
"""Put behind the words that are to be gone on with, to find their end in a chat's text."""


class HubText:
    """The tokenizer of a model as transformers uses its exported files, by which benchmarks are defined.

    Training reads text otherwise: there what a text spells is never a control token.

    bos, eos: the tokens of these names, "" where there is none. prefix_id: stands before text without a
    context: bos, else eos. add_special_tokens: whether texts get what tokenizer.json puts around them,
    such as bos; where not given they do, unless they begin with the prefix already.
    """

    def __init__(self, tokenizer: Tokenizer, add_special_tokens: bool | None = None) -> None:
        files = tokenizer.files_for_others()
        self._encoder = Encoder.from_str(files["tokenizer.json"].decode())
        self._encoder.no_padding()
        self._encoder.no_truncation()
        self._config = json.loads(files["tokenizer_config.json"])
        self.tokenizer, self.add_special_tokens = tokenizer, add_special_tokens
        known = self._encoder.get_vocab(with_added_tokens=True)
        named = tokenizer.named_tokens
        self.bos, self.eos = (named[n] if named.get(n) in known else "" for n in ("bos_token", "eos_token"))
        self.eos_id = known[self.eos]
        self.prefix = self.bos or self.eos
        self.prefix_id = known[self.prefix]

    def encode(self, text: str, add_special_tokens: bool | None = None) -> list[int]:
        """Ids of a text. add_special_tokens: for this text alone."""
        added = self.add_special_tokens if add_special_tokens is None else add_special_tokens
        if add_special_tokens is None and text.startswith(self.prefix):
            added = False
        ids: list[int] = self._encoder.encode(text, add_special_tokens=added is not False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of some ids, without special tokens."""
        text: str = self._encoder.decode(list(ids), skip_special_tokens=True)
        return text

    def chat(self, messages: Sequence[dict[str, str]], asks: bool = True) -> str:
        """A chat as the model's template writes it. asks: the assistant's part follows; else it ends within
        the last message, which is to be gone on with.

        Raises UserError where there is no template, or it refuses the chat, without its system message too.
        """
        if self.tokenizer.chat_template is None:
            raise UserError(
                f"{self.tokenizer.origin}: has no chat template; evaluate without --apply-chat-template"
            )
        template = TemplateEnvironment().from_string(self.tokenizer.chat_template)
        try:
            try:
                return self._chat(template, messages, asks)
            except Exception:  # a template's mistakes are any of Python's
                without = [message for message in messages if message["role"] != "system"]
                if len(without) == len(messages):
                    raise
                return self._chat(template, without, asks)
        except Exception as error:
            raise UserError(
                f"{self.tokenizer.origin}: its chat template refuses a chat of the task: {error}; evaluate "
                "without --apply-chat-template"
            ) from error

    def _chat(self, template: Template, messages: Sequence[dict[str, str]], asks: bool) -> str:
        """One try of `chat`."""
        chat = [dict(message) for message in messages]
        if not asks:
            chat[-1]["content"] += LAST
        text = template.render(
            messages=chat, tools=None, documents=None, add_generation_prompt=asks,
            **self.tokenizer.named_tokens,
        ).replace(BEGIN, "").replace(END, "")  # fmt: skip
        if asks:
            return text
        before, _, after = text.rpartition(LAST.strip())
        return before if after.startswith(" ") else before.rstrip()  # the template trims its messages
