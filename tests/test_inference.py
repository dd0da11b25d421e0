"""`llmkit generate` and `llmkit evaluate` on a run that was trained for them."""

from __future__ import annotations

import math
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import llmkit
from llmkit.cli import main
from llmkit.config.custom_model import CustomModel
from llmkit.data.building.parts import held_out
from llmkit.inference import evaluate_weights, load_model
from llmkit.parallel.mesh import Mesh, TensorParallel
from llmkit.precision import PRECISIONS
from llmkit.weights import CheckpointWeights, open_weights
from tests.examples.project import forgotten
from tests.program import make_project, rows, train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("inference")
    make_project(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", "tiny.yaml", "train.max_steps=30", "data.document_masks=true"]) == 0
    return folder / "runs" / "tiny"


@pytest.fixture(autouse=True)
def beside_the_corpus(run, monkeypatch):
    monkeypatch.chdir(run.parents[1])


def test_evaluate_gives_the_held_out_loss_of_training(run, capsys):
    assert main(["evaluate", str(run), "--precision", "fp32"]) == 0
    printed = capsys.readouterr().out
    (wanted,) = (row for row in rows(run) if "eval_loss" in row)
    loss = float(re.search(r"held-out loss\s+([\d.]+)", printed)[1])
    assert loss == pytest.approx(wanted["eval_loss"], abs=1e-4)
    assert float(re.search(r"perplexity\s+([\d.]+)", printed)[1]) == pytest.approx(math.exp(loss), rel=1e-3)
    bits = float(re.search(r"bits per byte\s+([\d.]+)", printed)[1])
    assert bits == pytest.approx(wanted["eval_bits_per_byte"], abs=1e-4)


def test_a_run_in_fp8_is_evaluated_as_it_evaluates_itself_and_goes_on_in_bf16(project, capsys, monkeypatch):
    monkeypatch.chdir(project)
    assert train("train.precision=fp8", "train.max_steps=4", "model.hidden_dropout=0") == 0
    loss = float(re.search(r"held-out loss\s+([\d.]+)", capsys.readouterr().out)[1])
    assert main(["evaluate", "runs/tiny"]) == 0
    assert float(re.search(r"held-out loss\s+([\d.]+)", capsys.readouterr().out)[1]) == loss
    assert main(["evaluate", "runs/tiny", "--precision", "bf16"]) == 0
    other = float(re.search(r"held-out loss\s+([\d.]+)", capsys.readouterr().out)[1])
    assert other != loss and other == pytest.approx(loss, rel=0.01)
    assert train("train.precision=bf16", "train.max_steps=6", "model.hidden_dropout=0") == 0
    assert re.search(r"train\.precision: .?fp8.? -> .?bf16", capsys.readouterr().out)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_tensor_parallel_rank_reads_its_slices_alone(run, rank, monkeypatch):
    stored, read = open_weights(run), []

    class Noted(CheckpointWeights):
        def read(self, name, region):
            tensor = super().read(name, region)
            read.append(tensor.numel())
            return tensor

    monkeypatch.setattr(Mesh, "tensor_parallel", lambda self, heads, sequence: TensorParallel(rank, 2))
    mesh = Mesh(rank, 2, {"tensor": 2})
    bf16 = PRECISIONS["bf16"]
    model = load_model(Noted(stored.checkpoint), torch.device("cpu"), bf16, mesh)
    own = sum(parameter.numel() for parameter in model.parameters())
    whole = sum(parameter.numel() for parameter in load_model(stored, torch.device("cpu"), bf16).parameters())
    assert own < 0.6 * whole and sum(read) <= own
    for name, parts in model.parameter_slices().items():
        parameter = model.get_parameter(name)
        assert parameter.dtype == torch.bfloat16
        for part in parts:
            wanted = stored.read(part.name, part.box).bfloat16()
            assert torch.equal(parameter[part.start : part.stop], wanted), name


def test_evaluate_on_other_data_needs_no_settings_of_a_run(run, capsys):
    """As for weights that no run of ours has made."""
    weights = open_weights(run)
    bare = SimpleNamespace(
        path=weights.path, origin="here", config={}, model=weights.model,
        tokenizer=weights.tokenizer, read=weights.read,
    )  # fmt: skip
    with pytest.raises(llmkit.UserError, match="no text is held out; name data with --data"):
        evaluate_weights(bare, "fp32", None, print)
    loss = evaluate_weights(bare, "fp32", "corpus/001.txt", print).loss
    assert loss == pytest.approx(evaluate_weights(weights, "fp32", "corpus/001.txt", print).loss, rel=1e-6)


def test_held_out_loss_equals_one_document_at_a_time(run):
    """The definition itself: each held-out document behind an end-of-text, and the end after it."""
    weights = open_weights(run)
    model = load_model(weights, torch.device("cpu"), PRECISIONS["fp32"])
    tokenizer = weights.tokenizer()
    from llmkit.config.load import load
    from llmkit.data.building.prepare import prepare

    (held,) = prepare(load("tiny.yaml").config.data, lambda line: None).heldout.values()
    nats, targets = 0.0, 0
    for number in range(held.index.documents):
        text = tokenizer.decode(held.document(number))
        ids = [tokenizer.end_of_text_id, *tokenizer.encode(text).tolist(), tokenizer.end_of_text_id]
        targets += len(ids) - 1
    assert targets == held.tokens - 1
    stream = torch.from_numpy(held.read(0, held.tokens)).long()
    ends = (stream == tokenizer.end_of_text_id).int().cumsum(0)
    for start in range(0, len(stream) - 1, 32):
        row = stream[start : start + 33]
        documents = ends[start : start + len(row) - 1]
        for document in documents.unique():
            here = torch.nonzero(documents == document).flatten()
            logits = torch.stack([model.logits(row[None, here[0] : place + 1])[0] for place in here])
            nats += torch.nn.functional.cross_entropy(logits, row[here + 1], reduction="sum").item()
    (wanted,) = (r for r in rows(run) if "eval_loss" in r)
    assert nats / targets == pytest.approx(wanted["eval_loss"], rel=1e-5)


def test_generate_prints_every_prompt_and_the_same_text_for_a_seed(run, capsys):
    command = [
        "generate",
        str(run),
        "--prompt",
        "the model",
        "--prompt",
        "every",
        "--max-new-tokens",
        "20",
        "--seed",
        "3",
    ]
    outputs = []
    for _ in range(2):
        assert main(command) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
    assert outputs[0].startswith("the model")
    assert "\nevery" in outputs[0]


def test_generate_without_cache_gives_the_same_text(run, capsys):
    command = ["generate", str(run), "--prompt", "the", "--max-new-tokens", "50", "--precision", "fp32"]
    assert main(command) == 0
    cached = capsys.readouterr().out
    assert main([*command, "--no-cache"]) == 0
    assert capsys.readouterr().out == cached


def test_a_checkpoint_folder_can_be_named_alone(run, capsys):
    folder = next((run / "checkpoints").iterdir())
    assert main(["generate", str(folder), "--prompt", "a", "--max-new-tokens", "3"]) == 0


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["generate", "nowhere", "--prompt", "x"], "nowhere"),
        (["evaluate", "corpus"], "no checkpoint"),
        (["generate", "runs/tiny", "--prompt", "x", "--top-p", "2"], "top-p"),
    ],
)
def test_bad_input(command, says, capsys):
    assert main(command) == 2
    assert says in capsys.readouterr().err


def heldout_number(texts: list[Path]) -> int:
    """Which of the texts is held out."""
    return int(held_out(0, np.arange(len(texts)), 20).argmax())


def test_evaluate_refuses_another_held_out_text(tmp_path, monkeypatch, capsys):
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["train", "tiny.yaml", "train.max_steps=2"]) == 0
    texts = sorted(Path("corpus").iterdir())
    heldout = texts[heldout_number(texts)]
    heldout.write_text(heldout.read_text().upper())
    assert main(["evaluate", "runs/tiny"]) == 2
    message = capsys.readouterr().err
    assert "source text-0 has other held-out text; put the files back" in message
    assert "--allow-data-change" not in message


def test_evaluate_asks_for_the_held_out_text_alone_and_tells_what_it_builds(tmp_path, monkeypatch, capsys):
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["train", "tiny.yaml", "train.max_steps=2"]) == 0
    assert main(["evaluate", "runs/tiny"]) == 0
    before = capsys.readouterr().out.splitlines()[-4:]
    texts = sorted(Path("corpus").iterdir())
    learned = texts[heldout_number(texts) - 1]
    learned.write_text(learned.read_text().upper())
    assert main(["evaluate", "runs/tiny"]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines() == before
    assert "data: text-0: 40 documents" in printed.err


def test_a_parameter_without_dimensions_is_read():
    with forgotten():

        @llmkit.register("model", "number-test-model")
        class Number(llmkit.Model):
            def __init__(self, config, context):
                super().__init__()
                self.scale = torch.nn.Parameter(torch.empty(()))

        name = "number-test-model"
        stored = CustomModel(name, 11, 4, 1, 6, {"type": name}).to_dict()
        number = torch.tensor(2.5)
        weights = SimpleNamespace(config={}, origin="here", model=stored, read=lambda *_: number)
        model = load_model(weights, torch.device("cpu"), PRECISIONS["fp32"])
    assert model.scale.shape == () and float(model.scale) == 2.5
