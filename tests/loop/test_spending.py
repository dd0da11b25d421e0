"""Energy and cost of a run: of all its ranks, hosts and starts."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._C._distributed_c10d import HashStore

from llmkit.loop import spending
from llmkit.loop.spending import EnergyMeter, Spending
from llmkit.loop.state import TrainState
from llmkit.monitor.cost import Prices, Spent
from llmkit.monitor.energy import Counter, Kind, Sources
from llmkit.parallel.mesh import Mesh
from tests.limits import HANG
from tests.program import at_step, recorded, rows, train


class Meeting:
    """Ranks that are threads: what they gather, and the store in which they met."""

    def __init__(self, size: int) -> None:
        self.size, self.store = size, HashStore()
        self.barrier = threading.Barrier(size, timeout=HANG)
        self.texts = [""] * size

    def gather(self, rank: int, text: str) -> list[str]:
        self.barrier.wait()
        self.texts[rank] = text
        self.barrier.wait()
        return list(self.texts)


@dataclass(frozen=True)
class ThreadMesh(Mesh):
    """The mesh of such a rank."""

    meeting: Meeting | None = None

    def all_gather_text(self, text: str) -> list[str]:
        assert self.meeting is not None
        return self.meeting.gather(self.rank, text)


class Ranks:
    """Ranks with counters that are set by hand. kinds: of each rank; hosts: of each; device: of all."""

    def __init__(self, kinds: list[list[Kind]], hosts: str, device: str = "cpu", **prices: Any) -> None:
        self.now, self.joules = 0.0, {kind: [0.0] * len(kinds) for kind in ("nvml", "rapl")}
        self.trained = 100
        self.hosts, meeting = hosts, Meeting(len(kinds))
        self.said: list[str] = []
        console = SimpleNamespace(note=self.said.append, log=lambda line: None)
        self.trainer: Any = SimpleNamespace(console=console, state=TrainState(), row_columns=[])
        self.energies, self.spendings = [], []
        for rank, there in enumerate(kinds):
            mesh = ThreadMesh(
                rank, len(kinds), device=torch.device(device), store=meeting.store, meeting=meeting
            )
            counters = [Counter(kind, kind, self._reader(kind, rank)) for kind in there]
            missing: dict[Kind, str] = {
                kind: f"no {kind} here" for kind in ("nvml", "rapl") if kind not in there
            }
            energy = EnergyMeter(mesh, Sources(counters, missing), host=hosts[rank])
            energy.meter._clock, energy.meter._began = lambda: self.now, 0.0
            energy.meter.update()
            self.energies.append(energy)
            self.spendings.append(Spending(mesh, energy, Prices(**prices), 0.0, lambda: self.now))

    def _reader(self, kind: str, rank: int) -> Any:
        return lambda: self.joules[kind][rank]

    def start(self, before: Spent | None = None) -> Spending:
        self.spendings[0].before = before or Spent()
        with ThreadPoolExecutor(len(self.spendings)) as pool:
            list(pool.map(lambda each: each.start(self.trainer), self.spendings))
        return self.spendings[0]

    def tokens(self, more: int) -> int:
        self.trained += more
        return self.trained

    def row(self, tokens: int, seconds: float, **joules: list[float]) -> dict[str, Any]:
        """What rank 0 makes of a row, the others having told what they read before."""
        self.now += seconds
        for kind, spent in joules.items():
            self.joules[kind] = [old + new for old, new in zip(self.joules[kind], spent, strict=True)]
        for each in self.spendings[1:]:
            assert each.columns(tokens) == {}
        return self.spendings[0].columns(tokens)


def test_each_host_counts_its_packages_once() -> None:
    ranks = Ranks([["rapl"]] * 4, hosts="aabb", per_kwh=0.5, grid=300.0, pue=1.5)
    ranks.start()
    row = ranks.row(1000, 10.0, rapl=[600.0, 600.0, 300.0, 300.0])
    assert row["energy_source"] == "rapl"
    assert row["power_watts"] == pytest.approx(90.0)
    assert row["joules_per_token"] == pytest.approx(0.9)
    assert row["energy_kwh"] == pytest.approx(900 / 3.6e6)
    assert row["cost"] == pytest.approx(900 / 3.6e6 * 0.75)
    assert row["co2_grams"] == pytest.approx(900 / 3.6e6 * 450.0)
    assert row["device_hours"] == pytest.approx(40 / 3600)


def test_each_rank_counts_its_gpu_and_hosts_their_packages() -> None:
    ranks = Ranks([["nvml", "rapl"]] * 3, hosts="aab", device="cuda")
    ranks.start()
    row = ranks.row(100, 10.0, nvml=[5000.0, 4000.0, 3000.0], rapl=[500.0, 500.0, 250.0])
    assert row["energy_source"] == "nvml+rapl"
    assert row["power_watts"] == pytest.approx(1275.0)
    row = ranks.row(300, 5.0, nvml=[2000.0, 2000.0, 2000.0], rapl=[100.0, 100.0, 100.0])
    assert row["power_watts"] == pytest.approx(1240.0)
    assert row["joules_per_token"] == pytest.approx(31.0)
    assert row["energy_kwh"] == pytest.approx(18_950 / 3.6e6)


def test_a_source_that_does_not_cover_the_run_does_not_count() -> None:
    ranks = Ranks([["nvml", "rapl"], ["nvml"]], hosts="ab", device="cuda")
    ranks.start()
    row = ranks.row(100, 10.0, nvml=[5000.0, 4000.0], rapl=[500.0, 0.0])
    assert (row["energy_source"], row["power_watts"]) == ("nvml", pytest.approx(900.0))
    ranks = Ranks([["nvml", "rapl"], ["rapl"]], hosts="ab", device="cuda", per_device_hour=2.0)
    ranks.start()
    assert ranks.said == ["energy is not measured: rank 1: no nvml here"] * 2
    row = ranks.row(100, 1800.0, nvml=[5000.0, 0.0], rapl=[500.0, 500.0])
    for name in ("energy_source", "power_watts", "energy_kwh", "joules_per_token", "co2_grams"):
        assert row[name] is None, name
    assert row["cost"] == pytest.approx(2.0)


def test_without_counters_and_prices_nothing_is_known_but_the_hours() -> None:
    ranks = Ranks([[]], hosts="a")
    ranks.start()
    row = ranks.row(100, 36.0)
    assert row.pop("device_hours") == pytest.approx(0.01)
    assert row and set(row.values()) == {None}
    assert ranks.said == []  # it is in the log alone, as nobody has asked


def test_the_plan_names_sources_and_prices() -> None:
    ranks = Ranks([["nvml", "rapl"]] * 2, hosts="aa", device="cuda", per_device_hour=2.5, per_kwh=0.25)
    assert dict(ranks.start(Spent(4.0, None, 20.0)).describe()) == {
        "energy": "read from counters of the GPUs (NVML) and the CPU packages, whoever uses them (RAPL)",
        "cost": "5.00 USD an hour (2 devices) and 0.25 USD a kWh; 20.00 USD until now",
    }
    assert list(Ranks([[]], hosts="a").start().describe()) == []


def test_earlier_starts_count() -> None:
    ranks = Ranks([["rapl"]], hosts="a", per_device_hour=1.0)
    ranks.start(Spent(10.0, 2.0, 7.5))
    row = ranks.row(100, 3600.0, rapl=[3.6e6])
    assert (row["device_hours"], row["energy_kwh"], row["cost"]) == pytest.approx((11.0, 3.0, 8.5))


def test_rows_in_quick_succession_share_a_reading() -> None:
    ranks = Ranks([["rapl"]], hosts="a")
    ranks.start()
    first = ranks.row(100, 10.0, rapl=[1000.0])
    second = ranks.row(200, spending.SHORTEST_SECONDS / 2, rapl=[10.0])
    assert {**second, "device_hours": 0} == {**first, "device_hours": 0}
    third = ranks.row(300, spending.SHORTEST_SECONDS, rapl=[30.0])
    assert third["joules_per_token"] == pytest.approx(40.0 / 200)


def test_a_rank_that_is_late_by_a_row_counts_as_before_and_later_not_at_all() -> None:
    ranks = Ranks([["rapl"]] * 2, hosts="ab")
    ranks.start()
    first = ranks.row(100, 10.0, rapl=[1000.0, 500.0])
    assert first["power_watts"] == pytest.approx(150.0)
    for wanted in (250.0, None):
        ranks.now += 10.0
        ranks.joules["rapl"] = [joules + 2000.0 for joules in ranks.joules["rapl"]]
        late = ranks.spendings[0].columns(ranks.tokens(100))
        assert late["power_watts"] == (wanted and pytest.approx(wanted))
        assert late["joules_per_token"] == (wanted and pytest.approx(wanted * 10.0 / 100))
    assert late["energy_kwh"] == pytest.approx(5500 / 3.6e6)  # what the second rank has told
    assert ranks.row(1000, 10.0, rapl=[0.0, 0.0])["energy_kwh"] == pytest.approx(9500 / 3.6e6)


def test_what_is_used_after_the_last_row_counts_in_events_and_the_next_row() -> None:
    ranks = Ranks([["rapl"]] * 2, hosts="ab")
    ranks.start()
    ranks.row(100, 10.0, rapl=[1000.0, 500.0])
    ranks.now, ranks.joules["rapl"] = 20.0, [4000.0, 2500.0]  # as a save and an evaluation take it
    for each in reversed(ranks.spendings):
        each.update()
    assert ranks.spendings[0].used()["energy_kwh"] == pytest.approx(6500 / 3.6e6)
    row = ranks.row(200, 10.0, rapl=[1000.0, 500.0])
    assert row["power_watts"] == pytest.approx(6500 / 20.0)
    assert row["joules_per_token"] == pytest.approx(6500 / 100)


def test_a_counter_that_fails_shows_no_power() -> None:
    ranks = Ranks([["rapl"]], hosts="a")
    ranks.start()
    ranks.joules["rapl"] = []
    ranks.now += 10.0
    row = ranks.spendings[0].columns(100)
    assert row["power_watts"] is None and row["joules_per_token"] is None and row["energy_kwh"] == 0.0


def test_a_run_and_its_resume_have_the_columns_and_one_sum(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A counter of 100 watts."""
    counter = Counter("rapl", "test", lambda: 100.0 * time.monotonic())
    monkeypatch.setattr(spending, "find_sources", lambda device: Sources([counter], {}))
    monkeypatch.setattr(spending, "SHORTEST_SECONDS", 0.0)
    settings = ["monitor.cost.per_device_hour=3600", "monitor.grid_gco2_per_kwh=1000", "monitor.log_every=3"]
    assert train("train.max_steps=6", *settings) == 0
    assert train("train.max_steps=12", *settings) == 0
    found, folder = rows(project / "runs/tiny"), project / "runs/tiny"
    assert [row["step"] for row in found if "loss" in row] == [1, 3, 6, 9, 12]
    for row in found:
        if "loss" in row:
            assert row["power_watts"] > 0.0 and row["joules_per_token"] > 0.0
            assert 0.0 < row["energy_kwh"] <= 0.1 * row["device_hours"]  # metered a little later than timed
            assert row["energy_source"] == "rapl"
            assert row["cost"] == pytest.approx(3600 * row["device_hours"])
            assert row["co2_grams"] == pytest.approx(1000 * row["energy_kwh"])
    for name in ("energy_kwh", "device_hours", "cost", "co2_grams"):
        values = [row[name] for row in found if "loss" in row]
        assert values == sorted(values) and values[0] > 0, name
    (begun,), (resumed,) = recorded("start", folder), recorded("resume", folder)
    done = recorded("done", folder)[-1]
    assert 0.0 < begun["spent"]["device_hours"] < found[0]["device_hours"]
    assert resumed["spent"]["cost"] >= next(row["cost"] for row in found if row["step"] == 6)
    last = [row["cost"] for row in found if "cost" in row][-1]
    assert done["spent"]["cost"] >= last > resumed["spent"]["cost"]
    last = [row["energy_kwh"] for row in found if "energy_kwh" in row][-1]
    saved = recorded("save", folder)[-1]["spent"]["energy_kwh"]
    assert done["spent"]["energy_kwh"] > saved > last, "with the last save and evaluation"


def test_what_a_killed_start_has_used_counts_up_to_its_last_row(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps 6 and 7 have rows, which a resume from step 5 drops, but what they cost was spent."""

    def killed_here() -> None:
        raise SystemExit(137)

    with monkeypatch.context() as patch:
        at_step(patch, 9, killed_here)
        with pytest.raises(SystemExit):
            train("monitor.cost.per_device_hour=3600")
    folder = project / "runs/tiny"
    lines = (folder / "events.jsonl").read_text().splitlines(keepends=True)
    assert '"fault"' in lines.pop()  # which kill -9 would not have left
    (folder / "events.jsonl").write_text("".join(lines))
    killed = rows(folder)[-1]
    assert killed["step"] > 5
    assert train("monitor.cost.per_device_hour=7200") == 0
    (resumed,) = recorded("resume", folder)
    assert resumed["step"] == 5
    first = next(row for row in rows(folder) if row["step"] == 6)
    hours = first["device_hours"] - killed["device_hours"]
    assert hours > 0.0
    assert first["cost"] == pytest.approx(killed["cost"] + 7200 * hours)
