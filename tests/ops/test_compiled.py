import pytest

from ea_psmnet.ops import compiled
from ea_psmnet.ops.compiled import load_library

SOURCE = "int twice(int number) { return 2 * number; }\n"

needs_compiler = pytest.mark.skipif(compiled._compiler() is None, reason="no C compiler")


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "twice.c"
    path.write_text(SOURCE)
    return path


def kept(tmp_path):
    return sorted((tmp_path / "cache" / "ea_psmnet").iterdir())


@needs_compiler
def test_a_source_is_compiled_once_and_again_when_it_changes(source, tmp_path):
    assert load_library(source).twice(21) == 42
    (library,) = kept(tmp_path)
    made = library.stat().st_mtime_ns
    load_library.cache_clear()
    assert load_library(source).twice(4) == 8
    assert library.stat().st_mtime_ns == made
    source.write_text(SOURCE.replace("2 *", "3 *"))
    load_library.cache_clear()
    assert load_library(source).twice(4) == 12
    assert len(kept(tmp_path)) == 2


@needs_compiler
def test_a_source_that_does_not_compile_is_told_and_leaves_nothing(source, tmp_path):
    source.write_text("not C")
    with pytest.warns(UserWarning, match=r"twice\.c was not compiled.* failed: .*error"):
        assert load_library(source) is None
    assert kept(tmp_path) == []


@needs_compiler
def test_a_cache_that_cannot_be_written_is_told(source, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="was not compiled"):
        assert load_library(source) is None


@pytest.mark.filterwarnings("error")
def test_without_a_compiler_there_is_no_library(source, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    assert load_library(source) is None


@pytest.mark.filterwarnings("error")
def test_it_can_be_declined(source, tmp_path, monkeypatch):
    monkeypatch.setenv("EA_PSMNET_COMPILE", "0")
    assert load_library(source) is None
    assert not (tmp_path / "cache").exists()


@needs_compiler
def test_another_compiler_can_be_asked_for(source, monkeypatch):
    usual = " ".join(compiled._compiler())
    monkeypatch.setenv("CC", "no-such-compiler")
    assert load_library(source) is None
    load_library.cache_clear()
    monkeypatch.setenv("CC", f"{usual} -O1")
    assert load_library(source).twice(4) == 8
