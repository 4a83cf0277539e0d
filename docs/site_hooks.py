"""Hooks of MkDocs: the page of the weights is their card."""

from pathlib import Path
from typing import Any

CARD = Path(__file__).parents[1] / "checkpoints" / "README.md"


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Replace the text of weights.md by the card, with links from the site."""
    if page.file.src_uri != "weights.md":
        return markdown
    return CARD.read_text().replace("](../docs/", "](")
