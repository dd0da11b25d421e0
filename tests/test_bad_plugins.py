"""What plugins can get wrong, as a user of the command line sees it; and what a right one adds."""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path

import pytest

from llmkit import registry
from llmkit.cli import main
from tests.examples.project import forgotten, rows, write_config
from tests.program import make_project, train

MODEL = """
import torch
from torch import nn
import llmkit


@llmkit.register("model", "tiny")
class Tiny(llmkit.Model):
    def __init__(self, config, context):
        super().__init__()
        self.table = nn.Embedding(context.vocab_size, context.vocab_size)

    def forward(self, batch):
        loss = llmkit.LossSum.of_logits(self.table(batch.tokens), batch.labels)
        return RESULT
"""


def model_that_returns(result: str) -> str:
    """A plugin with a model whose `forward` returns this."""
    return MODEL.replace("RESULT", result)


@pytest.fixture
def with_plugin(tmp_path, monkeypatch):
    """A project with this text as its plugin, which is forgotten afterwards."""
    make_project(tmp_path)
    write_config(tmp_path, "plugins: [plug]\nmodel: {type: tiny}\n", drop=("model",))
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> None:
        (tmp_path / "plug.py").write_text(textwrap.dedent(text))

    with forgotten("plug"):
        yield write


def refusal(capsys, *arguments: str, code: int = 2) -> str:
    """The message of a command that is refused without a traceback."""
    assert main([*arguments]) == code
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


def test_a_plugin_that_cannot_be_imported_is_named_with_both_lines(with_plugin, capsys):
    with_plugin("\n\nprint(undefined)\n")
    message = refusal(capsys, "config", "tiny.yaml")
    line = Path("tiny.yaml").read_text().splitlines().index("plugins: [plug]") + 1
    assert f"tiny.yaml:{line}: the plugin plug cannot be imported: NameError: " in message
    assert "plug.py:3)" in message


def test_a_plugin_that_is_not_there_is_named_beside_other_mistakes(with_plugin, capsys):
    message = refusal(capsys, "config", "tiny.yaml", "plugins=[nothing_here]", "train.max_step=3")
    assert "the plugin nothing_here cannot be imported: there is no module nothing_here" in message
    assert "train.max_step is an unknown key" in message
    assert "model.type must be gpt" in message and "a plugin registers" in message


@pytest.mark.parametrize("value", ["7", "[7]", "['no module']", "plug"])
def test_plugins_that_are_no_list_of_modules_are_refused(with_plugin, capsys, value):
    with_plugin(model_that_returns("loss"))
    assert "plugins must be a list of text" in refusal(capsys, "config", "tiny.yaml", f"plugins={value}")


def test_a_name_taken_twice_is_refused_with_both_places(with_plugin, capsys):
    second = "\n\n@llmkit.register('model', 'tiny')\nclass Other(Tiny):\n    pass\n"
    with_plugin(model_that_returns("loss") + second)
    message = refusal(capsys, "config", "tiny.yaml")
    assert "the model 'tiny' is registered twice, by plug.Tiny and by plug.Other; rename one" in message


def test_what_is_no_model_is_refused(with_plugin, capsys):
    with_plugin("import llmkit\n\n@llmkit.register('model', 'tiny')\nclass Tiny:\n    pass\n")
    assert "plug.Tiny is no subclass of llmkit.Model" in refusal(capsys, "config", "tiny.yaml")


@pytest.mark.parametrize(
    ("loss", "problem"),
    [
        ("loss.nats.sum() / loss.targets.sum()", "it returned a tensor of shape ()"),
        (
            "loss._replace(nats=loss.nats.sum())",
            "its nats must be a tensor of shape (4,), and",
        ),
        ("loss._replace(nats=loss.nats.bfloat16())", "its nats must be summed in float32"),
        ("None", "it returned NoneType"),
        ("loss._replace(extras={'sizes': loss.nats})", "its extra 'sizes' must be a tensor without"),
    ],
)
def test_a_loss_of_the_wrong_form_is_refused_at_the_first_step(with_plugin, capsys, tmp_path, loss, problem):
    with_plugin(model_that_returns(loss))
    message = refusal(capsys, "train", "tiny.yaml")
    assert "forward(batch) of Tiny must return llmkit.LossSum(nats, targets)" in message
    assert problem in message
    events = [json.loads(line) for line in (tmp_path / "runs/tiny/events.jsonl").read_text().splitlines()]
    assert events[-1]["event"] == "fault" and problem in json.dumps(events[-1])


def test_a_loss_without_a_gradient_is_refused(with_plugin, capsys):
    with_plugin(model_that_returns("loss._replace(nats=loss.nats.detach())"))
    assert "forward(batch) of Tiny returns has no gradient" in refusal(capsys, "train", "tiny.yaml")


def test_an_extra_of_the_name_of_a_column_is_refused(with_plugin, capsys):
    with_plugin(model_that_returns("loss._replace(extras={'loss': loss.nats.sum()})"))
    assert "'loss' is a column of llmkit's own" in refusal(capsys, "train", "tiny.yaml")


def test_a_constructor_that_reads_values_is_told_that_there_are_none(with_plugin):
    text, reads = model_that_returns("loss"), "        self.table.weight.max().item()\n"
    with_plugin(text.replace("\n    def forward", f"{reads}\n    def forward"))
    with pytest.raises(RuntimeError) as failed:
        main(["config", "tiny.yaml"])
    assert "Tiny is first built on torch's meta device, without values" in failed.value.__notes__[0]


def test_parameters_of_another_type_are_refused_before_anything_is_built(with_plugin, capsys):
    wanted = "nn.Embedding(context.vocab_size, context.vocab_size"
    text = model_that_returns("loss").replace(wanted, f"{wanted}, dtype=torch.bfloat16")
    with_plugin(text)
    message = refusal(capsys, "config", "tiny.yaml")
    assert "Tiny makes its parameter table.weight in torch.bfloat16; make it in torch.float32" in message


def test_further_sums_of_a_model_are_columns_of_the_record(with_plugin, tmp_path):
    squares = '{"squares": self.table(batch.tokens).square().sum(), "rows": loss.targets.new_tensor(4.0)}'
    with_plugin(model_that_returns(f"loss._replace(extras={squares})"))
    assert train("train.max_steps=4", "optimizer.weight_decay=0") == 0
    assert rows(tmp_path, "rows") == pytest.approx([4 / 128] * 4)
    penalised = rows(tmp_path, "squares")
    detached = squares.replace(".sum(),", ".sum().detach(),")
    with_plugin(model_that_returns(f"loss._replace(extras={detached})"))
    sys.modules.pop("plug")
    with forgotten("plug"):
        assert train("train.max_steps=4", "optimizer.weight_decay=0", "run.name=plain") == 0
    plain = rows(tmp_path, "squares", "plain")
    assert penalised[0] == pytest.approx(plain[0], rel=1e-6) and penalised[-1] < plain[-1]


def test_a_checkpoint_whose_plugin_has_gone_is_refused_with_what_is_missing(with_plugin, capsys, tmp_path):
    with_plugin(model_that_returns("loss"))
    assert train("train.max_steps=1") == 0
    (tmp_path / "plug.py").unlink()
    sys.modules.pop("plug")
    registry._components.clear()
    capsys.readouterr()
    message = refusal(capsys, "evaluate", "runs/tiny")
    assert "the plugin plug cannot be imported: there is no module plug" in message


def test_a_sink_that_takes_nothing_is_dropped_and_the_run_ends_well(
    with_plugin, capsys, monkeypatch, tmp_path
):
    monkeypatch.setattr("llmkit.monitor.sink.CLOSE_SECONDS", 0.2)
    stuck = """
    import threading


    @llmkit.register("sink", "stuck")
    class Stuck(llmkit.Sink):
        def write(self, row):
            threading.Event().wait()
    """
    with_plugin(model_that_returns("loss") + textwrap.dedent(stuck))
    assert main(["train", "tiny.yaml", "train.max_steps=2", "monitor.sinks=[{type: stuck}]"]) == 0
    assert "the metric sink Stuck is dropped: it has not taken its last rows" in capsys.readouterr().out
    assert rows(tmp_path, "tokens_per_second")
