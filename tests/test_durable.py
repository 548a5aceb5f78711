import errno
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from programs import killed_when_late
from small_disks import LARGEST_FILE, small_files

from tfllmrec import durable
from tfllmrec.errors import ConfigError, ModelError, WriteError


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
        with killed_when_late(*writers):
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


def test_a_folder_has_its_name_once_all_of_it_is_on_the_disk(tmp_path, monkeypatch):
    target, synced, real = tmp_path / "new" / "target", {}, os.fsync

    def fsync(descriptor):
        synced[os.fstat(descriptor).st_ino] = target.exists()
        real(descriptor)

    def write(folder):
        (folder / "inner").mkdir(parents=True)
        for path in (folder / "file", folder / "inner" / "file"):
            path.write_text("content")

    monkeypatch.setattr(os, "fsync", fsync)
    durable.write_folder(target, write)
    parts = {path.stat().st_ino for path in (target, *target.rglob("*"))}
    assert len(parts) == 4
    assert synced == dict.fromkeys(parts, False) | {target.parent.stat().st_ino: True}

    def fail(descriptor):
        raise OSError("full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="full"):
        durable.write_folder(tmp_path / "new" / "other", write)
    assert [path.name for path in target.parent.iterdir()] == ["target"]


def test_the_second_of_two_writers_of_one_folder_is_dropped(tmp_path):
    def write(folder):
        folder.mkdir()
        (folder / "file").write_text("second")
        (tmp_path / "target").mkdir()
        (tmp_path / "target" / "file").write_text("first")  # finished before the second writer

    durable.write_folder(tmp_path / "target", write)
    assert (tmp_path / "target" / "file").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_a_folder_that_gives_way_comes_back_where_its_successor_fails(tmp_path, monkeypatch):
    def write(content):
        def fill(folder):
            folder.mkdir()
            (folder / "file").write_text(content)

        durable.write_folder(tmp_path / "target", fill, replace=True)

    write("first")
    write("second")
    assert (tmp_path / "target" / "file").read_text() == "second"
    rename = Path.rename

    def stuck(path, target):
        if path.parent.name == "new":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", stuck)
    with pytest.raises(WriteError, match="Input/output error"):
        write("third")
    assert (tmp_path / "target" / "file").read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_a_kill_between_the_two_renames_leaves_the_old_folder(tmp_path, monkeypatch):
    def fill(folder):
        folder.mkdir()
        (folder / "file").write_text("first")

    target, left = tmp_path / "target", tmp_path / f".target.{'0f' * 16}.old.tmp"
    durable.write_folder(target, fill)
    target.rename(left)
    with durable.writing_folder(tmp_path):
        assert (target / "file").read_text() == "first" and not left.exists()
    left.mkdir()  # a kill after both renames
    with durable.writing_folder(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    rename = Path.rename

    def alone(path, target):
        with durable._flocked(tmp_path) as free:  # another writer would take the old folder for abandoned
            assert not free
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", alone)
    durable.write_folder(target, fill, replace=True)


@pytest.mark.parametrize("folder", [".", "..", "/"])
def test_a_folder_without_a_name_is_refused(folder):
    with pytest.raises(ConfigError, match=r"^Expected a folder with a name, such as .*data, found"):
        durable.write_folder(Path(folder), pytest.fail)


# --- Full, read-only and broken disks ---------------------------------------------------------------------------------


class SafetensorError(Exception):
    """Has a message but no error number, like errors of safetensors and TensorFlow."""


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "No space left on device"),
        (OSError(errno.EROFS, os.strerror(errno.EROFS), "/other"), "Read-only file system"),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), os.strerror(errno.EDQUOT)),
        (OSError(errno.EIO, os.strerror(errno.EIO)), "Input/output error"),
        (OSError("4000 requested and 1024 written"), "No space left on device"),
        (SafetensorError('IoError(Os { code: 28, message: "No space left on device" })'), "No space left on device"),
        (SafetensorError("weights.tempstate; Read-only file system [Op:SaveV2]"), "Read-only file system"),
        (SafetensorError("events.out; Permission denied"), "Permission denied"),
    ],
)
def test_every_library_s_error_of_a_disk_becomes_one(tmp_path, error, reason):
    with pytest.raises(WriteError) as raised, durable.writing(tmp_path / "run" / "model", "Name another disk."):
        raise error
    first, advice = str(raised.value).split("\n")
    assert first.startswith(f"{tmp_path}/run/model cannot be written: {reason} (")
    assert first.endswith(" are free there).") and advice == "Name another disk."
    assert raised.value.exit_code == 1


def test_the_hidden_name_of_what_is_written_counts_as_its_own(tmp_path, monkeypatch):
    def denied(path, *_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "write_text", denied)
    with pytest.raises(WriteError, match=r"/report\.html cannot be written: Permission denied"):
        durable.write_text(tmp_path / "report.html", "text")
    mkdir = Path.mkdir
    monkeypatch.setattr(Path, "mkdir", lambda path, *a, **k: (mkdir if path.is_dir() else denied)(path, *a, **k))
    with pytest.raises(WriteError, match="/made cannot be written: Permission denied"):
        durable.write_folder(tmp_path / "made", pytest.fail)
    other = tmp_path / "other"
    with pytest.raises(PermissionError), durable.writing(tmp_path / "made"):
        denied(other)


@pytest.mark.parametrize(
    ("name", "problem"), [("a" * 250, "File name too long.*\nChoose a shorter name."), (".", "Is a directory|busy")]
)
def test_a_name_that_no_file_can_have_is_refused(tmp_path, monkeypatch, name, problem):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(WriteError, match=f"^{name} cannot be written: .*({problem})"):
        durable.write_text(Path(name), "text")


@pytest.mark.parametrize("error", [ZeroDivisionError(), ModelError("damaged"), OSError(errno.ENOENT, "x", "/etc/y")])
def test_other_errors_pass(tmp_path, error):
    with pytest.raises(type(error)) as raised, durable.writing(tmp_path):
        raise error
    assert raised.value is error


def test_the_innermost_block_names_the_path_and_each_adds_its_advice(tmp_path):
    with pytest.raises(WriteError) as raised, durable.writing(tmp_path, "Continue."), durable.writing(tmp_path / "a"):
        raise OSError(errno.ENOSPC, "full")
    lines = str(raised.value).split("\n")
    assert lines[0].startswith(f"{tmp_path}/a cannot") and lines[1:] == ["Continue."]
    with (
        pytest.raises(WriteError) as raised,
        durable.writing(tmp_path, "Continue."),
        durable.writing(tmp_path, "Name another cache."),
        durable.replacing(tmp_path / "a"),
    ):
        raise OSError(errno.ENOSPC, "full")
    assert str(raised.value).split("\n")[1:] == ["Name another cache.", "Continue."]


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "Make room, or name another folder."),
        (errno.EFBIG, "Make room, or name another folder."),
        (errno.EROFS, "Name another folder, or make this one writable."),
        (errno.EACCES, "Name another folder, or make this one writable."),
    ],
)
def test_where_no_block_has_advice_it_fits_the_reason(tmp_path, number, advice):
    path = tmp_path / "a"
    with pytest.raises(WriteError) as raised, durable.writing(tmp_path), durable.replacing(path):
        raise OSError(number, os.strerror(number), str(path))
    assert str(raised.value).split("\n")[1:] == [advice]


def test_a_disk_that_takes_no_more_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.json"
    durable.write_text(path, "old")
    with small_files(), pytest.raises(WriteError, match=r"file\.json cannot be written: File too large"):
        durable.write_text(path, "a" * (LARGEST_FILE + 1))
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match=r"file/a cannot be written: (File exists|Not a directory)"):
        durable.write_text(tmp_path / "file" / "a", "text")


def sparse(path, content, size):
    path.write_bytes(content)
    os.truncate(path, size)
    return path


def test_room_is_set_aside_for_a_sparse_file(tmp_path):
    path = sparse(tmp_path / "file", b"head", 3_000_000)
    before = path.stat().st_blocks
    durable.reserve(path)
    assert before < 100 and path.stat().st_blocks * 512 >= 3_000_000
    assert path.read_bytes() == b"head".ljust(3_000_000, b"\0")


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, None])
def test_room_is_set_aside_where_the_system_cannot_do_it(tmp_path, monkeypatch, number):
    def unsupported(*_):
        raise AttributeError if number is None else OSError(number, "no")

    monkeypatch.setattr(durable.os, "posix_fallocate", unsupported)
    path = sparse(tmp_path / "file", b"head", 3_000_000)
    with path.open("r+b") as file:
        file.seek(2_000_000)
        file.write(b"middle")
    content = path.read_bytes()
    durable.reserve(path)
    assert path.stat().st_blocks * 512 >= 3_000_000
    assert path.read_bytes() == content


def test_no_room_is_an_error_and_no_signal(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(durable.os, "posix_fallocate", full)
    with pytest.raises(OSError, match="full"):
        durable.reserve(sparse(tmp_path / "file", b"", 10))


# --- JSON that is read back -------------------------------------------------------------------------------------------


@dataclass
class Record:
    epochs: int
    figures: dict[str, float | None]
    name: str = "made"


def test_a_record_is_read_with_its_types(tmp_path):
    (tmp_path / "a.json").write_text('{"epochs": 3, "figures": {"ndcg@10": 0.5, "none": null, "whole": 1}}')
    assert durable.read_json(tmp_path / "a.json", Record, "") == Record(3, {"ndcg@10": 0.5, "none": None, "whole": 1})


@pytest.mark.parametrize(
    "content",
    ["", "{}", "{", "null", "[1]", '{"epochs": 3}', '{"epochs": "3", "figures": {}}', '{"epochs": 3, "figures": [1]}',
     '{"epochs": 3, "figures": {"a": "b"}}', "[" * 100_000, '{"a":' * 100_000, "\x00",
     '{"epochs": 3, "figures": \xff}'],
)  # fmt: skip
def test_a_damaged_record_is_named_with_the_remedy(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ModelError, match=r"a\.json is damaged \(.+\): fit again\."):
        durable.read_json(tmp_path / "a.json", Record, "fit again")


@pytest.mark.parametrize("name", ["missing.json", "."])
def test_a_record_that_cannot_be_opened_is_named(tmp_path, name):
    with pytest.raises(ModelError, match=r"cannot be read \(.+\): fit again\."):
        durable.read_json(tmp_path / name, Record, "fit again")


# --- Locks ------------------------------------------------------------------------------------------------------------

HOLDER = """
import sys, time
from pathlib import Path
from tfllmrec.durable import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_process_is_refused_until_the_first_one_ends_however_it_does(tmp_path):
    run = tmp_path / "runs" / "shop"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run)], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        with killed_when_late(holder):
            assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(
                ConfigError, match=rf"shop is in use by process {holder.pid} on \S+ since \d{{4}}-\d\d-\d\d "
            ),
            durable.locked(run),
        ):
            pytest.fail("two hold it")
        assert run.is_dir()
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    assert (run / durable.LOCK).exists()
    with durable.locked(run):  # takes over the file of the killed process
        assert (run / durable.LOCK).read_text().startswith(f"process {os.getpid()} on ")
    assert list(run.iterdir()) == []


def test_a_lock_leaves_nothing_behind(tmp_path):
    with durable.locked(tmp_path / "new"):
        assert [path.name for path in (tmp_path / "new").iterdir()] == [durable.LOCK]
        with pytest.raises(ConfigError, match="is in use by process"), durable.locked(tmp_path / "new"):
            pytest.fail("held twice")
    assert list(tmp_path.iterdir()) == []  # the empty folder, made for the lock, is removed
    with pytest.raises(ArithmeticError), durable.locked(tmp_path / "new"):
        raise ArithmeticError
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ArithmeticError), durable.locked(tmp_path / "new"):
        (tmp_path / "new" / "config.yaml").write_text("")
        raise ArithmeticError
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["config.yaml"]


def test_a_lock_is_waited_for(tmp_path, monkeypatch):
    waited, holder = [], durable.locked(tmp_path)
    holder.__enter__()

    def sleep(seconds):
        waited.append(seconds)
        if len(waited) == 3:
            holder.__exit__(None, None, None)

    monkeypatch.setattr(durable.time, "sleep", sleep)
    with durable.locked(tmp_path, wait_s=60):
        assert len(waited) == 3
        with pytest.raises(ConfigError, match="in use"), durable.locked(tmp_path, wait_s=1e-3):
            pytest.fail("held twice")


def test_a_lock_file_that_its_holder_removed_in_between_is_made_anew(tmp_path, monkeypatch):
    flock, removed = durable.fcntl.flock, []

    def slow(descriptor, operation):
        if not removed:  # the holder ends after the file was opened, before it is locked
            removed.append((tmp_path / durable.LOCK).unlink())
        flock(descriptor, operation)

    monkeypatch.setattr(durable.fcntl, "flock", slow)
    with durable.locked(tmp_path):
        assert removed and (tmp_path / durable.LOCK).exists()
        with pytest.raises(ConfigError, match="in use"), durable.locked(tmp_path):
            pytest.fail("held twice")


def test_a_folder_that_its_holder_removed_in_between_is_made_again(tmp_path, monkeypatch):
    folder, opening, removed = tmp_path / "run", os.open, []
    folder.mkdir()

    def slow(path, *arguments, **options):
        if not removed and Path(path) == folder / durable.LOCK:  # the holder ends after its folder was found
            removed.append(folder.rmdir())
        return opening(path, *arguments, **options)

    monkeypatch.setattr(durable.os, "open", slow)
    with durable.locked(folder):
        assert removed and (folder / durable.LOCK).exists()


def test_the_lock_of_a_process_that_made_the_folder_again_stays(tmp_path):
    folder = tmp_path / "run"
    with durable.locked(folder):
        shutil.rmtree(folder)
        second = durable.locked(folder)
        second.__enter__()
    assert (folder / durable.LOCK).exists()
    with pytest.raises(ConfigError, match="in use"), durable.locked(folder):
        pytest.fail("held twice")
    second.__exit__(None, None, None)
    assert not folder.exists()


def test_without_locks_a_warning_says_that_nobody_is_kept_out(tmp_path, monkeypatch, caplog):
    def flock(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(durable.fcntl, "flock", flock)
    with durable.locked(tmp_path / "run"), durable.locked(tmp_path / "run"):
        pass
    assert "file system without locks (No locks available)" in caplog.text
    assert not (tmp_path / "run").exists()


def test_a_lock_that_finds_no_room_is_not_held(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(durable.os, "pwrite", full)
        with pytest.raises(WriteError, match="No space left on device"), durable.locked(tmp_path):
            pytest.fail("not held")
    assert list(tmp_path.iterdir()) == []
    with durable.locked(tmp_path):
        pass


def test_a_link_in_the_place_of_a_lock_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / durable.LOCK).symlink_to(tmp_path / "precious")
    with pytest.raises(WriteError, match="run cannot be written"), durable.locked(tmp_path / "run"):
        pytest.fail("not held")
    assert (tmp_path / "precious").read_text() == "kept"


def test_a_folder_that_cannot_be_written_cannot_be_locked(tmp_path, monkeypatch):
    def read_only(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "x")

    monkeypatch.setattr(durable.os, "open", read_only)
    with pytest.raises(WriteError, match="cannot be written: Read-only file system"), durable.locked(tmp_path):
        pytest.fail("not held")


def test_a_folder_is_written_inside_of_the_writing_of_another(tmp_path):
    """The inner writer, such as a student's ``save``, must not wait for the lock of the outer one."""

    def write(fresh):
        with durable._flocked(fresh.parent) as free:
            assert free
        durable.write_folder(fresh, lambda inner: inner.mkdir() or (inner / "a").write_text("1"))

    durable.write_folder(tmp_path / "made", write)
    assert (tmp_path / "made" / "a").read_text() == "1" and [p.name for p in tmp_path.iterdir()] == ["made"]
