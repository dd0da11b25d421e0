"""The tables of devices and links."""

from __future__ import annotations

import pytest

from llmkit.errors import UserError
from llmkit.estimate.devices import Hardware
from llmkit.monitor.peaks import published_peak


def test_the_tables_are_complete_and_agree() -> None:
    hardware = Hardware()
    asked = {"a100", "a100-40gb", "h100", "h100-pcie", "h200", "b200", "gb200", "mi300x", "l40s", "rtx-4090"}
    assert asked <= hardware.devices.keys()
    for device in hardware.devices.values():
        assert device.flops["bf16"] == published_peak(device.label)
        assert {device.inside, device.between} <= hardware.links.keys()
        assert device.source
        assert device.reached.source
        assert 0 < device.flops["fp32"] < device.flops["bf16"] <= device.flops.get("fp8", 1e99)
        assert 1e9 < device.memory < 300e9 <= device.bandwidth
        assert 0.5 <= device.reached.products < 1
    for link in hardware.links.values():
        assert link.source
        assert 1e9 < link.usable < link.bandwidth


def test_a_device_is_known_by_the_name_that_pytorch_gives_it() -> None:
    found = Hardware().labelled("NVIDIA H100 80GB HBM3")
    assert found is not None
    assert found.name == "h100"
    assert Hardware().labelled("NVIDIA H100 80GB HBM3 MIG 1g.10gb") is None


@pytest.mark.parametrize(
    ("name", "says"),
    [("h10", "did you mean h100"), ("cpu", "llmkit doctor --calibrate"), ("tpu-v9", "choose one of a100, ")],
)
def test_an_unknown_device_is_named_with_what_there_is(name: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        Hardware().fleet(name)


def test_an_unknown_link_is_refused() -> None:
    with pytest.raises(UserError, match="the link 'nvlink9' is not known"):
        Hardware().fleet("h100", between="nvlink9")
