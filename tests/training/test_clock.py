"""What a step is said to have cost."""

import resource
import sys

import pytest

from ea_psmnet.training.clock import StepClock


@pytest.mark.parametrize(("system", "unit"), [("linux", 2**10), ("darwin", 1)])
def test_memory_is_told_in_the_unit_of_the_system(monkeypatch, system, unit):
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    monkeypatch.setattr(sys, "platform", system)
    told = StepClock().figures(samples=1)["memory"]
    assert told == pytest.approx(held * unit / 2**30, rel=0.1)
