"""The tables of devices and links, and how a fleet is named on the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import TypeVar, cast

from llmkit.errors import UserError
from llmkit.estimate.hardware import Architecture, Device, Fleet, Link, Reached, gpu_flops

GB, MIB = 1e9, 2.0**20
NVIDIA, PAPER = "NVIDIA's data sheet", "NVIDIA's white paper"
A100 = Reached(0.86, 0.88, 0.98, "assumed: products of 270 of 312 TFLOP/s are commonly reported of cuBLAS")
H100 = Reached(
    0.807,
    0.896,
    0.86,
    "measured on one H100 SXM: 798 TFLOP/s (8192^3, bf16), 3.0 TB/s (a copy); 0.86 assumed",
)


def _gpu(
    name: str, label: str, mib: int, bandwidth: float, watts: int, units: int, fp32: float, fp8: float,
    links: str, per_node: int = 8, joined: int = 1, of: Reached | None = None, by: str = NVIDIA,
) -> Device:  # fmt: skip
    """mib: of memory as its driver lists it. bandwidth: GB/s. fp32: TFLOP/s, fp8: `gpu_flops`. links: both,
    then the architecture. of: shares that are reached. by: who published the rates."""
    inside, between, architecture = links.split()
    source = f"{by}, {label}; memory as its driver lists it"
    return Device(
        name, label, gpu_flops(label, fp32, fp8), mib * MIB, bandwidth * GB, watts, units, inside, between,
        source, cast(Architecture, architecture), per_node, joined, of or Reached(),
    )  # fmt: skip


_GPUS = (
    _gpu("a100", "A100-SXM4-80GB", 81920, 2039, 400, 108, 19.5, 0, "nvlink3 ib-hdr ampere", of=A100),
    _gpu("a100-40gb", "A100-SXM4-40GB", 40960, 1555, 400, 108, 19.5, 0, "nvlink3 ib-hdr ampere", of=A100),
    _gpu("a100-pcie", "A100 80GB PCIe", 81920, 1935, 300, 108, 19.5, 0, "pcie4 ib-hdr ampere"),
    _gpu("h100", "H100 80GB HBM3", 81559, 3350, 700, 132, 67, 2, "nvlink4 ib-ndr hopper", of=H100),
    _gpu("h100-pcie", "H100 PCIe", 81559, 2039, 350, 114, 51, 2, "pcie5 ib-ndr200 hopper"),
    _gpu("h100-nvl", "H100 NVL", 95830, 3938, 400, 132, 60, 2, "pcie5 ib-ndr200 hopper"),
    _gpu("h200", "H200", 143771, 4800, 700, 132, 67, 2, "nvlink4 ib-ndr hopper"),
    _gpu("h20", "H20", 97871, 4000, 400, 78, 44, 2, "nvlink4 ib-ndr hopper"),
    _gpu("b200", "B200", 183359, 8000, 1000, 148, 75, 2, "nvlink5 ib-ndr blackwell"),
    _gpu("gb200", "GB200", 189471, 8000, 1200, 148, 80, 2, "nvlink5 ib-ndr blackwell", 4, 72),
    _gpu("l4", "L4", 23034, 300, 72, 58, 30.3, 2, "pcie4 eth-100 ada"),
    _gpu("l40", "L40", 46068, 864, 300, 142, 90.5, 2, "pcie4 eth-100 ada"),
    _gpu("l40s", "L40S", 46068, 864, 350, 142, 91.6, 2, "pcie4 eth-100 ada"),
    _gpu("a10", "A10", 23028, 600, 150, 72, 31.2, 0, "pcie4 eth-100 ampere"),
    _gpu("a30", "A30", 24576, 933, 165, 56, 10.3, 0, "pcie4 eth-100 ampere"),
    _gpu("a40", "A40", 46068, 696, 300, 84, 37.4, 0, "pcie4 eth-100 ampere"),
    _gpu("rtx-3090", "GeForce RTX 3090", 24576, 936, 350, 82, 35.6, 0, "pcie4 eth-10 ampere", by=PAPER),
    _gpu("rtx-4090", "GeForce RTX 4090", 24564, 1008, 450, 128, 82.6, 2, "pcie4 eth-10 ada", by=PAPER),
    _gpu("rtx-5090", "GeForce RTX 5090", 32607, 1792, 575, 170, 104.8, 2, "pcie5 eth-10 blackwell", by=PAPER),
    _gpu("rtx-6000-ada", "RTX 6000 Ada Generation", 49140, 960, 300, 142, 91.1, 2, "pcie4 eth-100 ada"),
    _gpu("rtx-a6000", "RTX A6000", 49140, 768, 300, 84, 38.7, 0, "pcie4 eth-100 ampere"),
    _gpu(
        "mi300x", "AMD Instinct MI300X", 196592, 5300, 750, 304, 163.4, 2, "infinity-fabric ib-ndr cdna",
        by="AMD's data sheet",
        of=Reached(0.55, 0.80, 0.95, "assumed: products of 620 to 760 of 1307 TFLOP/s are publicly reported"),
    ),
    _gpu(
        "mi325x", "AMD Instinct MI325X", 262128, 6000, 1000, 304, 163.4, 2, "infinity-fabric ib-ndr cdna",
        by="AMD's data sheet",
        of=Reached(0.55, 0.80, 0.95, "assumed as of MI300X"),
    ),
)  # fmt: skip

_NVLINK = "half of the total that NVIDIA's data sheet of {} gives for both directions; share, latency assumed"
_LINKS = (
    # 370 of 450 GB/s is what bus bandwidths of NCCL's tests on DGX H100 are commonly reported as.
    Link("nvlink3", 300 * GB, 0.80, 1.5e-6, _NVLINK.format("A100")),
    Link("nvlink4", 450 * GB, 0.82, 1.5e-6, _NVLINK.format("H100")),
    Link("nvlink5", 900 * GB, 0.80, 1.5e-6, _NVLINK.format("B200")),
    Link("infinity-fabric", 448 * GB, 0.70, 2.5e-6, "AMD's data sheet of MI300X, 7 x 64 GB/s; share assumed"),
    Link("pcie4", 31.5 * GB, 0.65, 4e-6, "PCI-SIG, 16 lanes of 16 GT/s; share assumed (by way of the host)"),
    Link("pcie5", 63 * GB, 0.65, 4e-6, "PCI-SIG, 16 lanes of 32 GT/s; share assumed (by way of the host)"),
    # 360 to 390 GB/s a node of 8 NDR ports is what NCCL's tests commonly report among nodes.
    Link("ib-hdr", 25 * GB, 0.92, 6e-6, "InfiniBand HDR, 200 Gbit/s a port; share and latency assumed"),
    Link("ib-ndr200", 25 * GB, 0.92, 6e-6, "InfiniBand NDR200, 200 Gbit/s a port; share, latency assumed"),
    Link("ib-ndr", 50 * GB, 0.92, 6e-6, "InfiniBand NDR, 400 Gbit/s a port; share and latency assumed"),
    Link("ib-xdr", 100 * GB, 0.92, 6e-6, "InfiniBand XDR, 800 Gbit/s a port; share and latency assumed"),
    Link("efa", 50 * GB, 0.70, 18e-6, "3,200 Gbit/s for 8 GPUs (AWS, p5); share and latency assumed"),
    Link("roce-400", 50 * GB, 0.80, 9e-6, "400 Gbit/s a port; share and latency assumed"),
    Link("eth-400", 50 * GB, 0.70, 30e-6, "400 Gbit/s, TCP, one port a node; share assumed", ports=1),
    Link("eth-100", 12.5 * GB, 0.70, 30e-6, "100 Gbit/s, TCP, one port a node; share assumed", ports=1),
    Link("eth-25", 3.125 * GB, 0.80, 40e-6, "25 Gbit/s, TCP, one port a node; share assumed", ports=1),
    Link("eth-10", 1.25 * GB, 0.85, 40e-6, "10 Gbit/s, TCP, one port a node; share assumed", ports=1),
    Link("shared-memory", 8 * GB, 0.50, 50e-6, "assumed: gloo between processes of a CPU"),
)


@dataclass(frozen=True)
class Hardware:
    """Devices and links by name."""

    devices: Mapping[str, Device] = field(default_factory=lambda: {each.name: each for each in _GPUS})
    links: Mapping[str, Link] = field(default_factory=lambda: {each.name: each for each in _LINKS})

    def device(self, name: str) -> Device:
        """The device of this name, in either case. Raises UserError where there is none."""
        return _named(self.devices, name, "device")

    def labelled(self, label: str) -> Device | None:
        """The device that PyTorch calls by this name; None where it is in no table."""
        plain = label.removeprefix("NVIDIA ").strip()
        return next((device for device in self.devices.values() if device.label == plain), None)

    def link(self, name: str) -> Link:
        """The link of this name, in either case. Raises UserError where there is none."""
        return _named(self.links, name, "link")

    def with_device(self, device: Device) -> Hardware:
        """The same with one device more, such as a CPU that has been measured."""
        return replace(self, devices={**self.devices, device.name: device})

    def fleet(
        self, device: str, devices_per_node: int | None = None, nodes: int = 1,
        *, inside: str | None = None, between: str | None = None,
    ) -> Fleet:  # fmt: skip
        """Nodes of this device; what is left open is as in its usual node. Raises UserError."""
        found = self.device(device)
        count = found.per_node if devices_per_node is None else devices_per_node
        links = self.link(inside or found.inside), self.link(between or found.between)
        return Fleet(found, count, nodes, *links)


Item = TypeVar("Item")


def _named(table: Mapping[str, Item], name: str, what: str) -> Item:
    if (found := table.get(name.lower())) is not None:
        return found
    close = get_close_matches(name.lower(), table, n=3)
    near = f"; did you mean {' or '.join(close)}?" if close else ""
    cpu = "; cpu is known once `llmkit doctor --calibrate` has measured it" if name.lower() == "cpu" else ""
    raise UserError(f"the {what} {name[:40]!r} is not known{near or cpu}; choose one of {', '.join(table)}")
