"""What a model is asked, and where its answer ends."""

from __future__ import annotations

import json
import shutil

import pytest

from llmkit.cli import main
from llmkit.data.sources.records import Chat, PromptCompletion
from llmkit.data.tokens.encode import RecordEncoder
from llmkit.errors import UserError
from llmkit.prompts import chat_prompt, text_prompt
from tests.data.tokens.tokenizers_for_tests import byte_level, bytes_tokenizer, sentencepiece, tokenizer
from tests.program import make_project

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PLAIN = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] + '\n' }}{% endfor %}"
    "{{ 'assistant: ' if add_generation_prompt }}"
)
ANSWERS = {"hello": "fine thank you", "how are you": "no"}


def asked(question: str, answer: str, system: str | None = None) -> Chat:
    before = () if system is None else ({"role": "system", "content": system},)
    return Chat((*before, {"role": "user", "content": question}, {"role": "assistant", "content": answer}))


@pytest.mark.parametrize("kind", [byte_level, sentencepiece])
@pytest.mark.parametrize("template", [CHATML, PLAIN, "{{ bos_token }}" + CHATML])
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_a_question_has_the_ids_that_stood_before_the_answer_in_training(kind, template, system):
    made = tokenizer(kind(), chat_template=template)
    for answer in ("x", "  x", "\n x", "<|im_end|>"):
        [encoded] = RecordEncoder(made).encode([asked("hello", answer, system)])
        prompt = chat_prompt(made, "hello", system)
        assert prompt.ids == [made.end_of_text_id, *encoded.tokens[: encoded.targets.argmax()].tolist()]


def test_a_question_that_spells_control_tokens_stays_text():
    made = tokenizer(byte_level(), chat_template=CHATML)
    controls = set(made.control_tokens.values())
    spelled = [one for one in chat_prompt(made, "<|im_end|></s>").ids if one in controls]
    assert spelled == [one for one in chat_prompt(made, "x").ids if one in controls]


def test_a_document_is_opened_once():
    made = tokenizer(
        byte_level(), chat_template="{{ bos_token }}" + CHATML, named_tokens={"bos_token": "</s>"}
    )
    assert chat_prompt(made, "x").ids.count(made.end_of_text_id) == 1
    assert text_prompt(made, "</s>x", control_tokens=True).ids == text_prompt(made, "x").ids


def test_a_prompt_has_the_ids_that_it_has_in_a_pair():
    for made in (tokenizer(byte_level()), tokenizer(sentencepiece())):
        [encoded] = RecordEncoder(made).encode([PromptCompletion("call mem.", "memory")])
        assert text_prompt(made, "call mem.").ids[1:] == encoded.tokens[~encoded.targets].tolist()


def test_control_tokens_of_a_prompt_are_meant_where_asked():
    made = tokenizer(byte_level(), chat_template=CHATML)
    text = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert text_prompt(made, text, control_tokens=True).ids == chat_prompt(made, "hello").ids
    assert made.control_tokens["<|im_start|>"] not in text_prompt(made, text).ids
    always = tokenizer(byte_level(), control_tokens_in_text=True)
    assert text_prompt(always, text).ids == text_prompt(made, text, control_tokens=True).ids
    with pytest.raises(UserError, match="noncharacters"):
        text_prompt(made, "<|im_end|>\ufdd4", control_tokens=True)


@pytest.mark.parametrize(
    ("template", "stop", "text"),
    [
        (CHATML, "<|im_end|>", ""),
        ("{% for m in messages %}{{ m['content'] }} {{ eos_token }}\n{% endfor %}", "</s>", ""),
        (CHATML.replace("<|im_", "<|at_"), None, "<|at_end|>"),
        (PLAIN.replace("'\n'", "' <|at_end|>\n'") + "{{ eos_token }}", "</s>", "<|at_end|>"),
        (PLAIN, None, "user:"),  # what ends a turn is white space: the next one begins so
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", None, ""),
        ("{% for m in messages %}{% generation %}{{ m['content'] }}[/INST]{% endgeneration %}{% endfor %}",
         "[/INST]", ""),
    ],
)  # fmt: skip
@pytest.mark.parametrize("in_text", [False, True])
def test_an_answer_ends_as_the_template_ends_it(template, stop, text, in_text):
    made = tokenizer(byte_level(), chat_template=template, control_tokens_in_text=in_text)
    prompt = chat_prompt(made, "hello")
    assert prompt.stops == {made.end_of_text_id, made.control_tokens.get(stop, made.end_of_text_id)}
    assert prompt.stop_texts == ((text,) if text else ())


def test_what_cannot_be_asked_is_named():
    with pytest.raises(UserError, match="has no chat template, as the run was not trained on chats"):
        chat_prompt(bytes_tokenizer("<end>"), "x")
    fussy = CHATML + "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    with pytest.raises(
        UserError, match=r"refuses the chat: .*no system; ask in another way, or without --sys"
    ):
        chat_prompt(tokenizer(byte_level(), chat_template=fussy), "x", "y")


def test_the_space_before_the_first_word_of_an_answer_is_shown():
    made = tokenizer(sentencepiece())
    [encoded] = RecordEncoder(made).encode([PromptCompletion("the quick", " brown fox")])
    prompt, answer = encoded.tokens[~encoded.targets].tolist(), encoded.tokens[encoded.targets].tolist()
    decoder = made.stream([made.end_of_text_id, *prompt])
    assert "".join(map(decoder.push, answer)) + decoder.finish() == " brown fox"


def chats(folder, count: int = 80) -> None:
    with (folder / "chats.jsonl").open("w") as file:
        for number in range(count):
            question, answer = list(ANSWERS.items())[number % 2]
            messages = asked(question, answer).messages
            file.write(json.dumps({"messages": messages}) + "\n")


@pytest.fixture(scope="module")
def talked(tmp_path_factory):
    """A run that learned two answers, copied to where nothing else of it is; and what its end said."""
    folder = tmp_path_factory.mktemp("talk")
    make_project(folder)
    chats(folder)
    (folder / "tokenizer.json").write_text(byte_level().to_str())
    source = "data.sources=[{type: jsonl, path: chats.jsonl, record: chat}]"
    made = "data.tokenizer={type: file, path: tokenizer.json, end_of_text: </s>}"
    fast = ["optimizer.learning_rate=0.02", "model.hidden_dropout=0", "train.global_batch_size=8"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        arguments = [source, made, *fast, "data.document_masks=true", "monitor.sample=hello"]
        assert main(["train", "tiny.yaml", "train.max_steps=80", *arguments]) == 0
    alone = tmp_path_factory.mktemp("alone")
    shutil.copytree(folder / "runs" / "tiny" / "checkpoints" / "step-00000080", alone / "step-00000080")
    return alone / "step-00000080", (folder / "runs/tiny/logs/rank-00000.log").read_text()


def test_a_model_of_chats_can_be_asked_anywhere(talked, capsys):
    prompts = [part for question in ANSWERS for part in ("--prompt", question)]
    assert main(["generate", str(talked[0]), "--chat", "--temperature", "0", *prompts]) == 0
    printed = capsys.readouterr()
    expected = [f"user: {question}\nassistant: {answer}\n" for question, answer in ANSWERS.items()]
    assert printed.out == "\n".join(expected)
    assert "note:" not in printed.err


def test_without_chat_a_note_says_what_the_prompt_is_to_the_model(talked, capsys):
    text = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    command = ["generate", str(talked[0]), "--prompt", text, "--temperature", "0", "--max-new-tokens", "30"]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert "note: this model was trained on chats" in printed.err
    assert "note: <|im_end|>, <|im_start|> in the prompt is text as any other" in printed.err
    assert main([*command, "--control-tokens"]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{text}fine thank you<|im_end|>\n\n"
    assert "note:" not in printed.err


def test_the_end_of_a_run_asks_as_the_run_was_trained(talked):
    assert "--chat --prompt 'Hello'" in talked[1]
    assert "user: hello\nassistant: fine thank you\n" in talked[1]
    assert "import" not in talked[1].rpartition("Try next")[2]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--system", "x"], "--system goes with --chat"),
        (["--chat", "--control-tokens"], "leave out one of both"),
    ],
)
def test_options_that_contradict_each_other(talked, options, says, capsys):
    assert main(["generate", str(talked[0]), "--prompt", "x", *options]) == 2
    assert says in capsys.readouterr().err
