"""What a run comes to: device-hours, energy, money, carbon dioxide."""

from __future__ import annotations

from dataclasses import dataclass

from llmkit.monitor.cost import JOULES_PER_KWH, Prices


@dataclass(frozen=True)
class Expense:
    """Of a whole run. kwh, money, grams: None where watts, prices or the grid are not known.

    kwh: of the devices, at most, without hosts, network and building.
    """

    seconds: float
    device_hours: float
    kwh: float | None
    money: float | None
    grams: float | None


def expense(seconds: float, devices: int, watts: float | None, prices: Prices) -> Expense:
    """Of so many devices for so long. watts: of one, at most."""
    hours = seconds / 3600.0 * devices
    kwh = None if watts is None else watts * devices * seconds / JOULES_PER_KWH
    return Expense(seconds, hours, kwh, prices.money(hours, kwh), prices.grams(kwh))
