"""A stand-in for NVML, NVIDIA's library that tells the state of GPUs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

GIB = 2**30


class NVMLError(Exception):
    """As NVML's own."""


class Unsupported(NVMLError):
    """Of a GPU without the function."""


def fake_nvml(**answers: Any) -> SimpleNamespace:
    """pynvml of GPUs that are all well, but for `answers`: function -> result of each GPU."""
    well = {
        "GetTotalEccErrors": 0, "GetRemappedRows": (0, 0, 0, 0), "GetCurrentClocksThrottleReasons": 0x1,
        "GetCurrPcieLinkWidth": 16, "GetMaxPcieLinkWidth": 16, "GetTemperature": 41,
        "GetMemoryInfo": SimpleNamespace(used=GIB // 2, total=80 * GIB), "GetComputeRunningProcesses": [],
    }  # fmt: skip

    def function(name: str) -> Any:
        def call(handle: int, *arguments: Any) -> Any:
            result = answers[name][handle] if name in answers else well[name]
            if isinstance(result, Exception):
                raise result
            return result

        return call

    return SimpleNamespace(
        NVMLError=NVMLError, NVML_MEMORY_ERROR_TYPE_UNCORRECTED=1, NVML_VOLATILE_ECC=0,
        NVML_TEMPERATURE_GPU=0, nvmlInit=lambda: None, nvmlSystemGetDriverVersion=lambda: "580.95",
        nvmlDeviceGetHandleByUUID=lambda uuid: int(uuid.removeprefix("GPU-")),
        **{f"nvmlDevice{name}": function(name) for name in well},
    )  # fmt: skip
