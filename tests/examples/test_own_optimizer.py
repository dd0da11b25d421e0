"""The example of an own optimizer and schedule, against the same arithmetic by hand."""

from __future__ import annotations

import pytest
import torch

import llmkit
from llmkit.batch import IGNORE, Batch
from llmkit.cli import main
from llmkit.config.load import load
from llmkit.engine.native import NativeEngine
from llmkit.model.initial import InitialWeights
from llmkit.optim.schedule import lr_factor
from llmkit.precision import PRECISIONS
from tests.examples.project import project, rows
from tests.program import train
from tests.shapes import LLAMA_STYLE, random_model

SETTINGS = """\
optimizer: {name: lion, learning_rate: 0.003, beta: 0.9}
schedule: {name: inverse-sqrt, warmup_steps: 3}
"""
TOKENS = torch.randint(101, (2, 9), generator=torch.Generator().manual_seed(2))
BATCH = Batch(TOKENS, TOKENS.roll(-1, 1).masked_fill(torch.arange(9) == 8, IGNORE))


@pytest.fixture
def folder(tmp_path):
    with project(tmp_path, "own_optimizer", SETTINGS, drop=("optimizer", "schedule")) as folder:
        yield folder


def test_it_trains_and_resumes_as_if_it_had_not_stopped(folder):
    assert train() == 0
    assert train("run.name=twice", "train.max_steps=5", "checkpoint.every_steps=0") == 0
    assert train("run.name=twice") == 0
    losses = rows(folder)
    assert rows(folder, run="twice") == losses and losses[-1] < losses[0] - 0.2
    rates = rows(folder, "learning_rate")
    assert rates[1:6] == pytest.approx([0.002, 0.003, *(0.003 * (3 / step) ** 0.5 for step in (4, 5, 6))])


def test_each_update_is_lions(folder):
    config = load("tiny.yaml").config
    engine = NativeEngine(
        random_model(LLAMA_STYLE), config.optimizer, precision=PRECISIONS["fp32"], gradient_clipping=0.0
    )
    before = {name: p.detach().clone() for name, p in engine.model.named_parameters()}
    momentum = {name: torch.zeros_like(p) for name, p in before.items()}
    engine.write_pieces(InitialWeights(engine.model, 1), 0)
    with torch.no_grad():
        for name, parameter in engine.model.named_parameters():
            parameter.copy_(before[name])
    for step in range(3):
        model = random_model(LLAMA_STYLE)
        model.load_state_dict(before)
        (model(BATCH).nats.sum() / 16).backward()
        engine.train_step([BATCH], 16)
        for name, parameter in model.named_parameters():
            decay = 0.1 if parameter.dim() > 1 else 0.0
            direction = (0.9 * momentum[name] + 0.1 * parameter.grad).sign()
            before[name] = parameter.detach() * (1.0 - 0.003 * decay) - 0.003 * direction
            momentum[name] = 0.9 * momentum[name] + 0.1 * parameter.grad
            trained = dict(engine.model.named_parameters())[name]
            wrong = (trained - before[name]).abs() > 1e-5
            assert int(wrong.sum()) <= 0.01 * wrong.numel(), (
                step,
                name,
            )  # signs of what is 0 but for rounding
            before[name] = trained.detach().clone()


def test_its_checkpoint_is_fixed_to_it_and_its_settings_are_warned_about(folder, capsys):
    assert train("train.max_steps=1") == 0
    assert train("optimizer.beta=0.95", "train.max_steps=2") == 0
    assert "changed since the checkpoint: optimizer.beta: 0.9 -> 0.95" in capsys.readouterr().out


def test_an_optimizer_of_full_tensors_is_refused_where_they_are_cut(folder, capsys):
    load("tiny.yaml")
    from llmkit.registry import find

    component = find("optimizer", "lion")
    component.make.elementwise = False
    for override in ("parallel.zero_stage=2", "parallel.tensor_parallel_size=2"):
        assert main(["config", "tiny.yaml", override]) == 2
        problem = capsys.readouterr().err
        assert (
            "optimizer.name" in problem
            and "it needs full tensors" in problem
            and override.split("=")[0] in problem
        )


def test_a_schedule_that_gives_no_number_is_named(folder):
    config = load("tiny.yaml").config
    llmkit.register("schedule", "broken")(lambda step, span, settings: None)
    broken = config.schedule.model_copy(update={"name": "broken"})
    with pytest.raises(llmkit.UserError, match=r"schedule 'broken' .* gave None for step 7"):
        lr_factor(7, 10, broken)
