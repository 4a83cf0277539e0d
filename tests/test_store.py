import math

import pytest

from ea_psmnet.store import Store, digest

REMEDY = "damaged: delete it"


def test_records_are_read_as_they_were_written(tmp_path):
    store = Store(tmp_path / "store", {"limit": 5})
    assert not store.folder.exists()
    assert store.read("000001.json", int, REMEDY) is None
    store.write("000001.json", 7)
    store.write("000002.json.gz", [1.5, math.inf])
    assert Store(tmp_path / "store", {"limit": 5}).read("000001.json", int, REMEDY) == 7
    assert store.read("000002.json.gz", list[float], REMEDY) == [1.5, math.inf]


def test_records_of_other_settings_are_refused_unless_these_may_change(tmp_path):
    Store(tmp_path, {"limit": 5, "device": "cpu"}).claim()
    with pytest.raises(ValueError, match=f"^{tmp_path}: .* has limit 5, not 6"):
        Store(tmp_path, {"limit": 6, "device": "cpu"})
    Store(tmp_path, {"limit": 5, "device": "cuda"}, may_change={"device"}).claim()
    Store(tmp_path, {"limit": 5, "device": "cuda"})


@pytest.mark.parametrize("name", ["00000a.json", "00000a.json.gz"])
def test_a_damaged_record_is_named(tmp_path, name):
    store = Store(tmp_path)
    store.write(name, 7)
    (tmp_path / name).write_bytes(b"{")
    with pytest.raises(ValueError, match=rf"^{tmp_path}/{name}: .*{REMEDY}"):
        store.read(name, int, REMEDY)


def test_clearing_leaves_the_files_of_others(tmp_path):
    store = Store(tmp_path / "store", {"limit": 5})
    store.write(f"{digest('a')}.json", 1)
    store.write("000000.json.gz", 1)
    (store.folder / "thesis.txt").touch()
    store.clear()
    assert [path.name for path in store.folder.iterdir()] == ["thesis.txt"]
    (store.folder / "thesis.txt").unlink()
    store.clear()
    assert not store.folder.exists()
