"""Generation by llmkit and by transformers with the same weights: CPU time a token, in turns.

`python -m benchmarks.generation` prints a table. Prompts of different lengths are continued by the likeliest
tokens, together in one batch and one by one; all contenders must find the same ones. fp32, one thread.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import torch

from benchmarks.command_line import progress
from benchmarks.peers import transformers_model
from benchmarks.workloads import ROOT
from llmkit.config.derive import resolved_model
from llmkit.config.load import load
from llmkit.config.shape import ModelShape
from llmkit.generation.sampling import Sampling
from llmkit.generation.session import generate_batch
from llmkit.hf.names import LLAMA
from llmkit.model.gpt import GPT

Tokens = list[list[int]]
SIZES = {"toy": (48, 2, 128), "small": (256, 6, 4096), "medium": (768, 12, 32000)}
"""Width, blocks, vocabulary; heads are 64 wide, four to each of keys and values."""


def shape_of(size: str) -> ModelShape:
    """A Llama of that size, or the model of configs/demo.yaml, which transformers does not have."""
    if size == "demo":
        shape = resolved_model(load(ROOT / "configs" / "demo.yaml").config, 4096)
        assert isinstance(shape, ModelShape)
        return replace(shape, initializer_range=0.2, residual_init="normal")
    width, blocks, vocabulary = SIZES[size]
    heads = max(4, width // 64)
    return ModelShape(
        vocab_size=vocabulary, padded_vocab_size=vocabulary, hidden_size=width, num_hidden_layers=blocks,
        num_attention_heads=heads, num_key_value_heads=heads // 4, head_dim=width // heads,
        intermediate_size=3 * width, max_position_embeddings=1024, tie_word_embeddings=False,
        norm_eps=1e-6, initializer_range=0.06,
    )  # fmt: skip


def same_weights(model: GPT) -> Any:
    """transformers' model with the weights of ours."""
    weights, theirs = dict(model.named_parameters()), transformers_model(model.shape).eval()
    full = {
        LLAMA.theirs(part.name): weights[name].detach()[part.start : part.stop]
        for name, parts in model.parameter_slices().items()
        for part in parts
    }
    theirs.load_state_dict(full)
    return theirs


def ours(model: GPT, prompts: Tokens, count: int, rows: int) -> Tokens:
    """What llmkit makes of the prompts, `rows` at once."""
    found: Tokens = [[] for _ in prompts]
    sampling = Sampling(temperature=0.0)
    for number, token in generate_batch(model, prompts, count, sampling, stops=(), rows=rows):
        found[number].append(token.id)
    return found


@torch.inference_mode()
def transformers(model: Any, prompts: Tokens, count: int) -> Tokens:
    """What transformers makes of the prompts together, padded on the left."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    found = model.generate(
        ids, attention_mask=mask, max_new_tokens=count, min_new_tokens=count, do_sample=False,
        use_cache=True, pad_token_id=0, eos_token_id=None,
    )  # fmt: skip
    return [row[longest:].tolist() for row in found]


def measure(size: str, batch: int, count: int, rounds: int) -> str:
    """A Markdown table of milliseconds of CPU time a token, and of the contenders' ratios to the first."""
    torch.manual_seed(0)
    model = GPT(shape_of(size)).eval()
    generator = torch.Generator().manual_seed(1)
    prompts = [
        torch.randint(1, model.vocab_size, (20 + 16 * number,), generator=generator).tolist()
        for number in range(batch)
    ]
    contenders: dict[str, Callable[[], Tokens]] = {
        "llmkit, together": lambda: ours(model, prompts, count, batch),
        "llmkit, one by one": lambda: ours(model, prompts, count, 1),
    }
    if size != "demo":
        peer = same_weights(model)
        contenders |= {
            "transformers, together": lambda: transformers(peer, prompts, count),
            "transformers, one by one": lambda: [transformers(peer, [each], count)[0] for each in prompts],
        }
    wanted = contenders["llmkit, one by one"]()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        progress(f"round {number} of {rounds}")
        for name, run in contenders.items():
            begin = time.process_time()
            found = run()
            if number:  # the first one fills caches
                seconds[name].append(time.process_time() - begin)
            assert found == wanted, f"{name} finds other tokens"
    heading = f"{size}: {batch} prompts of {len(prompts[0])} to {len(prompts[-1])} tokens, {count} new each"
    return table(heading, seconds, batch * count)


def table(heading: str, seconds: dict[str, list[float]], tokens: int) -> str:
    """Medians, and the medians of the ratios of the same round."""
    first = next(iter(seconds.values()))
    lines = [heading, "", "| contender | ms a token | x the first: median (range) |", "| --- | --: | --: |"]
    for name, each in seconds.items():
        ratios = [own / other for own, other in zip(each, first, strict=True)]
        lines.append(
            f"| {name} | {1e3 * median(each) / tokens:.3f} | {median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f}) |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", choices=[*SIZES, "demo"], default="small")
    parser.add_argument("--batch", type=int, default=8, help="prompts")
    parser.add_argument("--count", type=int, default=48, help="new tokens of each")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(measure(options.size, options.batch, options.count, options.rounds))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
