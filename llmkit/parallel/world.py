"""Makes the process group of the processes that a launcher started, and ends it in order."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, PrefixStore, Store
from torch.distributed import ProcessGroup

from llmkit.cores import available_cores, keep_freed_memory
from llmkit.errors import AlreadyReported, EndedError, RunFault, UserError
from llmkit.parallel.agreement import report_once
from llmkit.parallel.joining import join_start
from llmkit.parallel.meeting import open_store, stray
from llmkit.parallel.mesh import Mesh, set_timeout, small_group
from llmkit.parallel.network import address_of, choose_gloo_interface, choose_nccl_interface
from llmkit.parallel.rank_info import RankInfo, rank_info_from_env
from llmkit.parallel.reach import PATIENCE, Deadline, Reach
from llmkit.parallel.roll_call import RollCall
from llmkit.stopping import LAUNCHERS

TIMEOUT = timedelta(minutes=10)
"""How long the ranks of a command that does not train wait for each other."""
CONNECT = timedelta(minutes=3)
"""How long processes that have met may take to connect to each other."""
GLOO_FACTOR = 5
"""Times its timeout gloo waits for a connection (`Pair::waitUntilConnected`)."""
_joined = itertools.count()
"""Numbers the worlds that this process joins, one after another: as many in all processes of a launch."""


@contextmanager
def process_group(info: RankInfo, timeout: timedelta, *, needs_group: bool = False) -> Iterator[Mesh]:
    """The mesh of all processes, not split yet; the process group is destroyed at the end.

    needs_group: a single process, too, makes a process group, which DeepSpeed needs. An error that the user
    should read is printed by one rank; the others end with the same exit code.
    """
    mesh = _join(info, timeout, needs_group)
    try:
        yield mesh
        if mesh.world_size > 1:
            dist.barrier(group=mesh.control)  # a process that ends early can abort the others
    except Exception as error:
        cause = mesh.cause_of(error)
        if isinstance(cause, EndedError):  # the others cannot come: they are where this one does not come
            raise AlreadyReported(1) from error
        if mesh.world_size > 1 and isinstance(cause, UserError | RunFault):
            report_once(mesh, cause)
        if mesh.store is not None and mesh.world_size > 1 and mesh.rank == 0:
            mesh.store.set("reported", "")  # by its traceback
        raise
    else:
        if mesh.world_size > 1:
            dist.destroy_process_group()
    finally:
        if mesh.roll_call is not None:
            mesh.roll_call.close()
        if mesh.world_size == 1 and mesh.control is not None:
            dist.destroy_process_group()


@contextmanager
def launched(tensor_size: int | None, environment: Mapping[str, str]) -> Iterator[Mesh]:
    """The processes of this launch, for a command that uses a trained model: `tensor_size` of them share each
    copy of it, or all. Errors as of `process_group`.

    Raises UserError where that does not divide their number.
    """
    info = rank_info_from_env(environment)
    tensor_size = tensor_size or info.world_size
    with process_group(info, TIMEOUT) as mesh:
        if info.world_size % tensor_size:  # in here, so that one process says it for all
            raise UserError(
                f"--tensor-parallel {tensor_size} does not divide the number of processes, which is "
                f"{info.world_size}; launch with torchrun --nproc-per-node {tensor_size} -m llmkit ..."
            )
        yield mesh.split(tensor=tensor_size) if mesh.world_size > 1 else mesh


def require_alone(command: str, environment: Mapping[str, str], other: str = "") -> None:
    """Raises UserError, which one process prints for all, where a launch has several of them.

    command: that is for one process. other: what serves the same end, for the message.
    """
    info = rank_info_from_env(environment)
    if info.world_size == 1:
        return
    with process_group(info, TIMEOUT):
        raise UserError(
            f"{command} has one process, and {info.world_size} were started; leave out torchrun{other}"
        )


def _join(info: RankInfo, timeout: timedelta, needs_group: bool) -> Mesh:
    """Makes the default process group and those for small messages."""
    device = _choose_device(info)
    _share_cores(info)
    if device.type == "cpu":
        keep_freed_memory()
    if info.world_size == 1 and not needs_group:
        return Mesh(device=device, timeout=timeout)
    address = os.environ.get("MASTER_ADDR", "")
    where = f"{address}:{os.environ.get('MASTER_PORT')}"
    # Where mpirun started the launcher: DeepSpeed would insist that it equals LOCAL_RANK.
    os.environ.pop("OMPI_COMM_WORLD_LOCAL_RANK", None)
    reach: Reach | None = None
    try:
        if info.world_size == 1:
            os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks the environment for its device
            store: Store = HashStore()
        else:
            launched = open_store(info, address, timeout)
            world = PrefixStore(f"world-{next(_joined)}", launched)  # what an earlier one wrote stays behind
            store = join_start(world, info.rank, info.world_size, timeout)
            if device.type == "cuda":
                check_own_gpu(info, store, str(torch.cuda.get_device_properties(device).uuid), timeout)
            interface = choose_gloo_interface(address, one_host=info.local_size == info.world_size)
            where += f", gloo by {interface}" if interface else ""
            if device.type == "cuda" and info.local_size < info.world_size:
                choose_nccl_interface(interface)
            reach = Reach(store, info, address_of(interface))
        control, saving = _make_groups(info, store, device, timeout, reach)
    except RuntimeError as error:  # what gloo raises is no DistError
        # Without a route that fails at once, else late; rank 0 keeps the store that the late ones ask.
        patience = min(timeout, CONNECT).total_seconds() if info.rank == 0 else PATIENCE
        pairs = reach.unreachable(patience) if reach is not None else ""
        raise RunFault(
            f"rank {info.rank} of {info.world_size} could not join the others at {where} within "
            f"{timeout.total_seconds() / 60:g} minutes: {str(error).splitlines()[0]}{stray(info, address)}"
            + (f". {pairs}" if pairs else "")
        ) from error
    finally:
        if reach is not None:
            reach.close()
    roll_call = RollCall(store, info.rank, info.world_size) if info.world_size > 1 else None
    return Mesh(
        info.rank, info.world_size, device=device, timeout=timeout, store=store,
        control=control, saving=saving, roll_call=roll_call,
    )  # fmt: skip


def _make_groups(
    info: RankInfo, store: Store, device: torch.device, timeout: timedelta, reach: Reach | None
) -> tuple[ProcessGroup, ProcessGroup]:
    """Makes the default process group; returns two more, for small messages. Collective.

    All processes have met, so that to connect takes seconds: who cannot is named after CONNECT.
    """
    nccl, connect = device.type == "cuda", min(timeout, CONNECT)
    gloo = connect / GLOO_FACTOR
    with ExitStack() as stack:
        if nccl and reach is not None:
            stack.enter_context(Deadline(store, info, reach, "NCCL", connect.total_seconds()))
        dist.init_process_group(
            "nccl" if nccl else "gloo",
            store=PrefixStore("torch", store),
            rank=info.rank,
            world_size=info.world_size,
            timeout=timeout if nccl else gloo,
            # Not alone: there NCCL cannot split a group that is bound to its device.
            device_id=device if nccl and info.world_size > 1 else None,
        )
        if nccl and info.world_size > 1:
            dist.all_reduce(torch.ones((), device=device))
            torch.cuda.synchronize(device)
    if not nccl:
        set_timeout(dist.group.WORLD, timeout)
    control, saving = small_group(timeout, gloo), small_group(timeout, gloo)
    if info.world_size > 1:
        _set_up_accelerate(device)  # after what is waited for: it imports much
    return control, saving


def check_own_gpu(info: RankInfo, store: Store, uuid: str, timeout: timedelta) -> None:
    """Ends all processes with one UserError where two of them use the same GPU.

    uuid: of this process's GPU. NCCL would fail or hang, with a message about its internals.
    """
    if store.add(f"gpu/{uuid}", 1) > 1:
        store.add("gpus/shared", 1)
    if store.add("gpus/counted", 1) == info.world_size:
        store.set("gpus/all", str(store.add("gpus/shared", 0)))
    store.wait(["gpus/all"], timeout)
    if shared := int(store.get("gpus/all")):
        error = UserError(
            f"{shared} of {info.world_size} processes use a GPU that another one uses too: start as many on "
            "a host as it has GPUs, and let each see all of them, or a single one of its own"
        )
        report_once(Mesh(info.rank, info.world_size, store=store), error)


def own_gpu(info: RankInfo) -> int | None:
    """The number of this process's own GPU; None where it trains on the CPU.

    Raises UserError where the host has fewer GPUs than processes.
    """
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true":  # use_cpu in accelerate's configuration
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # read when torch first looks for GPUs
    if not torch.cuda.is_available():
        return None
    count = torch.cuda.device_count()
    if count == 1 and info.local_size > 1:  # as under srun --gpus-per-task=1
        return 0
    if info.local_size > count:
        raise UserError(
            f"{info.local_size} processes were started on a host that has {count} GPUs: start as many "
            "as there are, or set CUDA_VISIBLE_DEVICES to nothing to train on the CPU"
        )
    return info.local_rank


def _choose_device(info: RankInfo) -> torch.device:
    """This process's own GPU, made the current device, or the CPU."""
    number = own_gpu(info)
    if number is None:
        return torch.device("cpu")
    if number != info.local_rank:  # DeepSpeed and accelerate take the number of the GPU from here
        os.environ["LOCAL_RANK"] = str(number)
    else:
        torch.cuda.set_device(number)
    return torch.device("cuda", number)


def _share_cores(info: RankInfo) -> None:
    """Sets PyTorch's threads to this process's share of the host's cores.

    With GPUs too: with offload the CPU updates the weights, and it draws the initial ones.
    """
    # Launchers set 1 where the user sets nothing; accelerate's and slurm/train.sbatch for one process, too.
    threads_set = os.environ.get("OMP_NUM_THREADS", "1" if info.world_size > 1 else "")
    launched = info.world_size > 1 or any(name in os.environ for name in LAUNCHERS)
    if launched and threads_set == "1":
        threads = max(1, available_cores() // info.local_size)
        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)


def _set_up_accelerate(device: torch.device) -> None:
    """Makes accelerate use the process group that exists.

    Without `cpu=True` it would assume, where there is no GPU, that this process is the only one.
    """
    from accelerate import PartialState

    if device.type == "cuda":
        PartialState()
    else:
        PartialState(cpu=True, backend="gloo")
