from dataclasses import replace

import pytest

from ea_psmnet.training.loop import learning_rate


def course(config, steps=100, **changes):
    return [learning_rate(replace(config, **changes), step, steps) for step in range(steps)]


def test_constant_is_the_default(config):
    assert set(course(config)) == {2e-3}


def test_one_cycle_rises_and_falls_to_nothing(config):
    cycle = course(config, schedule="one-cycle")
    assert max(cycle) == pytest.approx(2e-3)
    assert cycle[0] == pytest.approx(2e-3 / 5)
    assert cycle[-1] < 1e-5
    assert cycle[5:] == sorted(cycle[5:], reverse=True)


def test_cosine_falls_from_the_first_step(config):
    rates = course(config, schedule="cosine")
    assert rates[0] == 2e-3
    assert rates[50] == pytest.approx(1e-3)
    assert rates[25] == pytest.approx(1e-3 * (1 + 0.5**0.5))
    assert 0 < rates[-1] < 1e-5


def test_step_multiplies_at_each_milestone(config):
    rates = course(config, schedule="step", milestones=(0.5, 0.75), decay=0.2)
    assert rates[:50] == [2e-3] * 50
    assert rates[50:75] == pytest.approx([4e-4] * 25)
    assert rates[75:] == pytest.approx([8e-5] * 25)


def test_short_runs_have_a_rate_too(config):
    for schedule in ("constant", "step", "cosine", "one-cycle"):
        assert course(config, steps=1, schedule=schedule) == [2e-3]
