import ctypes
import hashlib
import os
from pathlib import Path

import pytest

from ea_psmnet.ops import native
from ea_psmnet.ops.native import group_correlation, load_library, regression, winograd

SOURCE = """
struct Pair { long long left, right; };
const long long twice_interface[] = {3, sizeof(struct Pair)};
int twice(int number) { return 2 * number; }
"""


class Pair(ctypes.Structure):
    _fields_ = (("left", ctypes.c_int64), ("right", ctypes.c_int64))


def load(source, functions=("twice",), version=3, structure=Pair):
    """As in a fresh process."""
    load_library.cache_clear()
    return load_library(source, functions, version, structure)


needs_compiler = pytest.mark.skipif(native._compiler() is None, reason="no C compiler")


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "twice.c"
    path.write_text(SOURCE)
    yield path
    load_library.cache_clear()


def kept(tmp_path):
    return sorted((tmp_path / "cache" / "ea_psmnet").iterdir())


def damage(library, data):
    """Another file of that name, as the system may have mapped this one."""
    library.unlink()
    library.write_bytes(data)
    library.chmod(0o600)


@needs_compiler
def test_a_source_is_compiled_once_and_again_when_it_changes(source, tmp_path):
    assert load(source).twice(21) == 42
    seal, library = kept(tmp_path)
    assert seal.stem == library.stem
    made = library.stat().st_mtime_ns
    assert load(source).twice(4) == 8
    assert library.stat().st_mtime_ns == made
    source.write_text(SOURCE.replace("2 *", "3 *"))
    assert load(source).twice(4) == 12
    assert len(kept(tmp_path)) == 4


@needs_compiler
def test_a_source_that_does_not_compile_is_told_and_leaves_nothing(source, tmp_path):
    source.write_text("not C")
    with pytest.warns(UserWarning, match=r"twice\.c could not be compiled: .* failed: .*error"):
        assert load(source) is None
    assert kept(tmp_path) == []


@needs_compiler
def test_a_cache_that_cannot_be_written_is_told(source, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match=r"because twice\.c could not be compiled"):
        assert load(source) is None


@pytest.mark.filterwarnings("error")
def test_without_a_compiler_there_is_no_library(source, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    assert load(source) is None


@pytest.mark.filterwarnings("error")
def test_it_can_be_declined(source, tmp_path, monkeypatch):
    monkeypatch.setenv("EA_PSMNET_COMPILE", "0")
    assert load(source) is None
    assert not (tmp_path / "cache").exists()


@needs_compiler
def test_another_compiler_can_be_asked_for(source, monkeypatch):
    usual = " ".join(native._compiler())
    monkeypatch.setenv("CC", "no-such-compiler")
    assert load(source) is None
    monkeypatch.setenv("CC", f"{usual} -O1")
    assert load(source).twice(4) == 8


def test_a_compiler_that_cannot_be_read_is_told(source, monkeypatch):
    monkeypatch.setenv("CC", 'gcc "')
    with pytest.warns(UserWarning, match=r"CC='gcc \"' names no compiler \(No closing quotation\)"):
        assert load(source) is None


# The cache ---------------------------------------------------------------------------------------


@needs_compiler
@pytest.mark.parametrize("data", [b"", b"no library", b"\x7fELF" + bytes(5000)])
@pytest.mark.filterwarnings("error")
def test_a_damaged_library_is_built_again(source, tmp_path, data):
    """Loaded as they are, some of these would kill the process."""
    load(source)
    _, library = kept(tmp_path)
    whole = library.read_bytes()
    damage(library, data)
    assert load(source).twice(4) == 8
    assert hashlib.sha256(library.read_bytes()).digest() == hashlib.sha256(whole).digest()


@needs_compiler
@pytest.mark.filterwarnings("error")
def test_half_a_library_and_one_without_its_seal_are_built_again(source, tmp_path):
    load(source)
    seal, library = kept(tmp_path)
    whole = library.read_bytes()
    damage(library, whole[: len(whole) // 2])
    assert load(source).twice(4) == 8
    assert library.read_bytes() == whole
    seal.write_text("")
    assert load(source).twice(4) == 8
    seal.unlink()
    assert load(source).twice(4) == 8
    assert seal.is_file()


@needs_compiler
def test_the_cache_is_the_users_alone_whatever_the_umask(source, tmp_path):
    before = os.umask(0)
    try:
        load(source)
    finally:
        os.umask(before)
    folder = tmp_path / "cache" / "ea_psmnet"
    for path in (folder.parent, folder, *kept(tmp_path)):
        assert path.stat().st_mode & 0o077 == 0


@needs_compiler
def test_a_cache_that_others_can_write_to_is_refused(source, tmp_path):
    load(source)
    folder = tmp_path / "cache" / "ea_psmnet"
    for mode in (0o770, 0o707):
        folder.chmod(mode)
        with pytest.warns(UserWarning, match=f"{folder} belongs to another user, or others can"):
            assert load(source) is None
    folder.chmod(0o755)
    assert load(source).twice(4) == 8


@needs_compiler
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_another_user_planted_is_not_loaded(source, tmp_path):
    load(source)
    seal, library = kept(tmp_path)
    for path in (library, seal):
        os.chown(path, 12345, -1)
        assert load(source).twice(4) == 8
        assert path.stat().st_uid == 0  # built again
    os.chown(library.parent, 12345, -1)
    with pytest.warns(UserWarning, match="belongs to another user"):
        assert load(source) is None


@needs_compiler
@pytest.mark.filterwarnings("error")
def test_a_library_that_others_could_change_is_built_again(source, tmp_path):
    load(source)
    _, library = kept(tmp_path)
    library.chmod(0o666)
    assert load(source).twice(4) == 8
    assert library.stat().st_mode & 0o077 == 0


@needs_compiler
def test_a_relative_cache_is_none(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert load(source).twice(4) == 8
    assert not (tmp_path / "cache").exists()
    assert len(list((tmp_path / "home" / ".cache" / "ea_psmnet").iterdir())) == 2


@needs_compiler
def test_a_relative_home_folder_is_none(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "here")
    with pytest.warns(UserWarning, match="there is no home folder to keep it in"):
        assert load(source) is None
    assert [path.name for path in tmp_path.iterdir()] == ["twice.c"]


@needs_compiler
def test_a_user_without_a_home_folder_has_no_library(source, monkeypatch):
    def unknown():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", unknown)
    with pytest.warns(UserWarning, match="Could not determine home directory"):
        assert load(source) is None


# The interface -----------------------------------------------------------------------------------


@needs_compiler
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"version": 4}, r"its structures are \[3, 16\], not \[4, 16\]"),
        ({"structure": ctypes.c_int64}, r"its structures are \[3, 16\], not \[3, 8\]"),
        ({"functions": ("twice", "thrice")}, "it has no thrice"),
    ],
)
def test_a_library_that_is_another_than_its_caller_knows_is_not_used(source, changes, told):
    with pytest.warns(UserWarning, match=told):
        assert load(source, **changes) is None


@needs_compiler
def test_a_library_that_does_not_tell_its_structures_is_not_used(source):
    source.write_text("int twice(int number) { return 2 * number; }")
    with pytest.warns(UserWarning, match="twice_interface"):
        assert load(source) is None


@needs_compiler
@pytest.mark.filterwarnings("error")
def test_the_packages_own_libraries_load():
    for wrapper in (winograd, regression, group_correlation):
        wrapper._library.cache_clear()
        assert wrapper._library() is not None
