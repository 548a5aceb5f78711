import pytest

from tfllmrec import durable


def test_the_text_is_written_and_nothing_is_left_beside_it(tmp_path):
    path = tmp_path / "new" / "file.json"
    durable.write_text(path, "one")
    durable.write_text(path, "two")
    assert path.read_text() == "two"
    assert list(path.parent.iterdir()) == [path]


def test_a_kill_before_the_disk_has_it_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    durable.write_text(path, "old")
    monkeypatch.setattr(durable.os, "fsync", lambda descriptor: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        durable.write_text(path, "new")
    assert path.read_text() == "old"
