"""Networks for `torch.hub.load("OWNER/ea-psmnet", "ea_light")`."""

from ea_psmnet.models.psmnet import PSMNet, build_model
from ea_psmnet.models.weights import load_model

dependencies = ["torch", "numpy", "cv2", "safetensors"]


def ea_light(pretrained: bool = True) -> PSMNet:
    """The light network with efficient attention.

    Args:
        pretrained: Load the weights that are bundled with the project.
    """
    return load_model("ea-light") if pretrained else build_model("ea-light")


def light() -> PSMNet:
    """The light network without attention, freshly initialised."""
    return build_model("light")


def psmnet() -> PSMNet:
    """PSMNet at full width, freshly initialised."""
    return build_model("psmnet")


def ea_psmnet() -> PSMNet:
    """PSMNet with efficient attention at full width, freshly initialised."""
    return build_model("ea-psmnet")


def ea_psmnet_small(pretrained: bool = True) -> PSMNet:
    """PSMNet with efficient attention at half the channels.

    Args:
        pretrained: Load the weights that are bundled with the project.
    """
    return load_model("ea-psmnet-small") if pretrained else build_model("ea-psmnet-small")
