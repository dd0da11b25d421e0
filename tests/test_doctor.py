"""`llmkit doctor`: a page about this machine that is safe to show."""

from __future__ import annotations

import pytest
import torch

from llmkit import doctor
from llmkit.cli import main
from llmkit.doctor import findings
from llmkit.monitor.energy import Counter, Sources


def test_it_tells_versions_devices_backends_wandb_and_disk(capsys):
    assert main(["doctor"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["torch"] == torch.__version__
    assert "cores" in lines["cpu"] and "gloo" in lines["backends"] and "GiB free" in lines["disk"]
    assert {"llmkit", "deepspeed", "gpus", "precision", "peak", "slurm", "wandb"} <= set(lines)


def test_counters_of_energy_are_named_and_why_there_are_none(monkeypatch):
    counter = Counter("rapl", "intel-rapl:0 package-0", lambda: 0.0)
    for found, line in (
        (Sources([counter], {}), "rapl intel-rapl:0 package-0"),
        (Sources([], {"rapl": "for root alone"}), "none; no rapl: for root alone"),
    ):
        monkeypatch.setattr(doctor, "find_sources", lambda device, found=found: found)
        assert dict(findings({}))["energy"] == line


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"WANDB_API_KEY": "0123456789secret"}, "online at https://api.wandb.ai"),
        ({"HOME": "/nowhere"}, "offline (no API key found)"),
        ({"WANDB_MODE": "disabled"}, "disabled"),
        ({"WANDB_MODE": "sometimes"}, "WANDB_MODE=sometimes: allowed are"),
    ],
)
def test_the_state_of_wandb_is_told_without_its_key(environment, told):
    lines = dict(findings(environment))
    assert lines["wandb mode"].startswith(told)
    assert "secret" not in "".join(lines.values())


def test_all_is_for_parity(capsys):
    assert main(["doctor", "--all"]) == 2
    assert "--all goes with --parity" in capsys.readouterr().err
