import os
import subprocess
import sys
import time
from pathlib import Path

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


WRITER = """
import sys, time
from pathlib import Path
from tfllmrec.durable import writing_folder
with writing_folder(Path(sys.argv[1])) as fresh:
    (fresh / "half").write_text("x")
    print(fresh.name, flush=True)
    time.sleep(600)
"""


def test_a_folder_is_renamed_or_goes(tmp_path):
    parent = tmp_path / "new"
    with durable.writing_folder(parent) as one, durable.writing_folder(parent) as two:  # two writers at once
        assert one != two and one.is_dir() and two.is_dir()
        (two / "file").write_text("two")
        two.rename(parent / "2")
    assert [path.name for path in parent.iterdir()] == ["2"]
    with pytest.raises(ArithmeticError), durable.writing_folder(parent) as fresh:
        (fresh / "file").write_text("half")
        raise ArithmeticError
    assert [path.name for path in parent.iterdir()] == ["2"]


def test_the_folder_of_a_killed_writer_goes_and_that_of_a_live_one_stays(tmp_path):
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    writers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    try:
        killed, alive = (writer.stdout.readline().strip() for writer in writers)
        writers[0].kill()
        writers[0].wait()
        assert (tmp_path / killed / "half").exists()
        (tmp_path / ".writing-of-mine").mkdir()
        with durable.writing_folder(tmp_path):
            assert (tmp_path / alive / "half").exists() and not (tmp_path / killed).exists()
        assert {path.name for path in tmp_path.iterdir()} == {alive, ".writing-of-mine"}
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
            writer.stdout.close()


def test_without_locks_nothing_is_taken_for_abandoned(tmp_path, monkeypatch):
    def flock(descriptor, operation):
        raise OSError("no locks available")

    left = tmp_path / f".writing-{'0f' * 16}"
    left.mkdir()
    monkeypatch.setattr(durable.fcntl, "flock", flock)
    with durable.writing_folder(tmp_path) as fresh:
        fresh.rename(tmp_path / "1")
    assert {path.name for path in tmp_path.iterdir()} == {"1", left.name}
    monkeypatch.undo()
    with durable.writing_folder(tmp_path):
        assert not left.exists()
