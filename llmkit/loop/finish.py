"""The end of a run: what came out, where it lies, what to try next."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from llmkit.checkpoint.read import load as load_checkpoint
from llmkit.data.prepared import PreparedData
from llmkit.errors import UserError
from llmkit.generation.sampling import Sampling
from llmkit.generation.text import stream_text
from llmkit.inference import load_model
from llmkit.loop.report import REPORT, write_report
from llmkit.loop.suggestions import generate_options, is_of_chats
from llmkit.model.base import Model
from llmkit.monitor.cost import JOULES_PER_KWH, money
from llmkit.monitor.events import failure_recorded
from llmkit.monitor.flops import bits_per_byte, perplexity
from llmkit.monitor.text import duration, shown_bits, thousands
from llmkit.prompts import Prompt, chat_prompt, text_prompt
from llmkit.stopping import Stopped
from llmkit.weights import weights_of

if TYPE_CHECKING:
    from llmkit.loop.trainer import Trainer

SAMPLED_PARAMETERS = 10**9
"""Of a model that no process holds whole, at most, for a sample at the end: the others wait for it."""
SAMPLE_TOKENS = 160
"""Length of the sample at the end of a run."""
SAMPLING = Sampling(temperature=1.0)
"""The model's own distribution: at lower temperatures small models soon repeat themselves."""


def finish(t: Trainer) -> None:
    """Marks the run as done and prints its summary; on rank 0 alone. A stop leaves out the sample."""
    if t.mesh.rank > 0:
        return
    state = t.state
    t.console.close()
    found_done = t.folder.is_done
    if found_done:
        early = ", where early stopping ended it" if state.stopped_early else ""
        t.console.note(f"this run is finished since step {state.step}{early}: nothing is left to do")
    else:
        counts = {"tokens": state.tokens, "skipped": state.skipped, "no_targets": state.no_targets}
        with failure_recorded(t.events):
            t.folder.mark_done()
        t.record_event("done", step=state.step, **counts, phase_seconds=dict(t.phases.seconds))
    seen = f"{state.tokens:,} pairs" if t.data.has_pairs else f"{thousands(state.tokens)} tokens"
    facts = {"steps": f"{state.step}, {seen}"}
    if state.skipped:
        facts["skipped"] = f"{state.skipped} updates with a non-finite gradient"
    if state.no_targets:
        facts["no targets"] = f"{state.no_targets} steps whose batch had no target; they changed nothing"
    facts |= heldout_facts(t) | spent_facts(t)
    if not found_done:
        facts["time"] = time_line(t)
    if t.config.monitor.sample is not None:
        t.console.note("")
        try:
            t.stop.give_up(everywhere=True)
            t.console.note(sample(t, t.config.monitor.sample))
        except Stopped as stopped:
            t.console.note(f"no sample: stopped by {stopped}")
        finally:
            t.stop.hold()
        t.console.note("")
    facts["run folder"] = f"{t.folder.path}: checkpoints/, metrics.jsonl, config.yaml, logs/"
    if not found_done and write_report(t):
        facts["report"] = f"{t.folder.path / REPORT}: open it in a browser"
    t.console.summary(facts)
    longer = "evaluate.early_stopping=null" if state.stopped_early else f"train.max_steps={2 * state.step}"
    asks = generate_options(t.config, t.data)
    commands = [f"{_command('generate', t)} {options}" for options in asks]
    if t.heldout and not t.data.has_pairs:
        commands.append(_command("evaluate", t))
    if "report" not in facts:
        commands.append(_command("report", t))
    t.console.note(
        f"\nTry next:\n{''.join(f'  {command}{chr(10)}' for command in commands)}"
        f"or the same command with {longer}, to go on training (it says what becomes of the learning rate)"
    )


def time_line(t: Trainer) -> str:
    """Where the time of the run went, over all its starts."""
    account = t.ledger.now()
    return f"{duration(account.elapsed)}: {account.describe()}"


def command_name() -> str:
    """How the user can call this program again: its name where the shell finds it, else its path."""
    if shutil.which("llmkit"):
        return "llmkit"
    return shlex.quote(sys.argv[0]) if Path(sys.argv[0]).name == "llmkit" else "python -m llmkit"


def _command(name: str, t: Trainer) -> str:
    """A command about the run, as it is typed into a shell."""
    return f"{command_name()} {name} {shlex.quote(str(t.folder.path))}"


def heldout_facts(t: Trainer) -> dict[str, str]:
    """Held-out loss, and bits per byte beside those of general compressors on the same text."""
    loss = t.state.eval_loss
    if loss is None:
        return {} if t.state.evaluated_step is None else {"held-out loss": "not finite"}
    if t.data.has_pairs:
        return {"held-out loss": f"{loss:.4f} a pair"}
    facts = {"held-out loss": f"{loss:.4f} nats a token, perplexity {perplexity(loss):.2f}"}
    assert t.heldout is not None
    bits = bits_per_byte(loss * t.heldout.targets, t.heldout.text_bytes)
    others = compressors_bits_per_byte(t.data)
    beside = "".join(f", {name} {value:.2f}" for name, value in others.items())
    facts["bits per byte"] = f"this model {shown_bits(bits)}{beside}"
    return facts


def spent_facts(t: Trainer) -> dict[str, str]:
    """Energy and cost of all starts of the run, where they are known."""
    spent, facts = t.spending.until_now(), {}
    if spent.energy_kwh is not None:
        parts = [f"{spent.energy_kwh:.4g} kWh"]
        if t.state.tokens:
            unit = "pair" if t.data.has_pairs else "token"
            parts.append(f"{spent.energy_kwh * JOULES_PER_KWH / t.state.tokens:.3g} J a {unit}")
        if spent.co2_grams is not None:
            parts.append(f"{spent.co2_grams:.4g} g of CO2")
        facts["energy"] = ", ".join(parts)
    if spent.cost is not None:
        facts["cost"] = f"{money(spent.cost, t.spending.prices)}, {spent.device_hours:.4g} device-hours"
    return facts


def compressors_bits_per_byte(data: PreparedData) -> dict[str, float]:
    """Bits per byte of general compressors on the held-out text; empty where they were not measured."""
    found: dict[str, float] = {}
    for name, key in (("xz -9e", "xz_bits_per_byte"), ("gzip -9", "gzip_bits_per_byte")):
        indices = [rows.index for rows in data.heldout.values()]
        if data.heldout_bytes and all(key in index.extra for index in indices):
            bits = sum(float(str(index.extra[key])) * index.text_bytes for index in indices)
            found[name] = bits / data.heldout_bytes
    return found


def sample(t: Trainer, text: str) -> str:
    """The prompt and what the model makes of it; or why there is no sample, which is no fault of the run."""
    if not t.plan.layout.full_weights and t.plan.model.num_parameters > SAMPLED_PARAMETERS:
        return f"no sample of a model of this size: {_command('generate', t)}"
    try:
        prompt = prompt_of(t, text)
        # Every length would be compiled anew.
        with torch.compiler.set_stance("force_eager"), _whole_model(t) as model:
            answer = "".join(stream_text(model, t.data.tokenizer, prompt, SAMPLE_TOKENS, SAMPLING))
    except (RuntimeError, MemoryError, UserError) as error:
        return f"no sample: {str(error).partition(chr(10))[0]}"
    return prompt.shown + answer


def prompt_of(t: Trainer, text: str) -> Prompt:
    """A text to go on with; where all that the model saw are chats, a question to the assistant.

    Raises UserError for a text that cannot be one.
    """
    only_chats = all(is_of_chats(spec, t.data.tokenizer) for spec in t.config.data.sources)
    return (chat_prompt if only_chats else text_prompt)(t.data.tokenizer, text)


@contextmanager
def _whole_model(t: Trainer) -> Iterator[Model]:
    """The model as it is in the engine; where this rank holds a part of it only, as saved, on the host."""
    if t.plan.layout.full_weights:
        t.engine.model.eval()
        yield t.engine.model
        t.engine.model.train()
    else:
        weights = weights_of(load_checkpoint(t.checkpoint))
        yield load_model(weights, torch.device("cpu"), t.plan.precision)
