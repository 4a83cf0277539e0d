"""Where weights are: a file, a folder, or by name among those that come with the project."""

from __future__ import annotations

from pathlib import Path

__all__ = ["BUNDLED", "find_weights"]

BUNDLED = Path(__file__).parents[2] / "checkpoints"
"""Folder of the weights that come with the project."""


def find_weights(path: Path | str) -> Path:
    """A file of weights, a folder of one as a run's, or bundled ones by their bare name.

    Raises:
        FileNotFoundError: none of these; the message lists the bundled ones, as ea-psmnet-small.
        ValueError: a folder with several files of weights, none of which is model.safetensors.
    """
    path = Path(path)
    if path.is_file():
        return path
    if path.is_dir():
        return _weights_in(path)
    bundled = BUNDLED / f"{path}.safetensors"
    if path.name == str(path) and bundled.is_file():
        return bundled
    names = sorted(file.stem for file in BUNDLED.glob("*.safetensors"))
    known = f"; bundled are {', '.join(names)}" if names else ""
    raise FileNotFoundError(f"{path}: no such checkpoint{known}")


def _weights_in(folder: Path) -> Path:
    """The folder's weights: of a run those it ended with, else the only ones."""
    found = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".tar"))
    if not found:
        raise FileNotFoundError(f"{folder}: this folder holds no weights (.safetensors or .tar)")
    final = folder / "model.safetensors"
    if final not in found and len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ValueError(f"{folder}: holds several weights: name one of {names}")
    return final if final in found else found[0]
