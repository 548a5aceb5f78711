import os
import time

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


def test_replacing_gives_the_name_when_the_block_ends_well(tmp_path):
    path = tmp_path / "new" / "file"
    with durable.replacing(path) as one, durable.replacing(path) as two:  # two writers at once
        one.write_text("one")
        two.write_text("two")
        assert not path.exists() and one != two
    assert path.read_text() == "one"
    with pytest.raises(ArithmeticError), durable.replacing(path) as fresh:
        fresh.write_text("half")
        raise ArithmeticError
    assert path.read_text() == "one" and list(path.parent.iterdir()) == [path]


def test_what_a_killed_writer_left_goes_when_it_is_old(tmp_path):
    names = {f".a.{'0f' * 16}.part": 2, f".b.{'0f' * 16}.part": 0, ".own.part": 2, "own.part": 2}
    for name, days in names.items():
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, (0, time.time() - days * 86_400))
    with durable.replacing(tmp_path / "file") as fresh:
        fresh.write_text("")
    assert {path.name for path in tmp_path.iterdir()} == {"file", *list(names)[1:]}
