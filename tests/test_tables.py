import pytest

from ea_psmnet.tables import format_bytes, markdown_table, parse_bytes


def test_a_table_lines_up_and_shows_missing_values():
    rows = [{"name": "a", "EPE": 1.234, "n": 5}, {"name": "longer", "EPE": float("nan"), "n": None}]
    assert markdown_table(rows).splitlines() == [
        "| name   |  EPE |   n |",
        "| :----- | ---: | --: |",
        "| a      | 1.23 |   5 |",
        "| longer |    - |   - |",
    ]


def test_decimals_and_the_smallest_of_several_numbers():
    rows = [{"a": "x", "EPE": 1.5, "D1": 7.0}, {"a": "y", "EPE": 0.25, "D1": None}]
    table = markdown_table(rows, {"EPE": 3}, bold_smallest=("EPE", "D1"))
    assert table.splitlines()[2:] == [
        "| x   |     1.500 | 7.00 |",
        "| y   | **0.250** |    - |",
    ]


@pytest.mark.parametrize(
    ("text", "count"), [("11GiB", 11 * 2**30), ("500 MB", 500_000_000), ("1.5 kib", 1536)]
)
def test_sizes_are_read(text, count):
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["11", "GiB", "-1GiB", "11 apples"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="write it as 11GiB"):
        parse_bytes(text)


def test_sizes_are_written():
    assert [format_bytes(n) for n in (12, 2048, 9.7e9)] == ["12.0 B", "2.0 KiB", "9.0 GiB"]
