"""The house has floors: a room imports only from the floors below its own."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FLOORS = [
    {"ea_psmnet.progress", "ea_psmnet.tables"},
    {"ea_psmnet.atomic", "ea_psmnet.machine", "ea_psmnet.calibration"},
    {"ea_psmnet.images", "ea_psmnet.geometry", "ea_psmnet.calibration_files"},
    {
        "ea_psmnet.console",
        "ea_psmnet.records",
        "ea_psmnet.sample",
        "ea_psmnet.files",
        "ea_psmnet.metrics",
        "ea_psmnet.losses",
        "ea_psmnet.matches",
    },
    {"ea_psmnet.figures", "ea_psmnet.pair_lists", "ea_psmnet.store"},
    {"ea_psmnet.ops"},
    {"ea_psmnet.attention"},
    {"ea_psmnet.models", "ea_psmnet.datasets"},
    {"ea_psmnet.inference"},
    {"ea_psmnet.training", "ea_psmnet.evaluation"},
    {"ea_psmnet.experiments"},
    {"ea_psmnet.app"},
    {"ea_psmnet.commands"},
    {"ea_psmnet.__main__"},
]
FREE = {
    # The package's front door names what is behind it, late.
    "ea_psmnet": {
        *("ea_psmnet.calibration", "ea_psmnet.calibration_files", "ea_psmnet.machine"),
        *("ea_psmnet.inference", "ea_psmnet.models"),
    },
}
DATASETS_MAY_USE = {
    f"ea_psmnet.{name}"
    for name in (
        *("files", "machine", "matches", "pair_lists", "progress", "records", "sample", "tables"),
    )
}
MODULES = sorted([*ROOT.glob("ea_psmnet/**/*.py"), *ROOT.glob("datasets/**/*.py")])


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = ("ea_psmnet", *parts) if parts[0] == "datasets" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(module):
    """The room a module belongs to: the longest listed prefix of its name, or itself."""
    rooms = [name for floor in FLOORS for name in floor]
    return next((r for r in rooms if module == r or module.startswith(f"{r}.")), module)


def floor(name):
    return next(i for i, rooms in enumerate(FLOORS) if name in rooms)


def imported_rooms(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            if node.module == "ea_psmnet" and [alias.name for alias in node.names] == [
                "__version__"
            ]:
                continue
            names = [node.module or ""]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "ea_psmnet":
                yield room(name)


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_only_from_lower_floors(path):
    own = room(module_name(path))
    for other in imported_rooms(path):
        if other == own:
            continue
        if own in FREE:
            assert other in FREE[own]
        elif own == "ea_psmnet.datasets":
            assert other in DATASETS_MAY_USE
        else:
            assert floor(other) < floor(own), f"{own} imports {other}"


def test_prediction_needs_no_datasets():
    for package in ("inference", "models", "attention", "ops"):
        for path in (ROOT / "ea_psmnet" / package).glob("**/*.py"):
            assert "ea_psmnet.datasets" not in set(imported_rooms(path)), path


def test_files_stay_short():
    long = {p.name: n for p in MODULES if (n := len(p.read_text().splitlines())) > 500}
    assert long == {}
