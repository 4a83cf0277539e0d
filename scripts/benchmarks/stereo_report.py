"""The page of `stereo.py`: tables, and the plot of errors against time."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import NDArray

from ea_psmnet.evaluation.regions import ALL, NEAR_EDGES, NON_OCCLUDED
from ea_psmnet.figures import dress, new_figure, to_image
from ea_psmnet.tables import markdown_table

SIZES = ((240, 320), (480, 640), (540, 960), (375, 1242))
"""Heights and widths of the pairs."""
AS_DENSE = "as dense as StereoSGBM"

MAIN, _BASE = "960x540", "StereoSGBM"
_BELOW = ("StereoSGBM, three-way", "StereoSGBM, full", "ea-light, ONNX Runtime")
"""Methods whose names stand below their points in the plot, beside others."""
_COLOURS = {"ours": "#1b6ca8", "exported": "#2a9d8f", "OpenCV": "#c0504d"}


def markdown(report: dict[str, Any], name: str) -> str:
    """All tables, with what they mean; `name` is that of the files of the report."""
    machine = report["machine"]
    used = "used" if machine["bfloat16"] else "not used"
    parts = [
        "# Stereo on a CPU: time, memory and errors",
        f"{machine['processor']}, {machine['threads']} threads, torch {machine['torch']}, OpenCV "
        f"{machine['opencv']}, bfloat16 {used}; 192 disparities, batch 1. Raw figures: "
        f"[{name}.json]({name}.json). To repeat it on a machine that does nothing else:",
        f"```sh\n{_COMMAND}\n```",
    ]
    if _BASE in report["errors"]:
        parts += [f"![Errors against time]({name}.png)", "## Beside StereoSGBM", _SHORT]
        parts.append(markdown_table(_ratio_rows(report)))
    parts += ["## Seconds a pair", _METHOD, *_time_tables(report)]
    parts += ["## Work and memory, 960 x 540", _WORK, markdown_table(_work_rows(report))]
    parts += ["## A stream of frames, 640 x 480", _STREAM, markdown_table(_stream_rows(report))]
    if networks := _floor_rows(report):
        parts += ["## Arithmetic and training", _FLOOR, markdown_table(networks)]
    if report["errors"]:
        parts += ["## Errors", _ERRORS, *_error_tables(report)]
    return "\n\n".join(parts) + "\n"


_COMMAND = ".venv/bin/python scripts/benchmarks/stereo.py --pairs FOLDER"
_SHORT = (
    "Ratios to StereoSGBM's median seconds, core-seconds and mean bad-2 over the kinds of pairs "
    "(below 1 is better): 960 x 540, all pixels."
)
_METHOD = (
    "Median (best to worst) of rounds in which every method is measured once in every situation. "
    "*Busy*: all threads beside two processes that only compute. OpenCV's methods have their left "
    "border padded, so that all 192 disparities are searched everywhere, and their holes filled. "
    "*Two scales*: the pair is matched again at twice its size, as far as the first pass found "
    "disparities; in the noise without matches that is timed here this is most of the range, so "
    "other pairs take less. "
    "*Shape*: layers like those of a published network, with random weights and torch's operators; "
    "for time alone. *Published form*: PSMNet as published, in float32, with all threads alone."
)
_WORK = (
    "Core-seconds are those of all threads together. MiB: peak of a process of its own in addition "
    "to what it held after a small pair. Joules are those of the processor's package, where the "
    "machine tells them."
)
_STREAM = (
    "Latency: a frame with all threads. Throughput: one process of one thread on each core, all at "
    "once."
)
_FLOOR = (
    "GMAC: multiply-adds of convolutions and matrix products of the plain form. Floor: their time "
    "at the rate of a large convolution in the same run; a backward counts as two forwards. "
    "Winograd's convolutions, which wide networks use, need fewer multiplications and may be "
    "faster. A training sample is a step of batch 1 at 512 x 256."
)
_ERRORS = (
    "Means over the pairs of a kind, none of which was used in training: four frames of "
    "FlyingThings3D; the first pairs of KITTI 2012 and 2015; Barn2, Bull, Poster, Sawtooth, "
    "Tsukuba and Venus (Middlebury 2001), Cones (2003), Cloth3 and Wood2 (2006, half size) and "
    "Adirondack (2014, quarter size), which are smaller and easier than the pairs of Middlebury's"
    " table; ETH3D's playground; a frame of New Tsukuba; and five crops of rendered frames whose "
    "two images differ in colour and gamma. Pixels with known disparity below 192. Errors above "
    "192 px count as 192. Near edges: at most 4 px from a jump of more than 2 px. As dense as "
    "StereoSGBM: as many pixels of each pair as StereoSGBM keeps before its holes are filled; a "
    "network keeps its most confident ones, and other methods, exported networks among them, keep"
    " the same pixels as StereoSGBM."
)


def _seconds(quantity: dict[str, float]) -> str:
    median, best, worst = (quantity[key] for key in ("median", "best", "worst"))
    return f"{median:.3f} ({best:.3f} to {worst:.3f})"


def _time_tables(report: dict[str, Any]) -> list[str]:
    tables = []
    titles = {"all threads": "All threads", "one thread": "One thread", "busy": "Busy"}
    for situation, title in titles.items():
        rows: dict[str, dict[str, str]] = {}
        for row in report["pairs"]:
            if row["situation"] == situation:
                cells = rows.setdefault(row["method"], {"method": row["method"]})
                cells[row["size"]] = _seconds(row["seconds"])
        if rows:
            tables += [f"### {title}", markdown_table(list(rows.values()))]
    return tables


def _main_rows(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Rows of the main size with all threads, by method."""
    return {
        row["method"]: row
        for row in report["pairs"]
        if row["size"] == MAIN and row["situation"] == "all threads"
    }


def _mean_bad_2(by_kind: dict[str, Any]) -> float:
    """Mean over the kinds of pairs, all pixels, in percent."""
    return float(np.mean([figures[ALL]["bad_2"] for figures in by_kind.values()]))


def _ratio_rows(report: dict[str, Any]) -> list[dict[str, Any]]:
    rows = _main_rows(report)
    base = rows[_BASE]
    return [
        {
            "method": name,
            "seconds": rows[name]["seconds"]["median"] / base["seconds"]["median"],
            "seconds, busy": _busy_seconds(report, name) / _busy_seconds(report, _BASE),
            "core-seconds": rows[name]["core_seconds"]["median"] / base["core_seconds"]["median"],
            "bad-2": _mean_bad_2(by_kind) / _mean_bad_2(report["errors"][_BASE]),
        }
        for name, by_kind in report["errors"].items()
    ]


def _busy_seconds(report: dict[str, Any], method: str) -> float:
    key = method, MAIN, "busy"
    return next(
        float(row["seconds"]["median"])
        for row in report["pairs"]
        if (row["method"], row["size"], row["situation"]) == key
    )


def _work_rows(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "method": name,
            "kind": report["methods"][name]["kind"],
            "core-seconds": row["core_seconds"]["median"],
            "MiB": f"{report['peak_bytes'][name] / 2**20:.0f}",
            "J": row["joules"]["median"] if "joules" in row else None,
        }
        for name, row in _main_rows(report).items()
    ]


def _stream_rows(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"method": name, "latency, s": f["latency"], "frames a second": f["frames_a_second"]}
        for name, f in report["stream"].items()
    ]


def _floor_rows(report: dict[str, Any]) -> list[dict[str, Any]]:
    times = report["training"]
    rates = [each["median"] for name, each in times.items() if name.startswith("rate ")]
    rate = report["rate_operations"] / min(rates)
    rows = []
    for name, row in _main_rows(report).items():
        network = report["methods"][name]
        if "macs" not in network:
            continue
        floor = 2 * network["macs"]["544x960"] / rate
        rows.append(
            {
                "method": name,
                "parameters": f"{network['parameters']:,}",
                "GMAC": network["macs"]["544x960"] / 1e9,
                "floor, s": f"{floor:.3f}",
                "times the floor": row["seconds"]["median"] / floor,
                "a training sample, s": _seconds(times[name]) if name in times else "-",
                "its floor, s": f"{6 * network['macs']['256x512'] / rate:.3f}",
            }
        )
    return rows


def _error_tables(report: dict[str, Any]) -> list[str]:
    tables = []
    for region, bad in (
        (ALL, "bad_2"), (ALL, "bad_1"), (NON_OCCLUDED, "bad_2"), (NEAR_EDGES, "bad_2"),
        (NEAR_EDGES, "bad_1"), (AS_DENSE, "bad_2"),
    ):  # fmt: skip
        rows: list[dict[str, Any]] = []
        for name, by_kind in report["errors"].items():
            cells = {
                f"{kind} ({figures[region]['pairs']})": _error(figures[region], bad)
                for kind, figures in by_kind.items()
                if region in figures
            }
            rows.append({"method": name, **cells})
        title = f"{region[0].upper()}{region[1:]}"
        bads = bad.replace("_", "-")
        tables += [f"### {title}: EPE / {bads} in percent", markdown_table(rows)]
    return tables


def _error(figures: dict[str, float], bad: str) -> str:
    return f"{figures['epe']:.2f} / {figures[bad]:.1f}"


def plot(report: dict[str, Any]) -> NDArray[np.uint8]:
    """Mean bad-2 over the kinds of pairs against seconds a pair, on a logarithmic axis."""
    figure = new_figure(8, 5)
    axes = figure.add_subplot()
    for name, row in _main_rows(report).items():
        seconds = row["seconds"]
        kind = report["methods"][name]["kind"]
        colour = _COLOURS.get(kind, "#777777")
        by_kind = report["errors"].get(name)
        if by_kind is None and kind == "ours":
            continue
        if by_kind is None:  # no weights: time alone
            axes.axvline(seconds["median"], color=colour, linewidth=1, linestyle=":")
            axes.annotate(
                name, (seconds["median"], 0), (3, 4), xycoords=("data", "axes fraction"),
                textcoords="offset points", rotation=90, va="bottom", fontsize=8, color=colour,
            )  # fmt: skip
            continue
        error = _mean_bad_2(by_kind)
        spread = [[seconds["median"] - seconds["best"]], [seconds["worst"] - seconds["median"]]]
        axes.errorbar(seconds["median"], error, xerr=spread, fmt="o", color=colour, capsize=2)
        place = (6, -12) if name in _BELOW else (6, 5)
        axes.annotate(
            name, (seconds["median"], error), place, textcoords="offset points", fontsize=9
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(0.12)
    axes.set_ylim(bottom=0)
    dress(
        axes,
        title="Errors against time on a CPU",
        x="Seconds a pair of 960 x 540, all threads",
        y="bad-2 in percent, mean over the kinds of pairs",
    )
    return to_image(figure)
