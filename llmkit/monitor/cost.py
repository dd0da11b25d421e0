"""What a run has used since its first start, and what that comes to: money and carbon dioxide."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from llmkit.config.monitor_section import Monitor

JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True)
class Prices:
    """per_device_hour, per_kwh: in `currency`, None = not known. pue: energy that the building draws for each
    joule of the computers. grid: grams of CO2 a kWh, None = not known."""

    per_device_hour: float | None = None
    per_kwh: float | None = None
    currency: str = "USD"
    pue: float = 1.0
    grid: float | None = None

    @classmethod
    def of(cls, monitor: Monitor) -> Prices:
        """Those of the settings."""
        cost = monitor.cost
        return cls(
            cost.per_device_hour, cost.per_kwh, cost.currency, monitor.pue, monitor.grid_gco2_per_kwh
        )

    @property
    def need_energy(self) -> bool:
        """Whether energy would make a figure."""
        return self.per_kwh is not None or self.grid is not None

    def money(self, device_hours: float, kwh: float | None) -> float | None:
        """The price of both; of device-hours alone where the energy, or its price, is not known. None where
        nothing can be priced."""
        parts = []
        if self.per_device_hour is not None:
            parts.append(self.per_device_hour * device_hours)
        if self.per_kwh is not None and kwh is not None:
            parts.append(self.per_kwh * self.pue * kwh)
        return sum(parts) if parts else None

    def grams(self, kwh: float | None) -> float | None:
        """CO2 of the energy, with what the building adds."""
        return None if kwh is None or self.grid is None else self.grid * self.pue * kwh


@dataclass(frozen=True)
class Spent:
    """What a run has used since its first start: names are those of the columns; None = not known.

    Lost time counts, and so do steps that were done again; the time between two starts does not.
    """

    device_hours: float = 0.0
    energy_kwh: float | None = None
    cost: float | None = None
    co2_grams: float | None = None

    def plus(self, device_hours: float, kwh: float | None, prices: Prices) -> Spent:
        """After further hours and energy, at these prices; what was not priced before, at these too."""
        cost, grams = self.cost, self.co2_grams
        if cost is None:
            cost = prices.money(self.device_hours, self.energy_kwh)
        if grams is None:
            grams = prices.grams(self.energy_kwh)
        return Spent(
            self.device_hours + device_hours,
            _sum(self.energy_kwh, kwh),
            _sum(cost, prices.money(device_hours, kwh)),
            _sum(grams, prices.grams(kwh)),
        )

    def to_json(self) -> dict[str, float | None]:
        """Every figure by name."""
        return asdict(self)


def spent_until_now(rows: Iterable[Mapping[str, Any]], events: Iterable[Mapping[str, Any]]) -> Spent:
    """What earlier starts of a run have used, by its rows and the `spent` of its events.

    Of a start that was killed, what it used after its last row is not known, and not counted.
    """
    figures = [*rows, *(event["spent"] for event in events if isinstance(event.get("spent"), Mapping))]
    found: dict[str, float] = {}
    for name in Spent.__dataclass_fields__:
        values = [each[name] for each in figures if isinstance(each.get(name), int | float)]
        if values:
            found[name] = max(values)  # each only grows
    return Spent(**found)


def money(amount: float, prices: Prices) -> str:
    """As in "12.30 USD"; small amounts with more digits."""
    return f"{amount:.2f} {prices.currency}" if amount >= 1 else f"{amount:.2g} {prices.currency}"


def for_the_whole_run(spent: float, step: int, last_step: int | None) -> float | None:
    """What a figure will be after the last step, with losses as until now; None where that is not known."""
    if step < 1 or last_step is None:
        return None
    return spent * max(step, last_step) / step


def _sum(one: float | None, other: float | None) -> float | None:
    return one if other is None else other if one is None else one + other
