"""`llmkit plan` from the command line: pages, JSON, comparisons, and what it refuses."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from llmkit.cli import main
from llmkit.estimate.devices import Hardware
from llmkit.planner import sweep
from tests.program import environment

ROOT = Path(__file__).parents[2]
LLAMA = str(ROOT / "configs/models/llama-3.1-8b.yaml")
RECIPE = str(ROOT / "configs/recipes/llama-3.1-8b.yaml")
SMALL = str(ROOT / "configs/recipes/gpt2-124m.yaml")


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """No sentence goes on in a next line."""
    monkeypatch.setenv("COLUMNS", "1000")


def plan(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["plan", *arguments]) == 0
    return capsys.readouterr().out


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["plan", *arguments]) == 2
    return capsys.readouterr().err


def test_a_page_has_all_parts(capsys):
    page = plan(
        capsys, RECIPE, "--device", "h100", "--nodes", "8", "--tokens", "300b", "--loss", "2.1",
        "--price-per-hour", "2.5", "monitor.grid_gco2_per_kwh=400",
    )  # fmt: skip
    for part in (
        "8.03B parameters", "64 x h100 (8 nodes of 8", "memory of a process", "1 - asked", "moments",
        "activations",
        "a step of 1", "matmul", "attention", "gradients and weights", "tokens/s", "MFU", "HFU",
        "the run of 300B tokens", "device-hours", "kWh", "USD", "CO2", "between saves", "Daly", "host memory",
        "disk for checkpoints", "network of a node", "Chinchilla 1", "Chinchilla 3, refitted", "Kaplan",
        "tokens to the loss", "accelerate launch", "llmkit submit", "parallel.zero_stage=",
    ):  # fmt: skip
        assert part in page, part
    assert "assumed" not in page and "does not fit" in page, "the layout of the file: DDP"


def test_a_model_alone_is_enough_and_torch_is_not_imported():
    script = (
        "import sys\nfrom llmkit.cli import main\n"
        f"code = main(['plan', {LLAMA!r}, '--device', 'h100', '--nodes', '8'])\n"
        "heavy = 'torch', 'transformers', 'datasets', 'deepspeed', 'accelerate', 'tokenizers'\n"
        "print('CODE', code, [name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], env=environment(), text=True, capture_output=True)
    assert done.stdout.splitlines()[-1] == "CODE 0 []", done.stdout + done.stderr
    assert "leaves it open: data.sources=[{type: text, path: DATA}]" in done.stdout


def test_parts_stand_beside_those_of_the_layout_that_is_asked_for(capsys):
    other = plan(capsys, SMALL, "--device", "h100", "parallel.activation_checkpointing=full")
    assert "1 - asked" in other and "recompute" in other
    best = plan(capsys, SMALL, "--device", "h100", "parallel.layout=auto")
    assert "memory of a process of 1: " in best and "1 - asked" not in best
    assert "largest micro-batch that fits" in other and "and less fit" in best


def test_json_holds_what_the_page_shows(capsys):
    found = json.loads(plan(capsys, SMALL, "--device", "a100", "--json", "--best", "2", "--mtbf", "1000"))
    assert found["version"] == 1 and len(found["layouts"]) == 2
    best = found["layouts"][0]
    memory, step = best["memory"], best["step"]
    assert memory["device_bytes"] == pytest.approx(sum(term["value"] for term in memory["device"]), rel=1e-6)
    assert step["seconds"] == pytest.approx(sum(term["value"] for term in step["parts"]))
    assert step["low"] < step["seconds"] < step["high"]
    assert found["run"]["failures"] == pytest.approx(found["run"]["seconds"] * 8 / 3.6e6)
    assert [row["law"] for row in found["laws"]][-1] == "Kaplan"
    assert {"name", "value", "unit", "formula", "source"} == set(step["parts"][0])


def test_every_figure_is_explained(capsys):
    text = plan(capsys, SMALL, "--device", "h100", "--explain")
    for part in ("devices and links", "memory of a process", "time of a step", "the run", "arXiv"):
        assert part in text
    assert "Grattafiori et al. 2024" in text and "nvlink4: 82% of 450 GB/s" in text


def test_two_layouts_beside_each_other(capsys):
    zero = "parallel.zero_stage=1 parallel.activation_checkpointing=full"
    text = plan(capsys, SMALL, "--device", "h100", "--compare", "", zero)
    assert "A: as it is" in text and f"B: {zero}" in text
    assert "B - A" in text and "recompute" in text and "MFU" in text
    configs = plan(capsys, SMALL, "--device", "h100", "--compare", SMALL, RECIPE)
    assert re.search(r"\nfits +yes +no\n", configs) and "tokens/s" not in configs, "8B is too large for DDP"


def test_layouts_that_are_left_open(capsys):
    text = plan(capsys, SMALL, "--device", "h100", "parallel.layout=auto")
    assert "a start chooses layout 1" in text and "\nasked" not in text
    assert "parallel.layout=given" in text, "the lines realise what is shown"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--device", "h10"], "did you mean h100"),
        (["--device", "h100", "--nodes", "0"], "--nodes is 0; it must be 1 to"),
        (["--device", "h100", "--gpus-per-node", "-1"], "--gpus-per-node is -1"),
        (["--device", "h100", "parallel.tensor_parallel_size=5"], "num_attention_heads 12"),
        (["--device", "h100", "--loss", "1e-300"], "--loss is 1e-300; it must be 0.1 to 20 nats"),
        (["--device", "h100", "--tokens", "1e30"], "--tokens is 1e+30"),
        (["--device", "h100", "--svg", "x.svg"], "--svg goes with --sweep"),
        (["--device", "h100", "--hardware", "none.yaml"], "none.yaml"),
        (["--device", "h100", "--compare", "", "'"], "quotes in it do not match"),
        (["--device", "h100", "--compare", "", "parallel.tensor_parallel_size=8"], "num_attention_heads"),
        (["--device", "h100", "model.vocab_size=auto"], "say how many tokens it has"),
    ],
)
def test_bad_input_is_named(arguments, says, capsys):
    assert says in refusal(capsys, SMALL, *arguments)


def test_what_fits_nowhere_is_told_with_what_would_fit(capsys):
    model = str(ROOT / "configs/models/llama-3.1-405b.yaml")
    message = refusal(capsys, model, "--device", "h100", "--nodes", "2")
    assert "no layout fits on 16 x h100" in message
    assert " nodes of 8 or " in message and "a smaller model, or shorter rows" in message
    assert "\n" not in message.strip()


def test_host_memory_that_is_missing_is_told(capsys):
    """13B on one 4090 can be offloaded, to a host that has the memory."""
    model = str(ROOT / "configs/models/gpt3-13b.yaml")
    alone = (model, "--device", "rtx-4090", "--gpus-per-node", "1")
    message = refusal(capsys, *alone)
    found = re.search(r"it would take ([\d.,]+) GiB of host memory for each node \(--host-memory\)", message)
    assert found is not None and "offload" in message
    enough = str(float(found[1].replace(",", "")) + 1)
    assert "ZeRO-3 x 1, offload" in plan(capsys, *alone, "--host-memory", enough)
    less = str(float(found[1].replace(",", "")) - 1)
    assert "of host memory for each node" in refusal(capsys, *alone, "--host-memory", less)
    page = plan(capsys, *alone, "--host-memory", enough)
    assert "the host has no memory for a copy" in page and "waits for the disk" in page
    assert "waits for the disk" not in plan(capsys, *alone, "--host-memory", "1000")


FORMS: list[list[str]] = [
    ["--loss", "2.1"], ["--explain"], ["--sweep"], ["--compare", "", "parallel.zero_stage=1"],
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form[0])
def test_a_narrow_terminal_shows_every_figure_of_a_wide_one(form, capsys, monkeypatch):
    monkeypatch.setattr(sweep, "MOST_DEVICES", 16)  # few lines of a sweep show it, and each takes its time
    given = [SMALL, "--device", "h100", "--nodes", "2", *form]
    wide = plan(capsys, *given)
    monkeypatch.setenv("COLUMNS", "80")
    narrow = plan(capsys, *given)
    assert max(map(len, narrow.splitlines())) <= 80 < max(map(len, wide.splitlines()))
    found, expected = (Counter(re.findall(r"[\w.,%+/=:-]*\d[\w.,%+/=:-]*", text)) for text in (narrow, wide))
    assert found == expected


def test_a_layout_whose_host_is_too_small_does_not_fit(capsys):
    """The layout that is asked for is offloaded to a host that has room for little more than a process."""
    usual = [SMALL, "--device", "h100", "--gpus-per-node", "1"]
    given = ["parallel.zero_stage=2", "parallel.offload=cpu", "train.micro_batch_size=4"]
    page = plan(capsys, *usual, "--host-memory", "5", *given)
    assert re.search(r"asked +ZeRO-2 x 1, offload, micro-batch 4 +[\d.]+ GiB +does not fit", page)
    assert re.search(r"does not fit: a process needs [\d.]+ GiB of its host, and has 5.0 GiB", page)
    assert "a host is taken to have" not in page and "--host-memory" in plan(capsys, *usual)


def test_rows_that_only_fill_are_told(capsys):
    text = plan(capsys, SMALL, "--device", "h100", "train.global_batch_size=9")
    found = re.search(r"(\d) of the (\d+) rows that layout 1 computes in a step only fill", text)
    assert found is not None and int(found[2]) - int(found[1]) == 9
    assert "only fill" not in plan(capsys, SMALL, "--device", "h100", "train.global_batch_size=16")


def test_devices_of_ones_own(tmp_path, capsys):
    file = tmp_path / "ours.yaml"
    file.write_text("devices: {slow: {like: h100, bf16_tflops: 100, source: measured here}}\n")
    found = json.loads(plan(capsys, SMALL, "--device", "slow", "--hardware", str(file), "--json"))
    usual = json.loads(plan(capsys, SMALL, "--device", "h100", "--json"))
    assert found["fleet"]["device"]["source"].startswith("measured here")
    assert found["layouts"][0]["step"]["seconds"] > 3 * usual["layouts"][0]["step"]["seconds"]


def test_a_layout_that_is_refused_is_told_beside_those_that_are_not(capsys):
    """A rank has 64 rows; 128 divide the 512 of all ranks."""
    text = plan(capsys, SMALL, "--device", "h100", "train.micro_batch_size=128")
    assert "\nasked" not in text and "the layout that is asked for is refused: " in text
    assert "train.micro_batch_size 128" in text and re.search(r"\n1 +(DDP|ZeRO)", text)


def test_numbers_and_units_of_options(capsys):
    with pytest.raises(SystemExit):
        main(["plan", SMALL, "--device", "h100", "--tokens", "many"])
    assert "no positive number" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["plan", SMALL])
    assert "--device" in capsys.readouterr().err


CASES = [(SMALL, device) for device in Hardware().devices]
CASES += [(str(path), "h100") for path in sorted((ROOT / "configs/models").iterdir())]


@pytest.mark.exhaustive
@pytest.mark.parametrize(("config", "device"), CASES)
def test_every_device_and_every_model_has_a_plan(config, device, capsys):
    found = json.loads(plan(capsys, config, "--device", device, "--nodes", "16", "--json", "--best", "20"))
    for layout in found["layouts"]:
        step, memory = layout["step"], layout["memory"]
        assert 0.01 < step["mfu"] <= step["hfu"] < 0.75
        assert memory["device_bytes"] <= memory["available"]
    fastest = min(layout["step"]["seconds"] for layout in found["layouts"])
    assert found["layouts"][0]["step"]["seconds"] <= 1.01 * fastest
