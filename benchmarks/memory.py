"""Measures what a rank holds under ZeRO 0-3 x tensor parallelism, beside the theory.

Each layout is trained for two steps by processes of its own. Counted are the tensors that are alive when
the optimizer is about to step (weights, masters, moments, gradients with their buffers), and the
process's resident memory: its peak while the engine is built against what it keeps after training.
With --lengths, activations against the length of rows instead (`memory_lengths.py`).
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses import FakeTensor

from benchmarks import machine, memory_lengths
from llmkit.batch import Batch
from llmkit.config.shape import ModelShape
from llmkit.parallel.mesh import make_mesh
from llmkit.plan import DeviceFacts, Plan, plan_for_shape

MIB = 2**20
ROWS, LENGTH = 1, 64
"""Of a micro-batch: little, as activations are not what is measured."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    options = parse(arguments)
    if options.lengths:
        return memory_lengths.run(options.lengths, options.out)
    if options.rank_of:
        Path(options.rank_of, f"{os.environ['RANK']}.json").write_text(json.dumps(measure(options)))
        return 0
    today, name = datetime.date.today().isoformat(), machine.device_name(torch.device("cpu"))
    rows = []
    for stage in options.stages:
        for tensor_size in options.tensor_sizes:
            rows.append(launch(options, stage, tensor_size))
            print(rows[-1], file=sys.stderr, flush=True)
    text = page(rows, options, f"Memory of a rank, {today}, {name}, {options.precision}")
    options.out.mkdir(parents=True, exist_ok=True)
    path = machine.new_file(options.out, f"{today}-memory-{machine.slug(name)}")
    path.write_text(text, encoding="utf-8")
    print(text)
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; exits with code 2 and a message if something in it is wrong."""
    parser = argparse.ArgumentParser(
        prog="memory.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--stages", type=int, nargs="+", choices=range(4), default=[0, 1, 2, 3])
    add("--tensor-sizes", type=int, nargs="+", default=[1, 2], help="tensor-parallel sizes")
    add("--data-size", type=int, default=2, help="data-parallel ranks")
    add("--engine", choices=["auto", "native", "deepspeed"], default="auto")
    add("--precision", choices=["fp32", "bf16"], default="bf16")
    add("--hidden", type=int, default=1024)
    add("--layers", type=int, default=8)
    add(
        "--lengths", type=int, nargs="*", metavar="TOKENS",
        help="instead: peak of activations of rows of these lengths that 1, 2 and 4 ranks share",
    )  # fmt: skip
    add("--out", type=Path, default=Path(__file__).parent / "results", help="folder of the results")
    add("--rank-of", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    known = {"auto": range(4), "native": range(3), "deepspeed": range(1, 4)}[options.engine]
    if not options.lengths and (unknown := [stage for stage in options.stages if stage not in known]):
        stages = " ".join(map(str, known))
        parser.error(f"--engine {options.engine} has no ZeRO stage {unknown[0]}: give --stages {stages}")
    return options


def launch(options: argparse.Namespace, stage: int, tensor_size: int) -> dict[str, Any]:
    """Figures of the rank that holds most, of one layout."""
    world = options.data_size * tensor_size
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(world),
            __file__, "--rank-of", folder, "--stages", str(stage), "--tensor-sizes", str(tensor_size),
            "--precision", options.precision, "--hidden", str(options.hidden),
            "--layers", str(options.layers), "--engine", options.engine,
        ]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        ranks = [json.loads(path.read_text()) for path in Path(folder).glob("*.json")]
    assert len(ranks) == world
    return {key: max(rank[key] for rank in ranks) for key in ranks[0]}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """In one rank: builds the engine, trains two steps, counts."""
    from llmkit.engine.build import build_engine
    from llmkit.engine.deepspeed import import_deepspeed

    import_deepspeed()
    dist.init_process_group("gloo")
    shape = model_shape(options)
    plan = make_plan(shape, options, dist.get_world_size())
    layout = plan.layout
    mesh = make_mesh(layout.tensor_parallel_size)
    warm_up_libraries(mesh["data", "context"].group)
    base = resident()
    reset_peak()
    engine = build_engine(plan, mesh, device=torch.device("cpu"))
    peak_at_birth = peak() - base
    before_update: list[int] = []
    torch.optim.AdamW.step = counted(torch.optim.AdamW.step, before_update)  # type: ignore[method-assign]
    tokens = torch.randint(shape.vocab_size, (ROWS, LENGTH + 1))
    batch = Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
    for _ in range(2):
        before_update.clear()
        engine.train_step([batch, batch], 4 * batch.labels.numel())
    gc.collect()
    figures = {
        "stage": layout.zero_stage,
        "tensor_size": layout.tensor_parallel_size,
        "parameters": shape.num_parameters,
        "weights": weight_bytes(engine.model.parameters()),
        "state": sum(piece.data.nbytes for piece in engine.read_pieces() if piece.kind != "master"),
        "all": max(before_update),
        "after": live_bytes(),
        "birth_peak": peak_at_birth,
        "steady": resident() - base,
    }
    engine.close()
    dist.barrier()
    dist.destroy_process_group()
    return figures


def make_plan(shape: ModelShape, options: argparse.Namespace, world_size: int) -> Plan:
    """Two micro-batches a step under the layout of the command line."""
    tensor_size = options.tensor_sizes[0]
    return plan_for_shape(
        shape,
        {
            "data": {"sources": [{"type": "stdlib"}], "sequence_length": LENGTH},
            "train": {
                "max_steps": 2, "precision": options.precision, "micro_batch_size": ROWS,
                "global_batch_size": 2 * ROWS * world_size // tensor_size,
            },
            "parallel": {
                "world_size": world_size, "tensor_parallel_size": tensor_size,
                "zero_stage": options.stages[0], "engine": options.engine,
            },
            "kernels": {"compile": False, "operators": {"attention": "sdpa"}},
        },
        DeviceFacts(),
    )  # fmt: skip


def model_shape(options: argparse.Namespace) -> ModelShape:
    """A Llama-like model whose widths divide by any tensor-parallel size."""
    hidden = options.hidden
    return ModelShape(
        vocab_size=16384, padded_vocab_size=16384, hidden_size=hidden, num_hidden_layers=options.layers,
        num_attention_heads=16, num_key_value_heads=8, head_dim=hidden // 16, intermediate_size=3 * hidden,
        max_position_embeddings=LENGTH, mlp="swiglu", norm="rmsnorm", norm_eps=1e-5,
        position_embedding="rope", rope_theta=1e4, attention_bias=False, mlp_bias=False, qk_norm=False,
        sliding_window=None,
        tie_word_embeddings=True, attention_dropout=0.0, hidden_dropout=0.0, initializer_range=0.02,
        residual_init="scaled", vocab_pad_multiple=128,
    )  # fmt: skip


def theory(row: dict[str, Any], data_size: int, precision: str) -> float:
    """Bytes of a rank in ZeRO's own account: what stage s cuts, is divided by the data-parallel ranks.

    fp32: 4 weights, 4 masters from stage 2 on (slices beside the weights), 4 gradients, 8 moments a
    parameter; bf16: 2, 4, 4 (accumulated in fp32), 8.
    """
    stage, parameters = row["stage"], row["parameters"] / row["tensor_size"]
    weights = (2 if precision == "bf16" else 4) / (data_size if stage >= 3 else 1)
    masters = 4 / (data_size if stage >= 1 else 1) if precision == "bf16" or stage >= 2 else 0
    gradients = 4 / (data_size if stage >= 2 else 1)
    moments = 8 / (data_size if stage >= 1 else 1)
    return parameters * (weights + masters + gradients + moments)


def page(rows: Sequence[dict[str, Any]], options: argparse.Namespace, title: str) -> str:
    """The results in Markdown, MiB."""
    lines = [
        f"# {title}", "",
        f"- model: {rows[0]['parameters'] / 1e6:.1f}M parameters; data-parallel ranks: {options.data_size}",
        f"- versions: {machine.versions()}", f"- commit: {machine.commit()}", "",
        "MiB of the rank that holds most. Counted: live tensors when the optimizer is about to step. Build",
        "peak and steady: resident memory of the process without what its libraries take, while the engine",
        "is built, and after two steps.",
        "",
        "| ZeRO | TP | weights | counted | theory | counted / theory | build peak | steady | peak / steady |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]  # fmt: skip
    for row in rows:
        ideal = theory(row, options.data_size, options.precision)
        cells = [
            row["stage"], row["tensor_size"], f"{row['weights'] / MIB:.0f}", f"{row['all'] / MIB:.0f}",
            f"{ideal / MIB:.0f}", f"{row['all'] / ideal:.2f}", f"{row['birth_peak'] / MIB:.0f}",
            f"{row['steady'] / MIB:.0f}", f"{row['birth_peak'] / row['steady']:.2f}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def counted(step: Any, figures: list[int]) -> Any:
    """An optimizer step that first notes how many bytes all tensors hold."""

    def stepped(*arguments: Any, **options: Any) -> Any:
        figures.append(live_bytes())
        return step(*arguments, **options)

    return stepped


def live_bytes() -> int:
    """Bytes of all tensors that are alive, storages counted once."""
    storages = {}
    for thing in gc.get_objects():
        # The compiler's tensors hold nothing, and what it has freed itself has no storage any more.
        if issubclass(type(thing), Tensor) and not issubclass(type(thing), FakeTensor):
            with suppress(RuntimeError):
                storage = thing.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
            if thing.is_leaf and thing.grad is not None:
                storage = thing.grad.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def weight_bytes(parameters: Iterable[Tensor]) -> int:
    """Bytes of the weights that this rank holds; of a weight cut by ZeRO-3 its slice."""
    return sum(getattr(each, "ds_tensor", each).nbytes for each in parameters)


def warm_up_libraries(group: Any) -> None:
    """Uses once what takes memory at its first use: matrix products, collectives, autograd."""
    x = torch.randn(64, 64, requires_grad=True)
    (x @ x).sum().backward()
    dist.all_reduce(torch.zeros(1024), group=group)


def resident() -> int:
    """Resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def reset_peak() -> None:
    """Starts `peak` anew."""
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """The most resident bytes since `reset_peak`."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


if __name__ == "__main__":
    sys.exit(main())
