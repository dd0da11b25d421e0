"""`llmkit generate` on a run that was trained for it."""

from __future__ import annotations

import io
import json
import sys

import pytest

from llmkit.cli import main
from tests.program import make_project
from tests.ranks import run_ranks
from tests.test_prompts import chats

TEXTS = ["the model", "every ", "a row of tokens and"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a short run of texts and chats, whose bytes spell ChatML."""
    folder = tmp_path_factory.mktemp("generate")
    make_project(folder)
    chats(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        sources = "data.sources=[{type: text, path: corpus}, {type: jsonl, path: chats.jsonl, record: chat}]"
        assert main(["train", "tiny.yaml", "train.max_steps=20", sources]) == 0
    return folder / "runs" / "tiny"


def generated(run, *options: str) -> list[str]:
    prompts = [part for text in TEXTS for part in ("--prompt", text)]
    return ["generate", str(run), *prompts, "--precision", "fp32", "--max-new-tokens", "30", *options]


def rows(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_answers_do_not_depend_on_what_is_asked_beside_and_json_has_the_same(run, capsys, tmp_path):
    assert main(generated(run, "--seed", "5")) == 0
    printed = capsys.readouterr().out
    alone = []
    for text in TEXTS:
        call = ["--prompt", text, "--precision", "fp32", "--max-new-tokens", "30", "--seed", "5"]
        assert main(["generate", str(run), *call]) == 0
        alone.append(capsys.readouterr().out)
    assert printed == "\n".join(alone)
    assert main(generated(run, "--seed", "5", "--json", "--batch-size", "2")) == 0
    found = rows(capsys)
    assert [row["prompt"] + row["text"] + "\n" for row in found] == alone
    assert [row["finish_reason"] for row in found] == ["length"] * 3
    assert [len(row["tokens"]) for row in found] == [30] * 3 and "logprobs" not in found[0]
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in TEXTS))
    call = ["generate", str(run), "--prompt-file", str(file), "--precision", "fp32", "--max-new-tokens", "30"]
    assert main([*call, "--seed", "5", "--json"]) == 0
    assert rows(capsys) == found


def test_samples_have_seeds_of_their_own_and_end_at_stop_strings(run, capsys):
    assert main(generated(run, "--num-samples", "3", "--seed", "5", "--json")) == 0
    several = rows(capsys)
    assert [(row["prompt"], row["sample"]) for row in several] == [(t, n) for t in TEXTS for n in range(3)]
    assert len({row["text"] for row in several[:3]}) == 3
    assert main(generated(run, "--seed", "7", "--json")) == 0
    assert [row["text"] for row in rows(capsys)] == [row["text"] for row in several if row["sample"] == 2]
    stop = several[0]["text"][5:8]
    assert main(generated(run, "--seed", "5", "--json", "--stop", stop, "--stop", "zzzz")) == 0
    first = rows(capsys)[0]
    assert first["text"] == several[0]["text"].partition(stop)[0] and first["finish_reason"] == "stop"


def test_prompts_of_which_only_the_end_is_read_are_noted(run, capsys):
    options = ["--prompt", "x" * 40, "--prompt", "x", "--num-samples", "2", "--max-new-tokens", "1"]
    assert main(["generate", str(run), *options]) == 0
    assert "only the end of a prompt: its context has 32 tokens" in capsys.readouterr().err


def test_log_probabilities_are_written_on_demand(run, capsys):
    options = ["--prompt", "the", "--max-new-tokens", "4", "--temperature", "0", "--json", "--logprobs", "2"]
    assert main(["generate", str(run), *options]) == 0
    (row,) = rows(capsys)
    assert len(row["logprobs"]) == 4
    for token in row["logprobs"]:
        assert [token["id"], token["text"]] == [token["top"][0]["id"], token["top"][0]["text"]]
        assert token["logprob"] == pytest.approx(token["top"][0]["logprob"])
        assert 0 > token["logprob"] > token["top"][1]["logprob"]
    assert "".join(token["text"] for token in row["logprobs"]) == row["text"]


def test_chats_of_a_file_and_of_a_pipe(run, capsys, tmp_path, monkeypatch):
    file = tmp_path / "chats.jsonl"
    chat = [{"role": "user", "content": "hello"}]
    longer = [*chat, {"role": "assistant", "content": "fine"}, {"role": "user", "content": "how are you"}]
    file.write_text(json.dumps({"messages": chat}) + "\n" + json.dumps({"messages": longer}))
    call = [
        "generate",
        str(run),
        "--chat",
        "--temperature",
        "0",
        "--max-new-tokens",
        "8",
        "--precision",
        "fp32",
    ]
    assert main([*call, "--prompt-file", str(file), "--json"]) == 0
    first, second = rows(capsys)
    assert first["messages"] == chat and second["messages"] == longer
    assert main([*call, "--prompt", "hello", "--json"]) == 0
    assert rows(capsys)[0]["text"] == first["text"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\nhow are you\n"))
    assert main(call) == 0
    lines = capsys.readouterr().out
    assert lines.startswith(first["text"] + "\n")
    assert main([*call, "--system", "x", "--prompt-file", str(file)]) == 0
    assert capsys.readouterr().out.startswith("system: x\nuser: hello\nassistant: ")


def test_ranks_share_a_model_or_the_prompts_and_say_what_one_process_says(run, capsys):
    calls = [
        generated(run, "--seed", "5"),
        generated(run, "--temperature", "0", "--json"),
        generated(run, "--seed", "5", "--tensor-parallel", "1"),
        generated(run, "--seed", "5", "--tensor-parallel", "1", "--json", "--logprobs", "1"),
    ]
    refused = [
        generated(run, "--tensor-parallel", "3"),
        ["generate", str(run), "--chat"],
        ["generate", str(run.parent), "--prompt", "x"],
        ["serve", str(run)],
        ["inspect", str(run), "--prompt", "x", "--output", "page.html"],
    ]
    ranks = run_ranks(2, "tests.generation.rank_cases:commands", joined=False, calls=[*calls, *refused])
    for call, printed, other in zip(calls, *ranks, strict=False):
        assert main(call) == 0
        alone = capsys.readouterr().out
        if "--logprobs" in call:
            found, wanted = ([json.loads(line) for line in text.splitlines()] for text in (printed[1], alone))
            assert [row.pop("logprobs")[0]["id"] for row in found] == [row["tokens"][0] for row in wanted]
            assert all(row.pop("logprobs") for row in wanted) and found == wanted
        else:
            assert printed[1] == alone
        assert printed[0] == other[0] == 0 and other[1:] == [""] * 2
    errors = [first[2] + second[2] for first, second in zip(*ranks, strict=True)][len(calls) :]
    assert [len(error.splitlines()) for error in errors] == [1] * 5
    assert "does not divide the number of processes" in errors[0]
    assert "generate: a conversation has one process, and 2 were started; leave out" in errors[1]
    assert "no checkpoint" in errors[2]
    assert "serve has one process, and 2" in errors[3] and "inspect has one process, and 2" in errors[4]
    assert {code for rank in ranks for code, _, _ in rank[len(calls) :]} == {2}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "say what to continue with --prompt or --prompt-file, or talk with --chat"),
        (["--prompt", "x", "--logprobs", "1"], "--logprobs goes with --json"),
        (["--chat", "--json"], "--json and --num-samples go with --prompt"),
        (["--prompt", "x", "--temperature", "0", "--num-samples", "2"], "gives the same answer each time"),
        (["--prompt", "x", "--stop", ""], "--stop is empty"),
        (["--prompt", "x", "--tensor-parallel", "2"], "launch with torchrun --nproc-per-node 2"),
        (["--prompt-file", "nowhere.txt"], "nowhere.txt: cannot be read"),
        (["--prompt-file", "chats.jsonl"], "has chats (messages); ask with --chat"),
        (["--prompt-file", "own.jsonl", "--chat", "--system", "x"], "its own system messages"),
        (["--prompt", "x", "--seed", str(2**63 - 1), "--num-samples", "2"], "seed is 9223372036854775808"),
    ],
)
def test_what_cannot_be_asked_is_one_message(run, options, says, capsys, monkeypatch):
    monkeypatch.chdir(run.parents[1])
    own = [{"role": "system", "content": "y"}, {"role": "user", "content": "z"}]
    (run.parents[1] / "own.jsonl").write_text(json.dumps({"messages": own}))
    assert main(["generate", str(run), *options]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("llmkit: ") and says in message
