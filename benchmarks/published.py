"""How far the model of step time is from published runs, and what of it is fitted to them.

python benchmarks/published.py [--rows] [--fit]

Prints, for the rows that the constants were fitted to, the error of each, and the errors of each family under
constants that were fitted without it; then the errors of rows that were never fitted to. --rows: all rows.
--fit: the best constants. Needs neither a GPU nor torch, and takes a few seconds.

TFLOP/s and tokens/s are those of the sources. Guessed, where a source does not tell: micro-batches, chunks of
pipelines, the type in which gradients are sent.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import mean, median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from llmkit.config.shape import ModelShape
from llmkit.estimate.constants import FITTED, Constants
from llmkit.estimate.devices import Hardware
from llmkit.estimate.hardware import Device, Reached
from llmkit.estimate.step_parts import step_parts
from llmkit.estimate.workload import Exchange, Update, Workload

MEGATRON = Exchange(gradient_bytes=2, tensor="pipelined", gathers_again=True)
FSDP = Exchange(gradient_bytes=2, each_micro_batch=True)
DDP = Exchange(gradient_bytes=2, all_reduce=True)
FLASH = {"attention": "flash", "head_loss": "full"}
CUDNN = {"attention": "cudnn", "head_loss": "full"}
FLASH3 = {"attention": "flash3", "head_loss": "full"}
H100_500W = Reached(
    0.65, 0.645, 0.86, "assumed: 0.80 of the products of the 700 W part, 0.72 of its bandwidth"
)


def gpt(layers: int, width: int, heads: int, vocab: int, positions: int, **more: object) -> ModelShape:
    """GPT-2's block: GELU, LayerNorm, biases, learned positions."""
    values: dict[str, object] = {
        "vocab_size": vocab, "padded_vocab_size": vocab, "hidden_size": width, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": heads, "head_dim": width // heads,
        "intermediate_size": 4 * width, "max_position_embeddings": positions, "mlp": "gelu",
        "norm": "layernorm", "position_embedding": "learned", "attention_bias": True, "mlp_bias": True,
    }  # fmt: skip
    return ModelShape(**(values | more))  # type: ignore[arg-type]


def llama(layers: int, width: int, heads: int, inner: int) -> ModelShape:
    """Llama 3."""
    return gpt(
        layers, width, heads, 128256, 8192, num_key_value_heads=8, intermediate_size=inner, mlp="swiglu",
        norm="rmsnorm", position_embedding="rope", attention_bias=False, mlp_bias=False,
        tie_word_embeddings=False,
    )  # fmt: skip


def nanochat(depth: int) -> ModelShape:
    """nanochat's block: three layers of four see half of the row."""
    width = 64 * depth
    kinds = tuple("sliding_attention" if n % 4 < 3 else "full_attention" for n in range(depth))
    return gpt(
        depth, width, width // 128, 32768, 2048, mlp="relu2", norm="rmsnorm", norm_weight=False,
        position_embedding="rope", qk_norm="head", attention_bias=False, mlp_bias=False,
        tie_word_embeddings=False, sliding_window=1024, layer_types=kinds,
    )  # fmt: skip


L8, L405 = llama(32, 4096, 32, 14336), llama(126, 16384, 128, 53248)


def full_flops(shape: ModelShape, length: int) -> float:
    """FLOPs a token: 6 N + 12 L d s, N with the embedding once."""
    body = shape.num_block_parameters + shape.vocab_size * shape.hidden_size
    return 6.0 * body + 12.0 * shape.num_hidden_layers * shape.hidden_size * length


def causal_flops(shape: ModelShape, length: int) -> float:
    """The same, of attention only what causal attention needs."""
    return full_flops(shape, length) - 6.0 * shape.num_hidden_layers * shape.hidden_size * length


def windowed_flops(shape: ModelShape, length: int) -> float:
    """The same, of attention each layer's window."""
    windows = [shape.window(layer) or length for layer in range(shape.num_hidden_layers)]
    return full_flops(shape, 0) + 12.0 * shape.hidden_size * sum(windows)


@dataclass(frozen=True)
class Row:
    """A published run. published: TFLOP/s of a GPU in the convention of its source, or tokens/s."""

    family: str
    name: str
    work: Workload
    published: float
    flops: Callable[[ModelShape, int], float] | None = full_flops
    device: str = "h100"
    reached: Reached | None = None

    def predicted(self, constants: Constants) -> float:
        """What the model says, in the unit of `published`."""
        hardware = Hardware()
        device: Device = hardware.device(self.device)
        if self.reached is not None:
            device = replace(device, reached=self.reached)
        fleet = hardware.with_device(device).fleet(self.device, 8, max(1, self.work.world // 8))
        seconds = step_parts(self.work, fleet, constants).seconds
        rate = self.work.rows * self.work.length / seconds / self.work.world
        return rate if self.flops is None else rate * self.flops(self.work.shape, self.work.length) / 1e12

    def error(self, constants: Constants) -> float:
        """Relative."""
        return self.predicted(constants) / self.published - 1.0


def with_update(work: Workload) -> Workload:
    """The same with AdamW for all parameters, whose masters and moments the ranks share."""
    return replace(work, update=Update(float(work.shape.num_parameters)))


def megatron(
    name: str, layers: int, width: int, heads: int, rows: int, gpus: int, published: float, **more: object
) -> Row:
    shape = gpt(layers, width, heads, 131072, 4096, tie_word_embeddings=False)
    values = {"zero": 1, "forms": CUDNN, "exchange": MEGATRON, "sequence_parallel": True} | more
    work = Workload(shape, 4096, rows, gpus, **values)  # type: ignore[arg-type]
    return Row("Megatron", f"{name} on {gpus}", with_update(work), published)


def mpt(
    layers: int, width: int, heads: int, length: int, micro: int, published: float, gpus: int = 8,
    **more: object,
) -> Row:  # fmt: skip
    shape = gpt(layers, width, heads, 50432, length)
    device = more.pop("device", "h100")
    values = {"micro_batch": micro, "zero": 3, "fused": False, "forms": FLASH, "exchange": FSDP} | more
    work = Workload(shape, length, micro * gpus * 4, gpus, **values)  # type: ignore[arg-type]
    return Row(
        "MPT", f"{layers}x{width} s{length} on {gpus} {device}", with_update(work), published,
        device=str(device),
    )  # fmt: skip


def titan(shape: ModelShape, name: str, rows: int, gpus: int, tokens: float, **more: object) -> Row:
    device = str(more.pop("device", "h100"))
    values = {"micro_batch": 2, "zero": 3, "recompute": "selective", "forms": FLASH, "exchange": FSDP} | more
    work = Workload(shape, 8192, rows, gpus, **values)  # type: ignore[arg-type]
    reached = H100_500W if device == "h100" else None
    return Row("torchtitan", f"{name} on {gpus}", with_update(work), tokens, None, device, reached)


def nano(
    depth: int, published: float, flops: Callable[[ModelShape, int], float] | None, **more: object
) -> Row:
    shape = nanochat(depth)
    matrices = tuple(t.shape for t in shape.tensors if t.hidden)
    update = Update(float(shape.num_parameters), 1.3, matrices)
    values = {"micro_batch": 16, "zero": 1, "forms": FLASH3, "exchange": FSDP, "update": update} | more
    work = Workload(shape, 2048, 512, 8, **values)  # type: ignore[arg-type]
    exchange = replace(FSDP, each_micro_batch=False, gathers_late=True)
    kind = " fp8" if work.linear == "fp8" else ""
    return Row("nanochat", f"d{depth}{kind} on 8", replace(work, exchange=exchange), published, flops)


def nvidia(name: str, shape: ModelShape, published: float, rows: int, gpus: int, **more: object) -> Row:
    values = {"linear": "fp8", "forms": CUDNN, "exchange": MEGATRON, "sequence_parallel": True} | more
    work = Workload(shape, 8192, rows, gpus, **values)  # type: ignore[arg-type]
    return Row("NVIDIA", f"{name} on {gpus}", with_update(work), published, causal_flops)


MODDED = Workload(gpt(12, 768, 12, 50304, 1024), 1024, 512, 8, 64, forms=FLASH, exchange=DDP)
FITTED_ROWS = [
    megatron("1.7B", 24, 2048, 16, 192, 48, 408.8, micro_batch=2),
    megatron("7.1B", 30, 4096, 32, 192, 96, 465.9, tensor=2),
    megatron("16B", 32, 6144, 48, 192, 192, 489.1, tensor=4),
    megatron("32B", 48, 7168, 56, 192, 384, 459.6, tensor=8),
    megatron("70B", 84, 8192, 64, 384, 768, 419.7, tensor=8, pipeline=2),
    megatron("177B", 96, 12288, 96, 1152, 2304, 432.8, tensor=8, pipeline=6, chunks=16),
    megatron("462B", 112, 18432, 144, 3072, 6144, 459.9, tensor=8, pipeline=16, chunks=7),
    Row(
        "Llama-3", "405B on 8192",
        with_update(Workload(
            L405, 8192, 2048, 8192, tensor=8, pipeline=16, chunks=7.875, zero=2, forms=CUDNN,
            sequence_parallel=True, exchange=Exchange(gradient_bytes=4, tensor="backward"),
        )), 430,
    ),
    mpt(24, 2048, 16, 2048, 14, 413),
    mpt(24, 2048, 16, 2048, 12, 362, 512),
    mpt(32, 4096, 32, 2048, 6, 459),
    mpt(32, 4096, 32, 2048, 6, 417, 512),
    mpt(48, 7168, 56, 2048, 14, 434, 32, recompute="full"),
    nvidia("8B fp8", L8, 744, 128, 8, zero=3, exchange=FSDP),
    nvidia("405B fp8", L405, 827, 1536, 1024, tensor=8, pipeline=8, context=2, chunks=8, zero=1),
    titan(L8, "8B", 16, 8, 6667),
    titan(L8, "8B", 256, 128, 6514),
    titan(
        L405, "405B fp8", 256, 512, 128, micro_batch=1, tensor=8, pipeline=8, chunks=2, zero=2,
        recompute="full", linear="fp8",
    ),
    Row("modded-nanogpt", "124M on 8", with_update(MODDED), 461.9e3, None),
]  # fmt: skip
OUTSIDE = [
    mpt(24, 1536, 12, 1024, 32, 393),
    mpt(24, 1536, 12, 2048, 16, 345),
    mpt(24, 2048, 16, 1024, 28, 415),
    mpt(24, 2048, 16, 4096, 7, 398),
    mpt(24, 2048, 16, 8192, 3, 373),
    mpt(32, 2560, 20, 512, 40, 458),
    mpt(32, 2560, 20, 2048, 10, 432),
    mpt(32, 2560, 20, 4096, 5, 418),
    mpt(32, 2560, 20, 8192, 2, 398),
    mpt(32, 2560, 20, 512, 40, 598, linear="fp8"),
    mpt(32, 2560, 20, 2048, 10, 548, linear="fp8"),
    mpt(32, 2560, 20, 8192, 2, 460, linear="fp8"),
    mpt(12, 768, 12, 2048, 16, 0.43 * 312, device="a100"),
    mpt(24, 1024, 16, 2048, 8, 0.505 * 312, device="a100"),
    titan(L8, "8B eager", 16, 8, 5762, fused=False),
    titan(L8, "8B fp8", 16, 8, 8532, linear="fp8"),
    titan(L8, "8B fp8 H200", 64, 32, 10938, linear="fp8", device="h200"),
    Row("accelerate", "8B FSDP2", with_update(Workload(
        L8, 8192, 8, 8, zero=3, forms=FLASH, exchange=FSDP)), 8000, None),
    Row("accelerate", "8B FSDP2 fp8", with_update(Workload(
        L8, 8192, 8, 8, zero=3, forms=FLASH, exchange=FSDP, linear="fp8")), 10000, None),
    nano(24, 494, windowed_flops),
    nano(26, 78.8e3, None),
    nano(26, 92.5e3, None, linear="fp8"),
    Row("Megatron-LM", "8B fp8 CP2", with_update(Workload(
        L8, 8192, 128, 8, zero=1, context=2, linear="fp8", forms=CUDNN, exchange=MEGATRON)), 13812, None),
]  # fmt: skip
GRID = [
    Constants(overhead / 100, jitter / 1000, "fit")
    for overhead, jitter in product(range(90, 151, 3), range(0, 41, 5))
]


def mean_error(rows: Sequence[Row], constants: Constants) -> float:
    """Mean absolute relative error."""
    return mean(abs(row.error(constants)) for row in rows)


def all_errors(rows: Sequence[Row]) -> dict[Constants, list[float]]:
    """Constants of the grid -> the error of each row."""
    return {constants: [row.error(constants) for row in rows] for constants in GRID}


def best(errors: Mapping[Constants, Sequence[float]], chosen: Sequence[bool]) -> Constants:
    """The constants with the smallest mean absolute error of the chosen rows."""

    def size(constants: Constants) -> float:
        return mean(abs(each) for each, taken in zip(errors[constants], chosen, strict=True) if taken)

    return min(GRID, key=size)


def left_out(rows: Sequence[Row]) -> dict[str, tuple[Constants, list[float]]]:
    """Family -> the constants that are fitted to all others, and the errors of its own rows under them."""
    errors, found = all_errors(rows), {}
    for family in dict.fromkeys(row.family for row in rows):
        others = [row.family != family for row in rows]
        constants = best(errors, others)
        own = [each for each, other in zip(errors[constants], others, strict=True) if not other]
        found[family] = constants, own
    return found


def summary(errors: Sequence[float]) -> str:
    """In words."""
    sizes = [abs(each) for each in errors]
    sized = f"mean |e| {mean(sizes):.1%}, median {median(sizes):.1%}, worst {max(sizes):.1%}"
    return f"mean {mean(errors):+.1%}, {sized}"


def show(rows: Sequence[Row], constants: Constants) -> None:
    """One line a row."""
    for row in rows:
        both = f"{row.predicted(constants):10,.0f} {row.published:10,.0f}"
        print(f"{row.family:15s} {row.name:26s} {both} {row.error(constants):+7.1%}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", action="store_true")
    parser.add_argument("--fit", action="store_true")
    options = parser.parse_args(arguments)
    if options.rows:
        show(FITTED_ROWS, FITTED)
        print()
        show(OUTSIDE, FITTED)
    print("fitted to:", summary([row.error(FITTED) for row in FITTED_ROWS]))
    print("outside:  ", summary([row.error(FITTED) for row in OUTSIDE]))
    if options.fit:
        print("best:", best(all_errors(FITTED_ROWS), [True] * len(FITTED_ROWS)))
        errors = []
        for family, (constants, own) in left_out(FITTED_ROWS).items():
            print(f"without {family:15s} {constants.overhead:.2f} {constants.jitter:.3f}", summary(own))
            errors += own
        print("each family left out:", summary(errors))


if __name__ == "__main__":
    main()
