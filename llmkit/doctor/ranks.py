"""One of the processes that try collectives: joins the others, sums, and prints how fast.

It prints "ready" once its device is, waits for a line on its input with the seconds of `measure` and the
variables that a launcher would set, and prints a JSON object.
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from llmkit.parallel.network import choose_gloo_interface, choose_nccl_interface
from llmkit.parallel.rank_info import RankInfo, rank_info_from_env

CPU_BYTES, GPU_BYTES = 2**22, 2**28
ROUNDS = 5


def own_device(local_rank: int) -> torch.device:
    """The GPU of this process, in use, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    torch.ones(1, device=device).sum().item()
    return device


def measure(info: RankInfo, device: torch.device, seconds: float) -> dict[str, Any]:
    """Joins the world and sums tensors. seconds: that ranks wait for each other in each step.

    rate: bytes a second that a rank sends where the algorithm sends as little as it can, 2 (n - 1) / n of
    a tensor.
    """
    on_gpu = device.type == "cuda"
    interface = choose_gloo_interface(os.environ["MASTER_ADDR"], one_host=info.local_size == info.world_size)
    if on_gpu and info.local_size < info.world_size:
        choose_nccl_interface(interface)
    begin = time.monotonic()
    dist.init_process_group(
        "nccl" if on_gpu else "gloo", rank=info.rank, world_size=info.world_size,
        timeout=timedelta(seconds=seconds), device_id=device if on_gpu else None,
    )  # fmt: skip
    ranks = torch.full((8,), float(info.rank), device=device)
    dist.all_reduce(ranks)
    wanted = info.world_size * (info.world_size - 1) / 2
    if not bool((ranks == wanted).all()):
        raise ArithmeticError(f"the sum of all ranks is {ranks[0].item():g} instead of {wanted:g}")
    joined = time.monotonic() - begin
    size = GPU_BYTES if on_gpu else CPU_BYTES
    tensor = torch.ones(size // 4, device=device)
    best = min(_seconds_of_sum(tensor) for _ in range(ROUNDS))
    sent = 2 * (info.world_size - 1) / info.world_size * size
    dist.barrier()
    dist.destroy_process_group()
    return {"joined": joined, "rate": sent / best, "backend": "nccl" if on_gpu else "gloo"}


def _seconds_of_sum(tensor: torch.Tensor) -> float:
    begin = time.monotonic()
    dist.all_reduce(tensor)
    if tensor.device.type == "cuda":
        torch.cuda.synchronize(tensor.device)
    return time.monotonic() - begin


def main() -> None:
    """See above; its argument is the rank on this host."""
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)  # what libraries print
        device = own_device(int(sys.argv[1]))
        print("ready", file=out, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        seconds, place = json.loads(line)
        os.environ.update(place)
        try:
            result = measure(rank_info_from_env(os.environ), device, float(seconds))
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            result = {"error": f"{type(error).__name__}: {lines[0]}"}
        print(json.dumps(result), file=out, flush=True)
    os._exit(0)  # threads of a world that has broken do not end


if __name__ == "__main__":
    main()
