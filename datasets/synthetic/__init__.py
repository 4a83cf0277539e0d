"""Synthetic scenes: ray-cast stereo pairs with exact disparity, drawn from a seed and a number."""

from datasets.synthetic.kinds import KINDS
from datasets.synthetic.render import Look, RenderedScene, render
from datasets.synthetic.scene import Scene
from datasets.synthetic.scenes import SyntheticScenes
from datasets.synthetic.writer import write_sceneflow

__all__ = [
    "KINDS",
    "Look",
    "RenderedScene",
    "Scene",
    "SyntheticScenes",
    "render",
    "write_sceneflow",
]
