"""Milliseconds a token of generation, by the length of the text before it and the rows beside it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from statistics import median

import torch

from benchmarks.on_gpu.report import Row
from benchmarks.on_gpu.setting import Setting
from benchmarks.workloads import make_workload
from llmkit.generation.sampling import Sampling
from llmkit.generation.session import generate_batch
from llmkit.model.gpt import GPT

TOKENS, TOY_TOKENS = 64, 4
PROMPTS, TOY_PROMPTS = (16, 512, 1900), (3, 20)
ROWS, TOY_ROWS = (1, 8, 32), (1, 3)

NOTES = (
    "llmkit's model with random weights, the likeliest token each time, with the cache of keys and values. "
    "Rows: generated together; each has a token more before it than the last. First token: the whole prompts "
    "are read. A token: of each row, median (least to most) of the rounds' means. Least: the time to read "
    "all weights once at the copy rate.",
)


@torch.inference_mode()
def measure(setting: Setting) -> Iterator[Row]:
    """A row a length of the prompt, and a number of rows."""
    name = "toy" if setting.toy else "llama-1b"
    shape = make_workload(name, setting.device).shape
    with torch.device(setting.device):
        model = GPT(shape).to(setting.dtype).eval()
    lengths, numbers = (TOY_PROMPTS, TOY_ROWS) if setting.toy else (PROMPTS, ROWS)
    for length, rows in itertools.product(lengths, numbers):
        prompts = [[number % shape.vocab_size for number in range(length + row)] for row in range(rows)]
        count = TOY_TOKENS if setting.toy else TOKENS
        first, whole = [], []
        seconds(model, prompts, count)
        for _ in range(setting.rounds):
            first.append(seconds(model, prompts, 1))
            whole.append(seconds(model, prompts, count))
        each = [1e3 * (b - a) / (count - 1) for a, b in zip(first, whole, strict=True)]
        cells = {
            "tokens before": f"{length}",
            "rows": f"{rows}",
            "first token ms": f"{1e3 * median(first):.2f}",
            "a token ms": f"{median(each):.3f} ({min(each):.3f} to {max(each):.3f})",
        }
        if setting.rates is not None:
            weights = sum(parameter.nbytes for parameter in model.parameters())
            cells["least ms"] = f"{1e3 * weights / setting.rates.bandwidth:.3f}"
        yield Row(f"Generation: {name}", cells)


def seconds(model: GPT, prompts: list[list[int]], count: int) -> float:
    """Of `count` tokens of each row. Each is read by the host, so that nothing is left to wait for."""
    begin = time.perf_counter()
    sampling = Sampling(temperature=0.0)
    found = list(generate_batch(model, prompts, count, sampling, stops=(), rows=len(prompts)))
    assert len(found) == count * len(prompts)
    return time.perf_counter() - begin
