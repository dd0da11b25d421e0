"""A run that starts from stored weights: what each rank reads of them, and how training goes on."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llmkit.checkpoint.read import open as open_checkpoint
from llmkit.cli import main
from llmkit.errors import UserError
from llmkit.inference import evaluate_weights
from llmkit.loop.initial_weights import StartingWeights
from llmkit.prompts import chat_prompt
from llmkit.weights import open_weights
from tests.program import losses, make_project, rows, train
from tests.ranks import free_ports, run_ranks
from tests.shapes import LLAMA_STYLE

TUNED = """\
run: {name: tuned}
train: {init_from: runs/tiny, max_steps: 3, global_batch_size: 4, precision: fp32}
data:
  sources: [{type: jsonl, path: chats.jsonl, record: chat}]
  sequence_length: 64
  validation_fraction: 0.1
optimizer: {learning_rate: 0.003, eps: 1.0e-5}
schedule: {name: constant, warmup_steps: 1}
model: {hidden_dropout: 0.0}
kernels: {compile: false}
checkpoint: {every_steps: 2}
monitor: {log_every: 1, wandb: {mode: disabled}}
"""


class Tensors:
    """Random weights of a small model, in bf16; what was read of them."""

    path, origin, config = Path("weights/base"), "weights/base", {}

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(0)
        self.tensors = {
            name: torch.randn(shape, generator=draw).bfloat16()
            for name, shape in LLAMA_STYLE.parameters().items()
        }
        self.elements = 0

    def names(self) -> list[str]:
        return list(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].shape)

    def read(self, name: str, region: Any) -> Tensor:
        tensor = self.tensors[name][tuple(slice(*each) for each in region)].clone()
        self.elements += tensor.numel()
        return tensor


def started(**sizes: int) -> tuple[Tensors, StartingWeights]:
    stored = Tensors()
    weights = StartingWeights(stored, "digest", LLAMA_STYLE.vocab_size)
    weights.fit(replace(LLAMA_STYLE, **sizes))
    return stored, weights


def test_a_rank_reads_the_rows_that_its_range_touches_and_no_more():
    stored, weights = started()
    name = "blocks.0.mlp.down_proj.weight"
    tensor = stored.tensors[name].float()
    box = ((1, tensor.shape[0]), (3, tensor.shape[1] - 2))
    inside = tensor[1:, 3:-2].reshape(-1)
    row = tensor.shape[1] - 5
    for low, high in ((0, 1), (row - 1, row + 1), (2 * row, 3 * row), (7, 4 * row + 2), (0, len(inside))):
        stored.elements = 0
        found = weights.read(name, "master", box, (low, high))
        assert found.dtype == torch.float32 and torch.equal(found, inside[low:high])
        assert stored.elements <= high - low + 2 * row
    assert torch.equal(weights.read(name, "master"), tensor)
    assert weights.names("exp_avg") == ()


def test_rows_of_new_tokens_are_the_mean_of_the_others():
    known = LLAMA_STYLE.vocab_size
    stored, weights = started(vocab_size=known + 5, padded_vocab_size=known + 5)
    for name in ("embedding.weight", "head.weight"):
        if name not in stored.tensors:
            continue
        old = stored.tensors[name].float()
        wanted = torch.cat([old, old.double().mean(0).float().expand(5, -1)])
        assert torch.equal(weights.read(name, "master"), wanted)
        box = ((known - 2, known + 4), (1, old.shape[1]))
        assert torch.equal(weights.read(name, "master", box), wanted[known - 2 : known + 4, 1:])
        inside = wanted[known - 2 : known + 4, 1:].reshape(-1)
        assert torch.equal(weights.read(name, "master", box, (3, len(inside) - 1)), inside[3:-1])


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_named(value):
    stored, weights = started()
    name = "blocks.0.mlp.down_proj.weight"
    stored.tensors[name][1, 2] = value
    assert weights.read(name, "master", ((0, 1), (0, 4))).isfinite().all(), "another region is good"
    with pytest.raises(UserError, match=rf"{name} of weights/base has values that are not finite"):
        weights.read(name, "master")
    stored.tensors[name][1, 2] = 3e38
    stored.tensors[name][1, 3] = 3e38
    assert weights.read(name, "master").isfinite().all(), "though their sum is not"


def test_other_tensors_than_the_model_has_are_named():
    with pytest.raises(UserError, match=r"holds another model: blocks.2.*absent -> "):
        started(num_hidden_layers=LLAMA_STYLE.num_hidden_layers + 1)
    with pytest.raises(UserError, match=r"up_proj.weight \(.*\) -> \(.*\)"):
        started(intermediate_size=LLAMA_STYLE.intermediate_size + 2)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run to start from, and chats to go on with."""
    folder = tmp_path_factory.mktemp("tuned")
    make_project(folder)
    (folder / "tuned.yaml").write_text(TUNED)
    chats = [
        [{"role": "user", "content": f"{n}+{m}"}, {"role": "assistant", "content": f"It is {n + m}."}]
        for n in range(12) for m in range(5)
    ]  # fmt: skip
    (folder / "chats.jsonl").write_text("".join(json.dumps({"messages": each}) + "\n" for each in chats))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert train("train.max_steps=20", "evaluate.every_steps=0") == 0
    return folder


@pytest.fixture(autouse=True)
def in_project(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)


def start(name: str, *overrides: str) -> int:
    return main(["train", "tuned.yaml", f"run.name={name}", *overrides])


def test_the_first_loss_is_that_of_the_weights(project: Path) -> None:
    """With a rate that changes nothing, on the text that the first run held out."""
    source = open_weights(project / "runs/tiny")
    wanted = evaluate_weights(source, "fp32", None, print).loss
    still = ("optimizer.learning_rate=1.0e-12", "optimizer.weight_decay=0", "data.sequence_length=32")
    corpus = 'data.sources=[{"type": "text", "path": "corpus"}]'
    held = ("train.max_steps=1", corpus, "data.validation_fraction=0.05")
    assert start("still", *still, *held) == 0
    (found,) = (row["eval_loss"] for row in rows(project / "runs/still") if "eval_loss" in row)
    assert found == pytest.approx(wanted, abs=1e-6)
    (event,) = (e for e in events("still") if e["event"] == "start")
    assert event["init_from"] == {"path": str(source.path), "digest": source.digest()}
    assert json.loads(Path("runs/still/manifest.json").read_text())["init_from"] == event["init_from"]


def events(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path("runs") / name / "events.jsonl").read_text().splitlines()]


def test_all_layouts_train_alike_and_go_on_exactly_without_the_folder(project: Path) -> None:
    """ZeRO-3 and tensor parallelism against one process; stopped after two steps and gone on with."""
    assert start("alone") == 0
    layouts = {
        "zero3": ["parallel.zero_stage=3"],
        "tensor": ["parallel.tensor_parallel_size=2"],
    }
    cases = [
        {"name": name, "file": "tuned.yaml", "hook": None, "seconds": [1.0, 1.0], "overrides": overrides}
        for name, given in layouts.items() for overrides in ([*given, "train.max_steps=2"], given)
    ]  # fmt: skip
    shutil.copytree("runs/tiny", "runs/base", dirs_exist_ok=True)
    for case in cases:
        case["overrides"] = ["train.init_from=runs/base", *case["overrides"]]
    firsts, seconds = cases[::2], cases[1::2]
    seconds[0]["remove"] = "runs/base"
    outcome = run_ranks(
        2, "tests.loop.rank_cases:runs", joined=False,
        folder=str(project), ports=free_ports(len(cases)), cases=[*firsts, *seconds],
    )  # fmt: skip
    assert [[found["code"] for found in rank] for rank in outcome] == [[0] * 4] * 2, outcome
    assert not Path("runs/base").exists()
    for name in layouts:
        assert losses(name) == pytest.approx(losses("alone"), rel=2e-6), name
        assert [event["event"] for event in events(name) if event["event"] in ("start", "resume")] == [
            "start", "resume"
        ]  # fmt: skip
        mine, alone = (open_checkpoint(Path("runs") / run) for run in (name, "alone"))
        for tensor in alone.names("master"):
            apart, wanted = mine.read(tensor, "master"), alone.read(tensor, "master")
            apart -= wanted
            assert float(apart.norm() / wanted.norm()) < 1e-5, (name, tensor)
        assert mine.state["init_from"]["path"].endswith("runs/base/checkpoints/step-00000020")


def test_a_tuned_model_answers_as_its_records_do_and_the_first_one_does_not(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("train.max_steps=150", "train.global_batch_size=8", "optimizer.learning_rate=0.01")
    assert start("style", *more, "data.document_masks=true") == 0
    ask = ["--prompt", "3+4", "--temperature", "0", "--max-new-tokens", "24", "--precision", "fp32"]
    capsys.readouterr()
    assert main(["generate", "runs/style", "--chat", *ask]) == 0
    answer = capsys.readouterr().out.partition("assistant: ")[2].strip()
    assert answer.startswith("It is ") and answer.endswith("."), answer
    assert main(["generate", "runs/tiny", "--chat", *ask]) == 2
    assert "no chat template" in capsys.readouterr().err
    tokenizer = open_weights(project / "runs/style").tokenizer()
    prompt = tokenizer.decode(chat_prompt(tokenizer, "3+4").ids[1:])
    assert main(["generate", "runs/tiny", *ask[2:], "--prompt", prompt]) == 0
    assert "It is" not in capsys.readouterr().out.removeprefix(prompt)


def test_another_tokenizer_is_refused_by_a_token_and_one_with_more_tokens_by_the_numbers(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = json.loads(open_weights(project / "runs/tiny").tokenizer().files()["tokenizer.json"])
    more = [*own["added_tokens"], own["added_tokens"][0] | {"id": 257, "content": "<|new|>"}]
    swapped = own["model"]["vocab"] | {"!": own["model"]["vocab"]['"'], '"': own["model"]["vocab"]["!"]}
    for name, content in {
        "more": own | {"added_tokens": more},
        "swapped": own | {"model": own["model"] | {"vocab": swapped}},
    }.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    took = ["data.tokenizer.type=file", f"data.tokenizer.path={tmp_path}"]
    assert start("swapped", took[0], f"{took[1]}/swapped.json") == 2
    assert """the token '"' has the id 33, and 34 there; take the weights' own""" in capsys.readouterr().err
    assert start("more", took[0], f"{took[1]}/more.json") == 2
    refused = capsys.readouterr().err
    assert "model.vocab_size 257" in refused and "smaller than the 258 tokens" in refused
    assert "set model.vocab_size to 258 to add rows" in refused
    assert start("more", took[0], f"{took[1]}/more.json", "model.vocab_size=258", "train.max_steps=1") == 0
    assert open_checkpoint(Path("runs/more")).shape("embedding.weight", "master") == (258, 32)


def test_a_damaged_source_ends_the_start_with_one_message(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(open_weights(project / "runs/tiny").path, copy)
    file = max(copy.iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert start("damaged", f"train.init_from={copy}") == 1
    printed = capsys.readouterr().err
    assert str(file) in printed and "Traceback" not in printed
