"""Measures llmkit's loader beside its peers: token shards, and text tokenized while training.

Contenders take turns, each turn in a process of its own, over the same tokens. Writes CPU and wall time,
the latency of the first batch and memory as a Markdown page, and prints it. With --peers-python litdata,
mosaicml-streaming and grain run in the environment of that interpreter, as their pins need one. With
--against llmkit's own contenders are also those of another checkout, turn by turn beside those of this one.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks import machine
from benchmarks.command_line import progress
from benchmarks.data_contenders import MODULES, NAMES, find
from benchmarks.data_corpus import Facts, make_corpus, read_facts
from benchmarks.data_page import Outcome, page
from benchmarks.timing import reason

ROOT = Path(__file__).resolve().parents[1]
LIVE_TOKENS = 6_000_000
"""Of a live window: tokenizing takes a hundred times as long as reading."""
LONGEST_SECONDS = 900
"""A turn that is not done by then is given up."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    options = parse(arguments)
    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        load = os.getloadavg()[0]
        corpus = folder / "corpus"
        if not (corpus / "facts.json").exists():
            progress("writing the corpus")
            make_corpus(corpus, options.tokens)
        facts = read_facts(corpus)
        outcomes = run_all(options, folder, facts)
    today, device = datetime.date.today().isoformat(), machine.device_name(torch.device("cpu"))
    conditions = {
        "device": f"{device}, {len(os.sched_getaffinity(0))} cores",
        "load before and after": f"{load:.1f}, {os.getloadavg()[0]:.1f} (1 minute)",
        "commit": machine.commit(),
        "command": f"`{command_line(options)}`",
    }
    if options.against:
        conditions["before"] = f"commit {machine.commit(options.against)}"
    text = page(outcomes, facts, conditions, f"Data loading, {today}, {device}")
    results = ROOT / "benchmarks" / "results"
    path = options.output or machine.new_file(results, f"{today}-data-{machine.slug(device)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    print(text)
    progress(f"written to {path}")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; exits with code 2 and a message if something in it is wrong."""
    parser = argparse.ArgumentParser(
        prog="data.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--tokens", type=int, default=96_000_000, help="tokens of the data that is read (default 96 million)")
    add("--seconds", type=float, default=10.0, help="a window is cut after this long (default 10)")
    add("--rounds", type=int, default=3, help="turns of each contender (default 3)")
    names = ", ".join(NAMES)
    add("--contenders", default=",".join(NAMES), metavar="A,B", help=f"among {names} (default: all)")
    add("--peers-python", type=Path, default=Path(sys.executable), help="interpreter that has the peers")
    add("--against", type=Path, help="checkout of another commit, whose own contenders take turns with these")
    add("--folder", type=Path, help="where the data goes and stays; default: a temporary folder")
    add("--output", type=Path, help="the page (default: a new file in results/)")
    options = parser.parse_args(arguments)
    options.contenders = options.contenders.split(",")
    for name in options.contenders:
        if name not in NAMES:
            parser.error(f"--contenders: {name!r} is not among {', '.join(NAMES)}")
    if options.against and not (options.against / "benchmarks" / "data_turn.py").is_file():
        parser.error(f"--against: {options.against} is no checkout with benchmarks/data_turn.py")
    if min(options.tokens // 100_000, options.rounds) < 1 or options.seconds <= 0:
        parser.error("--tokens must be 100000 or more, --rounds and --seconds more than 0")
    return options


def command_line(options: argparse.Namespace) -> str:
    """The command that repeats the measurement, without the folders of this machine."""
    peers = "" if options.peers_python == Path(sys.executable) else " --peers-python PYTHON"
    against = " --against CHECKOUT" if options.against else ""
    return (
        f"python -m benchmarks.data --tokens {options.tokens} --seconds {options.seconds:g} "
        f"--rounds {options.rounds} --contenders {','.join(options.contenders)}{peers}{against}"
    )


def run_all(options: argparse.Namespace, folder: Path, facts: Facts) -> list[Outcome]:
    """Writes every data set, then lets the contenders take turns; one that fails says why."""
    outcomes = []
    for key in options.contenders:
        outcomes.append(Outcome(key, find(key)))
        if options.against and key in MODULES["own"]:
            outcomes.append(Outcome(key, find(key), options.against.resolve()))
    for each in outcomes:
        place = data_folder(folder, each)
        done = place.with_suffix(".written")
        if each.contender.write is not None and not done.exists():
            progress(f"{each.label}: writing {each.contender.data}")
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
            each.take(turn("write", each, folder, options, 0))
            if not each.failed:
                done.touch()
    for number in range(options.rounds):
        for each in outcomes:
            if each.failed:
                continue
            live = each.contender.kind == "live"
            tokens = min(LIVE_TOKENS, facts.text_tokens // 2) if live else facts.tokens // 2
            each.take(turn("measure", each, folder, options, tokens))
            progress(f"round {number + 1}, {each.label}: {each.failed or each.rounds[-1]}")
    return outcomes


def data_folder(folder: Path, each: Outcome) -> Path:
    """Where the contender's data set lies; each checkout writes its own."""
    if each.contender.write is None:
        return folder / "corpus"
    return folder / (machine.slug(each.contender.data) + ("-before" if each.before else ""))


def turn(what: str, each: Outcome, folder: Path, options: argparse.Namespace, tokens: int) -> dict[str, Any]:
    """Lets a process do it; returns what it left, or {"failed": why}."""
    python = options.peers_python if each.contender.peer else Path(sys.executable)
    place, checkout = data_folder(folder, each), each.before or ROOT
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch, ignore_cleanup_errors=True) as own:
        result, log = Path(own, "result.json"), Path(own, "log")
        files = [str(path.resolve()) for path in (folder / "corpus", place, result)]
        # Not -m: processes that a contender spawns would import the module and all that it imports.
        start = (
            "import os, llmkit; assert llmkit.__file__.startswith(os.getcwd() + os.sep), llmkit.__file__; "
            "from benchmarks.data_turn import run; run()"
        )
        command = [str(python), "-c", start, what, each.key, *files]
        command += [str(tokens), str(options.seconds)]
        environment = {
            **os.environ,
            "PYTHONPATH": str(checkout),
            "TMPDIR": own,
            "HF_HOME": own,
            "HF_HUB_OFFLINE": "1",
        }
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, cwd=checkout, env=environment, stdout=output, stderr=output, start_new_session=True
            )
            try:
                process.wait(LONGEST_SECONDS)
            except subprocess.TimeoutExpired:
                return {"failed": f"not done after {LONGEST_SECONDS} s"}
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # workers that outlived it
                process.wait()
        if result.exists():
            return json.loads(result.read_text())
        lines = log.read_text(errors="replace").strip().splitlines()[-1:]
        return {"failed": reason(RuntimeError(lines[0] if lines else f"exit code {process.returncode}"))}


if __name__ == "__main__":
    sys.exit(main())
