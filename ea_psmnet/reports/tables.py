"""Tables and quantities as text, by the name that reports know them by."""

from ea_psmnet.tables import format_bytes, markdown_table, parse_bytes

__all__ = ["format_bytes", "markdown_table", "parse_bytes"]
