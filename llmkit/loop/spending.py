"""Energy, device-hours and cost of a run, of all its ranks and starts: columns of rows, `spent` of events."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from llmkit.monitor.cost import JOULES_PER_KWH, Prices, Spent, money
from llmkit.monitor.energy import Kind, Meter, Reading, Sources, find_sources, host_id
from llmkit.parallel.mesh import Mesh

if TYPE_CHECKING:
    from llmkit.loop.trainer import Trainer

SHORTEST_SECONDS = 0.5
"""Rows that follow each other faster share a reading of the counters."""


class EnergyMeter:
    """This process's counters, read from its start on, and which of them count for the run.

    Each rank reads its own GPU; the first rank of a host reads the CPUs of that host. A kind of source counts
    where it covers the whole run: all GPUs, or the CPUs of all hosts. On GPUs, CPUs count beside GPUs only.

    sources: default: what is there. host: the same on all ranks of a host; default: found out.
    """

    def __init__(self, mesh: Mesh, sources: Sources | None = None, host: str | None = None) -> None:
        found = find_sources(mesh.device) if sources is None else sources
        self._mesh, self._missing, self._host = mesh, found.missing, host_id() if host is None else host
        self._there: set[Kind] = {counter.kind for counter in found.counters}
        self.meter = Meter(found.counters).start()
        self.kinds: list[Kind] = []
        """Those of this rank that count."""
        self.source: str | None = None
        """The kinds that are summed over ranks; None: there is no energy to show."""

    def agree(self) -> str | None:
        """Settles which counters count; returns why energy is not known, None where it is. Collective."""
        mine = {"host": self._host, "there": sorted(self._there), "missing": self._missing}
        ranks = [json.loads(text) for text in self._mesh.all_gather_text(json.dumps(mine))]
        on_gpus = self._mesh.device.type == "cuda"
        wanted: Kind = "nvml" if on_gpus else "rapl"
        lacking = next((rank for rank, each in enumerate(ranks) if wanted not in each["there"]), None)
        if lacking is not None:
            why = str(ranks[lacking]["missing"].get(wanted, "no counter"))
            return why if self._mesh.world_size == 1 else f"rank {lacking}: {why}"
        first_of_host = self._mesh.rank == [each["host"] for each in ranks].index(mine["host"])
        everywhere: list[Kind] = ["nvml"] if on_gpus else []
        if all("rapl" in each["there"] for each in ranks):
            everywhere.append("rapl")
        self.source = "+".join(everywhere)
        self.kinds = [kind for kind in everywhere if kind == "nvml" or first_of_host]
        return None

    def close(self) -> None:
        """Reads no more."""
        self.meter.close()


class Spending:
    """Makes the columns of energy and cost, on rank 0; the other ranks give it their readings.

    These go through the store in which the ranks met, a message a row: no rank waits for another, and what
    rank 0 sums up may be a row old. started: of this start, by `clock`.
    """

    def __init__(
        self, mesh: Mesh, energy: EnergyMeter, prices: Prices, started: float, clock: Callable[[], float]
    ) -> None:
        self._mesh, self._energy, self.prices = mesh, energy, prices
        self._started, self._clock = started, clock
        self.before = Spent()
        """What earlier starts have used; set on rank 0 before `start`."""
        self._readers: list[int] = []  # ranks other than 0 that have something to tell
        self._at = float("-inf")
        self._last: list[Reading] = []  # at the last row
        self._newest: list[Reading] = []
        self._watts: list[float | None] = []
        self._missed: list[int] = []
        self._tokens = 0
        self._recent: dict[str, float | None] = {"power_watts": None, "joules_per_token": None}

    def start(self, t: Trainer) -> None:
        """Before the first step; says where energy is not known, and adds columns to the rows. Collective."""
        if (why := self._energy.agree()) is not None:
            expected = self._mesh.device.type == "cuda" or self.prices.need_energy
            (t.console.note if expected else t.console.log)(f"energy is not measured: {why}")
        self._tokens = t.state.tokens
        t.row_columns.append(lambda: self.columns(t.state.tokens))
        reads = [bool(text) for text in self._mesh.all_gather_text("x" if self._energy.kinds else "")]
        self._publish()
        self._mesh.all_gather_text("")  # every reading is there
        self._readers = [rank for rank, has in enumerate(reads) if has and rank > 0]
        self._last, self._at = self._readings(), self._clock()
        self._newest = self._last
        self._watts, self._missed = [None] * len(self._last), [0] * len(self._last)

    def columns(self, tokens: int) -> dict[str, Any]:
        """The columns of a row; tokens: of the run so far. On ranks other than 0 nothing but a message."""
        now = self._clock()
        since = now - self._at
        if since >= SHORTEST_SECONDS:
            self._at = now
            self._energy.meter.update()
            self._publish()
            if self._mesh.rank == 0 and self._energy.source is not None:
                self._read(tokens, since)
        if self._mesh.rank > 0:
            return {}
        measured = self._energy.source is not None
        spent = self.until_now()
        return self._recent | {
            "energy_kwh": spent.energy_kwh if measured else None,
            "energy_source": self._energy.source,
            "device_hours": spent.device_hours,
            "cost": spent.cost,
            "co2_grams": spent.co2_grams if measured else None,
        }

    def until_now(self) -> Spent:
        """What the run has used, on rank 0: hours until now, energy as of the last reading."""
        hours = (self._clock() - self._started) * self._mesh.world_size / 3600
        joules = sum(reading.joules for reading in self._newest)
        kwh = joules / JOULES_PER_KWH if self._energy.source is not None else None
        return self.before.plus(hours, kwh, self.prices)

    def update(self) -> None:
        """Reads the counters between two rows, for `until_now`; the other ranks tell rank 0 theirs."""
        self._energy.meter.update()
        self._publish()
        if self._mesh.rank == 0:
            self._newest = self._readings()

    def used(self) -> dict[str, float | None]:
        """`until_now`, for an event."""
        return self.until_now().to_json()

    def describe(self) -> Iterator[tuple[str, str]]:
        """Lines for the plan at the start: where energy is read, and the prices, as far as there are any."""
        if (source := self._energy.source) is not None:
            names = {"nvml": "the GPUs (NVML)", "rapl": "the CPU packages, whoever uses them (RAPL)"}
            yield "energy", f"read from counters of {' and '.join(names[kind] for kind in source.split('+'))}"
        hour, kwh, devices = self.prices.per_device_hour, self.prices.per_kwh, self._mesh.world_size
        parts = []
        if hour is not None:
            parts.append(f"{money(hour * devices, self.prices)} an hour ({devices} devices)")
        if kwh is not None:
            parts.append(f"{money(kwh, self.prices)} a kWh")
        if parts:
            used = f"; {money(self.before.cost, self.prices)} until now" if self.before.cost else ""
            yield "cost", " and ".join(parts) + used

    def _read(self, tokens: int, seconds: float) -> None:
        """Takes the readings of all ranks: power, and energy a token. seconds: since those before."""
        found = self._readings()
        for rank, (old, new) in enumerate(zip(self._last, found, strict=True)):
            if new.seconds > old.seconds:
                self._watts[rank] = (new.joules - old.joules) / (new.seconds - old.seconds)
                self._missed[rank] = 0
            else:
                self._missed[rank] += 1
        # Of a rank that is late by a row the power of the row before counts.
        pairs = zip(self._watts, self._missed, strict=True)
        known = [watts for watts, missed in pairs if watts is not None and missed < 2]
        power = sum(known) if len(known) == len(found) else None
        trained = tokens - self._tokens
        self._recent["power_watts"] = power
        self._recent["joules_per_token"] = power * seconds / trained if power and trained > 0 else None
        self._last = self._newest = found
        self._tokens = tokens

    def _publish(self) -> None:
        if self._mesh.rank > 0 and self._mesh.store is not None and self._energy.kinds:
            reading = self._energy.meter.reading(self._energy.kinds)
            self._mesh.store.set(f"energy/{self._mesh.rank}", json.dumps(reading))

    def _readings(self) -> list[Reading]:
        """That of this rank, then those of the others as they have last told them."""
        own = [self._energy.meter.reading(self._energy.kinds)] if self._energy.kinds else []
        if self._mesh.rank > 0 or not self._readers or self._mesh.store is None:
            return own
        told = self._mesh.store.multi_get([f"energy/{rank}" for rank in self._readers])
        return own + [Reading(*json.loads(text)) for text in told]
