"""Synthetic scenes: ray-cast stereo pairs with exact disparity, drawn from a seed and a number."""

from .kinds import KINDS
from .render import Look, RenderedScene, render
from .scene import Scene
from .scenes import SyntheticScenes
from .writer import write_sceneflow

__all__ = [
    "KINDS",
    "Look",
    "RenderedScene",
    "Scene",
    "SyntheticScenes",
    "render",
    "write_sceneflow",
]
