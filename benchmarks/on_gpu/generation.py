"""Milliseconds a token of generation, by the length of the text before it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from statistics import median

import torch

from benchmarks.on_gpu.report import Row
from benchmarks.on_gpu.setting import Setting
from benchmarks.workloads import make_workload
from llmkit.generation.sampling import Sampling
from llmkit.generation.session import generate
from llmkit.model.gpt import GPT

TOKENS, TOY_TOKENS = 64, 4
PROMPTS, TOY_PROMPTS = (16, 512, 1900), (3, 20)

NOTES = (
    "llmkit's model with random weights, one row, the likeliest token each time, with the cache of keys "
    "and values. First token: the whole prompt is read. A token: median (least to most) of the rounds' "
    "means. Least: the time to read all weights once at the copy rate.",
)


@torch.inference_mode()
def measure(setting: Setting) -> Iterator[Row]:
    """A row a length of the prompt."""
    name = "toy" if setting.toy else "llama-1b"
    shape = make_workload(name, setting.device).shape
    with torch.device(setting.device):
        model = GPT(shape).to(setting.dtype).eval()
    for length in TOY_PROMPTS if setting.toy else PROMPTS:
        prompt = [number % shape.vocab_size for number in range(length)]
        count = TOY_TOKENS if setting.toy else TOKENS
        first, whole = [], []
        seconds(model, prompt, count)
        for _ in range(setting.rounds):
            first.append(seconds(model, prompt, 1))
            whole.append(seconds(model, prompt, count))
        each = [1e3 * (b - a) / (count - 1) for a, b in zip(first, whole, strict=True)]
        cells = {
            "tokens before": f"{length}",
            "first token ms": f"{1e3 * median(first):.2f}",
            "a token ms": f"{median(each):.3f} ({min(each):.3f} to {max(each):.3f})",
        }
        if setting.rates is not None:
            weights = sum(parameter.nbytes for parameter in model.parameters())
            cells["least ms"] = f"{1e3 * weights / setting.rates.bandwidth:.3f}"
        yield Row(f"Generation: {name}", cells)


def seconds(model: GPT, prompt: list[int], count: int) -> float:
    """Of `count` tokens. Each is read by the host, so that nothing is left to wait for."""
    begin = time.perf_counter()
    found = list(generate(model, prompt, count, Sampling(temperature=0.0), stops=()))
    assert len(found) == count
    return time.perf_counter() - begin
