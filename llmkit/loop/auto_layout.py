"""The devices of a launch, for `parallel.layout: auto`."""

from __future__ import annotations

import torch

from llmkit.config.load import Loaded
from llmkit.cores import host_memory
from llmkit.errors import UserError
from llmkit.estimate.devices import Hardware
from llmkit.estimate.hardware import Device, Fleet
from llmkit.estimate.layout_choice import with_layout
from llmkit.monitor.hardware import has_bf16_units
from llmkit.parallel.rank_info import RankInfo
from llmkit.parallel.world import own_gpu
from llmkit.plan import Known

UNKNOWN_MEMORY = 8 * 2**30
"""Bytes of a host whose system does not say how many it has."""


def choose_layout(loaded: Loaded, known: Known, info: RankInfo) -> Loaded:
    """The configuration with the layout that is best for this launch, where that is asked for.

    Raises UserError on a GPU of which no figures are known, and where nothing fits.
    """
    if loaded.config.parallel.layout == "given":
        return loaded
    return with_layout(loaded, known, fleet_of(info), host_memory())


def fleet_of(info: RankInfo) -> Fleet:
    """This launch's devices, all as this process's own: the GPU of its local rank, or its share of a CPU."""
    hardware = Hardware()
    number = own_gpu(info)
    device = _cpu(info) if number is None else _gpu(hardware, number)
    nodes = max(1, info.world_size // info.local_size)
    inside, between = hardware.link(device.inside), hardware.link(device.between)
    return Fleet(device, info.world_size // nodes, nodes, inside, between)


def _gpu(hardware: Hardware, number: int) -> Device:
    name = torch.cuda.get_device_name(number)
    if (device := hardware.labelled(name)) is None:
        raise UserError(
            f"parallel.layout is auto, and no figures of {name} are known to choose by; set it to given, and "
            "the settings of `parallel` to the layout that you want"
        )
    return device


def _cpu(info: RankInfo) -> Device:
    """A process's share of this machine; of its speed nothing is known, so that memory decides."""
    memory = (host_memory() or UNKNOWN_MEMORY) / info.local_size
    types = {"fp32": 0.0} | ({"bf16": 0.0} if has_bf16_units(torch.device("cpu")) else {})
    return Device(
        "cpu", "cpu", types, memory, 0.0, 0.0, 1, "shared-memory", "eth-10", "this machine", "cpu"
    )  # fmt: skip
