"""The page of a run: whole, self-contained, readable without script, and no text of a run becomes markup."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import Counter
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from llmkit.report.page import render
from llmkit.run_folder import RunFolder
from tests.report.runs import EVENTS, START, make_run, row, write_lines

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=1>&amp;\"'<!--\u2028\u202eabc\ud800\x00"
VOID = {"meta", "input", "img", "path"}


class Page(HTMLParser):
    """Checks that elements are balanced; collects elements, attributes, texts."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.text = page.decode()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.contents: dict[str, list[str]] = {}
        self.feed(self.text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.contents.setdefault(self.open[-1], []).append(data)

    def values(self, name: str) -> list[str]:
        return [value for _, attribute, value in self.attributes if attribute == name]


def check_sound(page: Page) -> None:
    """Nothing is loaded, no script but the page's own, names are unique, all labels have their inputs."""
    assert not [value for value in page.values("src") if not value.startswith("data:image/")]
    assert (
        not page.values("href")
        and not page.values("action")
        and page.tags["link"] == page.tags["iframe"] == 0
    )
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert page.tags["script"] == 1 and page.tags["style"] == 1
    policy = next(value for value in page.values("content") if "default-src" in value)
    digest = base64.b64encode(hashlib.sha256("".join(page.contents["script"]).encode()).digest()).decode()
    assert (
        policy
        == f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
    )
    ids = page.values("id")
    assert len(ids) == len(set(ids)) and set(page.values("for")) <= set(ids)
    assert "url(" not in "".join(page.contents["style"]) and "@import" not in "".join(page.contents["style"])


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> Page:
    folder = tmp_path_factory.mktemp("page") / "demo"
    extra = {"lost/save": 5.0, "elapsed_seconds": 90.0, "grad_norm/head": 1.0, "own": 1.0}
    items = [
        {"step": 40, "kind": "table", "name": "samples", "columns": ["prompt"], "rows": [["Once upon"]]},
        {"step": 40, "kind": "histogram", "name": "g", "edges": [0, 1, 2], "counts": [1, 2]},
    ]
    rows = [row(step, **extra) for step in range(1, 41)]
    rows += [{"step": 40, "eval_loss": 3.25, "eval_bits_per_byte": 1.5}, {"step": 40, "eval/arc/acc": 0.25}]
    return Page(render([make_run(folder, rows, media=items)]))


def test_a_page_has_all_parts_and_is_sound(full: Page):
    check_sound(full)
    assert full.contents["h2"] == [
        "Curves", "Where the time went", "Data", "Layers", "Histograms", "Samples and tables",
        "Evaluations by tasks", "Events", "Settings that are not at their defaults", "To make it again",
    ]  # fmt: skip
    assert full.contents["h1"] == ["demo"]
    shown = " ".join(text for texts in full.contents.values() for text in texts)
    for text in (
        "done",
        "step 40 of 40 (100 %)",
        "Once upon",
        "3.2500",
        "OSError: disk",
        "tiny.yaml:",
        "llmkit train",
    ):
        assert text in shown


def test_what_happened_is_marked(full: Page):
    marks = [value for tag, name, value in full.attributes if (tag, name) == ("span", "title")]
    # In four panes of the loss, the gradient norm and the speed.
    for text in ("step 30: fault (OSError: disk)", "step 20: resume (train.max_steps 20 -> 40)"):
        assert marks.count(text) == 6
    assert full.values("class").count("mark save") == 12 + 1  # two saves; and what it means


def test_axes_are_chosen_without_script(full: Page):
    radios = [value for tag, name, value in full.attributes if (tag, name) == ("input", "type")]
    assert radios == ["radio"] * 4 and full.contents["label"] == ["steps", "tokens", "time", "FLOPs"]
    assert "input:nth-of-type(4):checked ~ .panes > .pane:nth-child(4)" in "".join(full.contents["style"])
    assert full.values("checked") == [""]


def test_the_curve_of_the_loss_is_that_of_the_rows(full: Page):
    svg = next(
        n
        for n, (tag, name, value) in enumerate(full.attributes)
        if (name, value) == ("aria-label", "Loss by steps")
    )
    attributes = {name: value for _, name, value in full.attributes[svg : svg + 5]}
    low, high = map(float, attributes["data-y"].split()[:2])
    raw = next(
        value for tag, name, value in full.attributes[svg:] if name == "d" and value.startswith("M25 ")
    )
    first = float(raw[4:].partition("h")[0])
    assert low + (high - low) * (1 - first / 1000) == pytest.approx(4.95, abs=0.01)  # the loss of step 1


def test_the_curves_of_several_runs_have_their_key_beside_them(tmp_path: Path):
    page = render([make_run(tmp_path / name) for name in ("one", "two")]).decode()
    key = page.split("<h2>Curves</h2>")[1].split("<figure")[0]
    assert '<i class="c0"></i>one<' in key and '<i class="c1"></i>two<' in key


def test_the_colours_of_curves_are_seen_on_light_and_dark_pages():
    style = files("llmkit.report").joinpath("page.css").read_text()
    light, dark, printed = style.split("--back: ")[1:]
    for theme, back in ((light, "#ffffff"), (dark, dark.split(";")[0]), (printed, "#ffffff")):
        colors = [re.findall(rf"--c{number}: (#\w{{6}})", theme)[0] for number in range(4)]
        found = [contrast(color, back) for color in colors]
        assert min(found) >= 3.0, found  # WCAG 2.2, 1.4.11


def contrast(one: str, other: str) -> float:
    """The ratio of two colours' relative luminances (WCAG 2.2)."""

    def luminance(color: str) -> float:
        parts = [int(color[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_hostile_text_is_text(tmp_path: Path):
    items = [{"step": 1, "kind": "table", "name": HOSTILE, "columns": [HOSTILE], "rows": [[HOSTILE]]}]
    events = [*EVENTS, {"time": HOSTILE, "event": HOSTILE, "step": 1, "reason": HOSTILE}]
    manifest = {
        "device": HOSTILE,
        "host": HOSTILE,
        "command": ["llmkit", HOSTILE],
        "plugins": {HOSTILE: HOSTILE},
    }
    rows = [
        row(
            1, **{HOSTILE: 1.0, f"loss/{HOSTILE}": 2.0, f"eval/{HOSTILE}/x": 1.0, f"grad_norm/{HOSTILE}": 1.0}
        )
    ]
    run = make_run(tmp_path / "a<b>&'c", rows, events, items, manifest)
    page = Page(render([run]))
    check_sound(page)
    assert page.contents["h1"] == ["a<b>&'c"] and page.tags["img"] == 1  # the picture of the layers
    assert any("<script>alert(1)</script>" in text for text in page.contents["td"])
    check_sound(Page(render([run, make_run(tmp_path / "other")])))


@pytest.mark.parametrize(
    ("rows", "events"),
    [
        ([], []),
        ([], EVENTS[:1]),
        (["\0\0", "{", row(1)], ["nonsense", *EVENTS]),
        ([row(1, **{name: None for name in row(1) if name != "step"})], EVENTS),
        ([{"step": 0, "loss": 1.0}], EVENTS),
        ([row(1, elapsed_seconds=-1e308, epochs=1e308), row(2, elapsed_seconds=1e308)], EVENTS),
        ([row(1)], [START | {"step": 10**30}, {"event": "save", "step": 10**400}]),
        ([row(1)], [START | {"account": {"useful": 1e308, "lost": {"save": [], "data": -1e308}}}]),
        ([row(1, loss=1e300), row(2, loss=-1e300), row(3, loss=1e-300, grad_norm=0.0)], EVENTS),
    ],
)
def test_a_run_that_is_damaged_or_has_nothing_has_a_page(tmp_path: Path, rows, events):
    run = make_run(tmp_path / "run", rows, events, manifest={})
    write_lines(tmp_path / "run/media.jsonl", ["{", "[]"])
    page = Page(render([run]))
    check_sound(page)
    assert not [
        value for name in ("style", "d", "data-x", "data-y") for value in page.values(name) if "nan" in value
    ]
    check_sound(Page(render([run, run])))


def test_a_run_under_way_says_so(tmp_path: Path):
    run = make_run(tmp_path / "run", events=EVENTS[:1])
    held = RunFolder.open(run.folder, "llmkit train")
    page = Page(render([run]))
    held.close()
    assert "running" in page.contents["span"] and "failed" not in page.contents["span"]


def test_several_runs_are_compared(tmp_path: Path):
    one = make_run(tmp_path / "one")
    two = make_run(tmp_path / "two", [row(step, loss=9.0) for step in range(1, 9)], overrides=["run.seed=7"])
    page = Page(render([one, two]))
    check_sound(page)
    assert page.contents["h2"] == ["Runs", "Curves", "Settings that differ"]
    assert "run.seed" in page.contents["th"] and "7" in page.contents["td"]
    assert page.contents["h1"] == ["one | two"]


def test_100_000_rows_make_a_small_page(tmp_path: Path):
    draw = np.random.default_rng(0)
    noise = draw.normal(size=100_000).round(4).tolist()
    line = json.dumps(row(7654321, loss=1.2345)).replace("7654321", "STEP").replace("1.2345", "LOSS")
    run = make_run(
        tmp_path / "run",
        (
            line.replace("STEP", str(step)).replace("LOSS", str(3 + noise[step - 1]))
            for step in range(1, 100_001)
        ),
    )
    page = render([run])
    assert len(page) < 3_000_000 / 10
    check_sound(Page(page))
