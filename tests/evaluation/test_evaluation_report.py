import csv
import io
import json
import math

import numpy as np
import pytest
from made_pairs import made_pair

from ea_psmnet.evaluation.evaluation import evaluate_predictors
from ea_psmnet.evaluation.predictors import Predictor
from ea_psmnet.evaluation.protocols import find_protocols
from ea_psmnet.evaluation.report import EvaluationReport, comparison_section, images_csv
from ea_psmnet.evaluation.significance import Comparison, Difference


def shifted(label, error):
    return Predictor(label, lambda sample: sample.disparity + np.float32(error), timed=False)


PAIRS = [
    made_pair(np.full((4, 5), 20.0), "x/one", nonocc=np.arange(20).reshape(4, 5) > 3),
    made_pair([300.0, 300.0], "x/far"),
]


@pytest.fixture(scope="module")
def report():
    methods = [shifted("ours", 1.25), shifted("theirs", 3.5)]
    evaluations = evaluate_predictors(methods, PAIRS, protocols=find_protocols([]))
    return EvaluationReport("made up", tuple(evaluations), {"torch": "1.2"})


def table(text, first):
    """The rows of the Markdown table whose header starts with a name, as dictionaries."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first} "))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start:]]
    header, _, *body = rows[: next((i for i, r in enumerate(rows) if len(r) < 2), len(rows))]
    return [dict(zip(header, row, strict=True)) for row in body]


def test_the_page_shows_every_figure_where_it_belongs(report):
    page = report.to_markdown()
    ours, theirs = table(page, "method")
    # The smallest of a column is bold.
    assert (ours["method"], ours["EPE"], ours["bad-1"], ours["bad-2"]) == (
        *("ours", "**1.250**", "**100.00**", "**0.00**"),
    )
    assert (theirs["EPE"], theirs["D1"], theirs["density"]) == ("3.500", "100.00", "100.00")
    assert ours["density"] == "100.00"
    rows = {(r["protocol"], r["region"], r["method"]): r for r in table(page, "protocol")}
    assert rows["psmnet", "all", "ours"]["images"] == "1"
    assert rows["psmnet", "all", "ours"]["dropped"] == "1"
    assert rows["kitti", "all", "ours"]["pixels"] == "22"
    assert rows["kitti", "non-occluded", "theirs"]["pixels"] == "16"
    regions = {(r["region"], r["method"]): r for r in table(page, "region")}
    assert regions["non-occluded", "ours"]["share"] == "80.00"
    assert regions["occluded", "theirs"]["EPE"] == "3.500"
    assert ("32 to 64 px", "ours") not in regions


def test_the_page_says_what_was_counted_dropped_and_known(report):
    page = report.to_markdown()
    assert page.startswith("# Disparity errors: made up\n")
    assert "2 pairs, 20 valid pixels whose disparity is below 192 px" in page
    assert "- psmnet (all) drops 1, no counted pixel: x/far" in page
    assert "- **gwcnet**: the lower right 960 x 512 pixels" in page
    assert "1 of 2 pairs have a mask of the pixels visible in the right image" in page
    assert "torch 1.2" in page
    assert "earlier" not in page


def test_the_csv_has_a_line_a_method_and_image(report):
    lines = list(csv.DictReader(io.StringIO(images_csv(report.evaluations))))
    assert [(line["method"], line["image"]) for line in lines] == [
        *(("ours", "x/one"), ("ours", "x/far"), ("theirs", "x/one"), ("theirs", "x/far")),
    ]
    assert (float(lines[2]["EPE"]), float(lines[2]["A99"])) == (3.5, 3.5)
    assert (lines[1]["pixels"], lines[1]["EPE"], lines[1]["seconds"]) == ("0", "", "")


def test_a_written_report_reads_again(report, tmp_path):
    report.write(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images.csv", "report.json", "report.md"]
    again = EvaluationReport.read(tmp_path / "report.json")
    assert again.to_dict() == report.to_dict()
    assert again.to_markdown() == report.to_markdown()


def test_reports_are_compared_by_label(report):
    comparisons = report.against(report)
    assert [(c.label, c.against) for c in comparisons] == [("ours", "ours"), ("theirs", "theirs")]
    assert all((d.change, d.verdict) == (0, "equal") for c in comparisons for d in c.differences)


def test_a_report_of_one_method_is_compared_with_whatever_it_is(report):
    other = EvaluationReport("made up", report.evaluations[1:])
    first, second = report.against(other)
    assert (first.against, second.against) == ("theirs", "theirs")
    (epe,) = (d for d in first.differences if d.figure == "EPE")
    assert epe.change == pytest.approx(1.25 - 3.5)
    shown = EvaluationReport("made up", report.evaluations, {}, (first,)).to_markdown()
    rows = {r["figure"]: r for r in table(shown, "figure")}
    assert rows["EPE"]["change"] == "-2.250"
    assert rows["EPE"]["95 % interval"] == "-2.250 to -2.250"
    assert rows["EPE"]["verdict"] == "better"


def test_a_method_at_two_scales_is_compared_with_itself_at_one(report):
    renamed = Predictor("ours, two scales", lambda s: s.disparity)
    fine = EvaluationReport("made up", tuple(evaluate_predictors([renamed], PAIRS)))
    (comparison,) = fine.against(report)
    assert (comparison.label, comparison.against) == ("ours, two scales", "ours")
    assert report.against(fine)[0].against == "ours, two scales"
    both = EvaluationReport("made up", (*report.evaluations, *fine.evaluations))
    assert [c.against for c in both.against(both)] == [e.label for e in both.evaluations]


def test_a_comparison_names_what_it_left_out():
    worse = Difference("EPE", before=1.0, after=1.5, low=0.25, high=0.75)
    unknown = Difference("D1", before=8.0, after=7.0, low=math.nan, high=math.nan)
    text = comparison_section(Comparison("new", "old", 7, (worse, unknown), ("a", "b"), ("c",)))
    rows = table(text, "figure")
    assert [row["95 % interval"] for row in rows] == ["+0.250 to +0.750", "none"]
    assert [row["verdict"] for row in rows] == ["worse", "unclear"]
    assert "Not in the earlier report, and left out: a, b." in text
    assert "Not in the new report, and left out: c." in text


def test_an_ambiguous_comparison_is_refused(report):
    renamed = [Predictor(label, lambda s: s.disparity) for label in ("a", "b")]
    other = EvaluationReport("made up", tuple(evaluate_predictors(renamed, PAIRS)))
    with pytest.raises(ValueError, match="no 'ours'; it has a, b: evaluate one"):
        report.against(other)


def refusal(path):
    """What is said of a file that is no report, past its name."""
    with pytest.raises(
        ValueError, match="it is not a report that `evaluate --out` wrote"
    ) as caught:
        EvaluationReport.read(path)
    name, told = str(caught.value).split(": ", 1)
    assert name == str(path)
    assert "\n" not in told
    return told


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "{}", '{"version": 9}', '{"version": 1, "methods": 3}', "[" * 9999]
)
def test_what_is_no_report_is_refused(tmp_path, text):
    path = tmp_path / "report.json"
    path.write_text(text)
    refusal(path)


def test_half_a_report_is_refused(report, tmp_path):
    report.write(tmp_path)
    path = tmp_path / "report.json"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert refusal(path).startswith("invalid JSON: EOF while parsing")


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        ("methods", [], "methods is empty"),
        ("methods.0.images", [], "methods[0]: images is empty"),
        ("methods.0.regions", {}, "methods[0]: regions and quantiles must both have 'all'"),
        ("methods.0.quantiles", {}, "methods[0]: regions and quantiles must both"),
        ("methods.1.protocols", [], "methods differ in their regions or protocols"),
        ("methods.0.protocols.0.name", "x", "methods[0]: unknown protocol 'x'"),
        ("methods.0.label", None, "methods[0].label should be a valid string, not None"),
        ("methods.0.images.0.seconds", "1", "methods[0].images[0].seconds should be"),
        ("methods.0.images.0.errors.pixels", -1, "methods[0].images[0].errors: pixels"),
        ("methods.0.images.0.errors.over_1px", 99, "methods[0].images[0].errors: over"),
        ("methods.0.images.0.errors.absolute", math.nan, "methods[0].images[0].errors"),
        ("methods.0.images.0.errors", {}, "methods[0]: regions have more"),
        ("methods.0.images.0.colour", 1, "methods[0].images[0].colour is unknown"),
        ("settings.torch", 2, "settings.torch should be a valid string, not 2"),
    ],
)
def test_a_damaged_report_is_refused_by_file_and_field(report, tmp_path, place, value, told):
    record = report.to_dict()
    *path, last = (int(step) if step.isdecimal() else step for step in place.split("."))
    part = record
    for step in path:
        part = part[step]
    part[last] = value
    (tmp_path / "report.json").write_text(json.dumps(record))
    assert refusal(tmp_path / "report.json").startswith(told)


def test_no_such_report(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.json: no such file"):
        EvaluationReport.read(tmp_path / "none.json")


def test_a_report_without_any_figure_is_written_too(tmp_path):
    evaluations = evaluate_predictors([shifted("ours", 1)], PAIRS[1:], protocols=find_protocols([]))
    report = EvaluationReport("far", tuple(evaluations))
    report.write(tmp_path)
    assert math.isnan(evaluations[0].total.epe)
    assert json.loads((tmp_path / "report.json").read_text())["methods"][0]["total"]["pixels"] == 0
