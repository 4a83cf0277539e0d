"""What the paper's training costs, worked out by hand where the formulas say how."""

import re
from pathlib import Path

import pytest

from ea_psmnet.training.paper_plan import Cluster, Measured, main, paper_plan, plans

ROOT = Path(__file__).parents[2]
CLUSTER = Cluster(per_node=8, inside=400.0, between=50.0, latency=5.0)


def test_a_sum_over_gpus_takes_its_hops_and_almost_twice_its_bytes():
    assert CLUSTER.all_reduce(4e6, 1) == 0
    assert CLUSTER.all_reduce(0, 2) == pytest.approx(2 * 5e-6)
    assert CLUSTER.all_reduce(0, 24) == pytest.approx(2 * 5 * 5e-6)
    assert CLUSTER.all_reduce(4e6, 8) == pytest.approx(30e-6 + 2 * 7 / 8 * 4e6 / 400e9)
    assert CLUSTER.all_reduce(4e6, 64) == pytest.approx(60e-6 + 2 * 63 / 64 * 4e6 / 50e9)


def test_one_gpu_takes_all_samples_at_its_rate():
    (plan,) = plans(40.0, [1], 4 * 5_224_768, CLUSTER)
    assert (plan.gpus, plan.batch, plan.idle, plan.steps) == (1, 24, 0, 147_725)
    assert plan.hours == pytest.approx(100 * 35_454 / 40 / 3600)
    assert plan.samples_per_second == pytest.approx(40.0)


def test_more_gpus_share_the_batch_and_pay_for_communication():
    (plan,) = plans(40.0, [8], 4e6, CLUSTER)
    step = 3 / 40 + CLUSTER.all_reduce(4e6, 8)
    assert plan.hours == pytest.approx(147_725 * step / 3600)
    assert plan.samples_per_second == pytest.approx(24 / step)


def test_gpus_that_do_not_divide_the_batch_are_left_idle():
    assert [(p.gpus, p.idle) for p in plans(1.0, [7, 16], 4e6, CLUSTER)] == [(6, 1), (12, 4)]


def test_more_gpus_than_samples_keep_the_batch_or_enlarge_it():
    kept, larger = plans(1.0, [64], 4e6, CLUSTER)
    assert (kept.gpus, kept.idle, kept.batch, kept.steps) == (24, 40, 24, 147_725)
    assert (larger.gpus, larger.idle, larger.batch, larger.steps) == (64, 0, 64, 55_396)
    assert larger.hours < kept.hours


def numbers(page, gpus, table):
    """The numbers of the row for some GPUs, in the first or second table."""
    rows = [line for line in page.splitlines() if re.match(rf"\| +{gpus} |\| {gpus} ", line)]
    return [float(n) for n in re.findall(r"\d+\.\d+|\d+", rows[table].replace(",", ""))]


def test_the_page_is_computed_from_the_network_and_the_rate():
    page = paper_plan(Measured(40.0, "one of a kind"), [1, 8], CLUSTER, "psmnet")
    assert "Measured: 40 samples a second of one of a kind" in page
    assert "No GPU's rate" not in page
    assert "adds up 20.9 MB of float32 gradients" in page  # 5,224,768 x 4
    assert numbers(page, 1, 0)[4] == 24.6  # hours
    seconds = CLUSTER.all_reduce(4 * 5_224_768, 8)
    assert numbers(page, 8, 0)[4] == pytest.approx(147_725 * (3 / 40 + seconds) / 3600, abs=0.05)
    limits = numbers(page, 8, 1)
    assert limits[2] == pytest.approx(1000 * seconds, abs=0.005)
    # 3 samples take nine tenths of a step of which the gradients take one.
    assert limits[4] == pytest.approx(3 / (9 * seconds), abs=0.5)


def test_without_a_rate_the_page_says_that_none_was_measured():
    page = paper_plan(None, [1], CLUSTER, "psmnet")
    assert "**No GPU's rate has been measured yet.**" in page
    assert "Measured:" not in page
    assert numbers(page, 1, 0)[4] == 984.8


@pytest.mark.parametrize(
    "options",
    [{"gpus": (0,)}, {"samples_per_second": 0.0, "gpu": "x"}, {"samples_per_second": 1.0}],
)
def test_impossible_plans_are_refused(tmp_path, options):
    with pytest.raises(SystemExit, match="error: "):
        main(out=tmp_path / "plan.md", **options)
    assert not (tmp_path / "plan.md").exists()


def test_the_page_in_the_documents_is_what_the_command_writes(tmp_path):
    """As long as it is of no measurement."""
    stored = (ROOT / "docs" / "paper-plan.md").read_text()
    main(out=tmp_path / "plan.md")
    assert (tmp_path / "plan.md").read_text() == stored or "Measured:" in stored
