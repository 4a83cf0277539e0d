"""What a benchmark of the network found, and what of it was to be reached."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from ea_psmnet.reports.network_accuracy import Accuracy
from ea_psmnet.reports.network_cases import NetworkCase, NetworkMeasurement
from ea_psmnet.reports.network_floor import NetworkFloor

__all__ = ["NetworkResults", "Record", "Target"]


@dataclass(frozen=True)
class Record:
    """A case and what it took: medians."""

    case: NetworkCase
    measured: NetworkMeasurement
    fastest: float
    """Seconds in the best round."""
    slowest: float
    """Seconds in the worst round."""

    @classmethod
    def of(cls, case: NetworkCase, rounds: list[NetworkMeasurement]) -> Record:
        """A case from what it took in each round, of which there is one at least."""
        seconds = sorted(m.seconds for m in rounds)
        middle = NetworkMeasurement(
            statistics.median(seconds),
            int(statistics.median(m.peak for m in rounds)),
            _medians([m.layers for m in rounds]),
            _medians([m.peaks for m in rounds]),
        )
        return cls(case, middle, seconds[0], seconds[-1])


def _medians(parts: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: statistics.median(part[name] for part in parts) for name in parts[0]}


@dataclass(frozen=True)
class Target:
    """Something to reach."""

    name: str
    wanted: float
    found: float
    at_least: bool
    """Whether more is better."""

    @property
    def met(self) -> bool:
        """Whether it was reached."""
        return self.found >= self.wanted if self.at_least else self.found <= self.wanted


@dataclass(frozen=True)
class NetworkResults:
    """One run."""

    machine: str
    rounds: int
    floor: NetworkFloor
    records: list[Record]
    accuracy: list[Accuracy]
    sittings: int = 1
    """How often it was started until it was done."""

    def find(self, case: NetworkCase) -> NetworkMeasurement | None:
        """What a case took; None where it was not measured or failed."""
        return next((r.measured for r in self.records if r.case == case), None)

    def plain(self, case: NetworkCase, *, keep_memory: bool | None = None) -> NetworkCase:
        """The published form of a case; by default with the default allocator where it has one."""
        kept = replace(case, form="plain", network=case.network, keep_memory=True)
        default = replace(kept, keep_memory=False)
        if keep_memory is None:
            return default if self.find(default) else kept
        return kept if keep_memory else default

    def faster(self, case: NetworkCase, *, keep_memory: bool | None = None) -> float:
        """Times faster than the published form; NaN where either is missing."""
        fast, plain = self.find(case), self.find(self.plain(case, keep_memory=keep_memory))
        return plain.seconds / fast.seconds if fast and plain else float("nan")

    def lighter(self, case: NetworkCase) -> float:
        """Peak memory over the published form's; NaN where either is missing."""
        fast, plain = self.find(case), self.find(self.plain(case))
        return fast.peak / max(1, plain.peak) if fast and plain else float("nan")

    def targets(self) -> list[Target]:
        """What was to be reached, of what was measured."""
        on_card = all(r.case.keep_memory for r in self.records) and bool(self.records)
        found = [*self._speed(on_card), *self._training(on_card), *self._attention()]
        return [t for t in [*found, *self._accuracy()] if t.found == t.found]

    def _speed(self, on_card: bool) -> Iterator[Target]:
        wanted = {(544, 960): (6.0, 3.0), (256, 512): (5.0, 2.0)}
        if on_card:
            wanted = dict.fromkeys(wanted, (5.0, 2.0))
        for size, (fast, exact) in wanted.items():
            name = f"{size[0]} x {size[1]}"
            yield Target(
                f"inference, fast, {name}", fast, self.faster(NetworkCase("fast", size)), True
            )
            yield Target(
                f"inference, float32, {name}", exact, self.faster(NetworkCase("exact", size)), True
            )
            share = 1 / 4 if on_card else 1 / 3
            lighter = self.lighter(NetworkCase("fast", size))
            yield Target(f"peak memory, fast, {name}", share, lighter, False)

    def _training(self, on_card: bool) -> Iterator[Target]:
        steps = [r.case for r in self.records if r.case.training and r.case.form == "fast"]
        steps = [case for case in steps if case.size == (256, 512) and case.max_disparity == 192]
        for case in steps:
            if not on_card or case.batch == 24:
                name = f"training step, {case.network}, 256 x 512, batch {case.batch}"
                yield Target(name, 4.0 if on_card else 3.5, self.faster(case), True)

    def _attention(self) -> Iterator[Target]:
        for record in self.records:
            if record.case.network == "ea-psmnet" and not record.case.training:
                plain = self.find(replace(record.case, network="psmnet"))
                more = record.measured.seconds / plain.seconds - 1 if plain else float("nan")
                height, width = record.case.size
                yield Target(f"attention's extra time, {height} x {width}", 0.1, more, False)

    def _accuracy(self) -> Iterator[Target]:
        if not self.accuracy:
            return
        pairs = self.accuracy
        changes = [a.fast_mean for a in pairs]
        epes = [abs(a.epe_fast - a.epe_plain) for a in pairs]
        exact = max(a.exact_max for a in pairs)
        yield Target("float32, largest change, px", 0.005, exact, False)
        yield Target(
            "fast, mean change, mean of the pairs, px", 0.02, statistics.mean(changes), False
        )
        yield Target("fast, mean change, worst pair, px", 0.02, max(changes), False)
        yield Target("fast, change of EPE, worst pair, px", 0.005, max(epes), False)

    def verdict(self) -> str:
        """How many of the targets are met."""
        targets = self.targets()
        return f"{sum(t.met for t in targets)} of {len(targets)} targets met"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        targets = [asdict(target) | {"met": target.met} for target in self.targets()]
        return asdict(self) | {"targets": targets}
