"""Text as ids, and chats as text, against transformers' tokenizer of the exported files."""

from __future__ import annotations

from functools import cache

import pytest

from llmkit.data.tokens.tokenizer import Tokenizer
from llmkit.errors import UserError
from llmkit.evaluation.hub_text import HubText
from tests.evaluation import toys

TEXTS = ["the model reads", " a row", "", "</s>", "<s>the <|im_end|> row", "na\u00efve \U0001f600\n\n x  "]
CHAT = [
    {"role": "system", "content": "be  right "},
    {"role": "user", "content": "which row? "},
    {"role": "assistant", "content": " the one "},
]
TRIMMING = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] | trim }}{{ eos_token }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
NO_SYSTEM = "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
NO_SYSTEM += "{{ m['content'] }};{% endfor %}"


@cache
def transformers_tokenizer(folder: str):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("puts_bos", [True, False])
def test_ids_equal_transformers(tmp_path, puts_bos):
    tokens = toys.tokenizer(puts_bos)
    tokens.save(tmp_path)
    theirs, text = transformers_tokenizer(str(tmp_path)), HubText(tokens)
    assert (text.prefix_id, text.eos_id) == (theirs.bos_token_id, theirs.eos_token_id)
    for each in TEXTS:
        begun = each.startswith(toys.BOS)
        assert text.encode(each) == theirs.encode(each, add_special_tokens=not begun), each
        assert text.encode(each, False) == theirs.encode(each, add_special_tokens=False), each
        ids = theirs.encode(each)
        assert text.decode(ids) == theirs.decode(ids, skip_special_tokens=True), each
    plain = HubText(tokens, add_special_tokens=False)
    assert plain.encode("a row") == theirs.encode("a row", add_special_tokens=False)


def with_template(template: str | None) -> Tokenizer:
    base = toys.tokenizer()
    named = {"bos_token": toys.BOS, "eos_token": toys.END}
    content = base.files()["tokenizer.json"].decode()
    return Tokenizer(content, toys.END, "toy", chat_template=template, named_tokens=named)


@pytest.mark.parametrize("template", [toys.CHATML, TRIMMING], ids=["chatml", "trimming"])
@pytest.mark.parametrize("asks", [True, False])
def test_chats_equal_transformers(tmp_path, template, asks):
    tokens = with_template(template)
    tokens.save(tmp_path)
    chat = CHAT[:2] if asks else CHAT
    wanted = transformers_tokenizer(str(tmp_path)).apply_chat_template(
        chat, tokenize=False, add_generation_prompt=asks, continue_final_message=not asks
    )
    assert HubText(tokens).chat(chat, asks) == wanted


def test_a_system_message_that_the_template_refuses_is_left_out():
    assert HubText(with_template(NO_SYSTEM)).chat(CHAT[:2]) == "which row? ;"


def test_a_chat_that_cannot_be_written_is_one_message():
    with pytest.raises(UserError, match="toy: has no chat template"):
        HubText(with_template(None)).chat(CHAT)
    with pytest.raises(UserError, match="toy: its chat template refuses a chat of the task: too long"):
        HubText(with_template("{{ raise_exception('too long') }}")).chat(CHAT)
