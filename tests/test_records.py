import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ea_psmnet.records import parse_record, read_record


@dataclass(frozen=True)
class Part:
    size: int
    scale: float = 1.0

    def __post_init__(self):
        if self.size < 1:
            raise ValueError(f"size must be at least 1, not {self.size}")


@dataclass(frozen=True)
class Whole:
    name: str
    parts: tuple[Part, ...] = ()
    options: dict[str, float | None] = field(default_factory=dict)


GOOD = '{"name": "a", "parts": [{"size": 2}, {"size": 3, "scale": 1}], "options": {"x": null}}'


def test_values_come_back_with_their_types(tmp_path):
    path = tmp_path / "whole.json"
    path.write_text(GOOD)
    expected = Whole("a", (Part(2), Part(3, 1.0)), {"x": None})
    assert read_record(path, Whole) == expected


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "invalid JSON: EOF while parsing a value at line 1 column 0"),
        (GOOD[:20], "invalid JSON: EOF while parsing"),
        ("[" * 100_000, "invalid JSON: recursion limit exceeded"),
        ("\udcff", "invalid JSON"),
        ("null", "the content should be an object, not None"),
        ("[]", "the content should be an object, not []"),
        ("{}", "name is missing"),
        ('{"name": 5}', "name should be a valid string, not 5"),
        ('{"name": "a", "colour": 5}', "colour is unknown: made by another version?"),
        ('{"name": "a", "parts": [{}]}', "parts[0].size is missing"),
        ('{"name": "a", "parts": {}}', "parts should be a valid array, not {}"),
        ('{"name": "a", "parts": [{"size": "2"}]}', "parts[0].size should be a valid integer"),
        ('{"name": "a", "parts": [{"size": true}]}', "parts[0].size should be a valid integer"),
        ('{"name": "a", "parts": [{"size": 2.5}]}', "parts[0].size should be a valid integer"),
        ('{"name": "a", "parts": [{"size": 0}]}', "parts[0]: size must be at least 1, not 0"),
        ('{"name": "a", "parts": [{"size": 1, "scale": NaN}]}', "parts[0].scale must be finite"),
        ('{"name": "a", "options": {"x": 1e999}}', "options.x must be finite"),
        ('{"name": %s}' % ("[5]" * 1000), "invalid JSON"),
        ('{"name": [%s]}' % ("5, " * 1000 + "5"), "name should be a valid string, not [5, 5"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line_with_file_and_field(tmp_path, text, told):
    path = tmp_path / "whole.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - compared below
        read_record(path, Whole, remedy="delete it")
    assert str(caught.value).startswith(f"{path}: {told}")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
    assert str(caught.value).endswith("; delete it")


def test_infinity_may_be_allowed():
    assert parse_record('{"size": 1, "scale": Infinity}', Part, "here", finite=False).scale > 1e308


def test_files_that_are_not_there_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"x\.json: no such file"):
        read_record(tmp_path / "x.json", Whole)


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(OSError, match=f"{path}: cannot be read"):
            read_record(path, Whole)
