"""What the log has acknowledged is there exactly once: after kills, on full disks, from several writers."""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pyarrow.parquet
import pytest
from logged_lists import shown_in
from programs import killed_when_late
from small_disks import small_files

from tfllmrec.client.answers import Receipt
from tfllmrec.config import DataConfig
from tfllmrec.data.cleaning.values import as_text
from tfllmrec.data.files import event_log as event_log_file
from tfllmrec.data.files.event_log import LOG_FILE, LogReader
from tfllmrec.data.files.tables import read_table
from tfllmrec.data.readers import read_dataset
from tfllmrec.errors import ConfigError, DataError, WriteError
from tfllmrec.feedback.event_files import append_file, export
from tfllmrec.feedback.event_log import MOST_EVENTS, EventLog, Exposure, describe
from tfllmrec.feedback.event_writer import EventWriter, Full
from tfllmrec.feedback.off_policy import ExposureLog

NOW = 1_790_000_000.0


def click(n, **more):
    return {"user_id": f"u{n % 3}", "item_id": f"i{n}", "timestamp_s": NOW + n, **more}


@pytest.fixture
def log(tmp_path):
    with EventLog(tmp_path / "log", clock=lambda: NOW + 100) as log:
        yield log


def items(log, **order):
    return [event["item_id"] for event in log.replay(**order)]


def test_a_receipt_accounts_for_every_event(log):
    receipt = log.append([click(1), click(2, rating=3.5, device="phone"), click(1), {}, click(1e6, event_id="x")])
    assert (receipt.accepted, receipt.duplicates, len(receipt.refused), receipt.skewed) == (3, 1, 1, 1)
    again = log.append([click(2, rating=3.5, device="phone"), click(3)])
    assert (again.accepted, again.duplicates) == (1, 1)
    assert log.append([]) == Receipt(0, 0)
    first, second, skewed, last = log.replay()
    assert first == {
        "number": first["number"], "user_id": "u1", "item_id": "i1", "timestamp_s": NOW + 1, "received_s": NOW + 100,
    }  # fmt: skip
    assert (second["rating"], second["device"]) == (3.5, "phone")
    assert (skewed["timestamp_s"], skewed["claimed_s"], skewed["event_id"]) == (NOW + 100, NOW + 1e6, "x")
    assert last["number"] == describe(log.folder)["last_number"]


def test_too_many_events_at_once_are_refused_as_a_whole(log):
    with pytest.raises(DataError, match=r"10,001 events at once: expected at most 10,000"):
        log.append([click(1)] * (MOST_EVENTS + 1))
    assert describe(log.folder)["last_number"] == 0


@pytest.mark.parametrize("page", [1, 2])
def test_replay_by_receipt_and_by_time(log, monkeypatch, page):
    monkeypatch.setattr(event_log_file, "PAGE", page)
    for n in (5, 1, 4, 2, 3, 1.5):
        log.append([click(n)])
    log.append([click(4) | {"user_id": "other"}])  # the same time as an earlier one
    assert items(log) == ["i5", "i1", "i4", "i2", "i3", "i1.5", "i4"]
    assert items(log, by_time=True) == ["i1", "i1.5", "i2", "i3", "i4", "i4", "i5"]
    third = [event["number"] for event in log.replay()][2]
    assert items(log, since=third) == ["i2", "i3", "i1.5", "i4"]
    assert items(log, since=third, by_time=True) == ["i1.5", "i2", "i3", "i4"]


def test_a_cursor_gets_every_event_once(log):
    seen, cursor = [], 0
    for n in range(4):
        log.append([click(2 * n), click(2 * n + 1), click(0)])
        for event in log.replay(since=cursor):
            seen.append(event["item_id"])
            cursor = event["number"]
    assert seen == [f"i{n}" for n in range(8)]


def test_events_written_during_a_replay_do_not_make_it_endless(log):
    log.append([click(n) for n in range(3)])
    seen = []
    for event in log.replay():
        seen.append(event["item_id"])
        log.append([click(100 + len(seen))])
    assert seen == ["i0", "i1", "i2"]


def test_exposures(log):
    shown = [Exposure("r1", NOW, "u", "shop", 3, "recommend", f"i{n}", n) for n in range(3)]
    assert log.write([], shown) == ([], shown)
    more = [*shown, shown[0]._replace(request_id="r2", user_id=None)]
    (receipt,), written = log.write([log.check([click(1, request_id="r1")])], more)
    assert (receipt.accepted, written) == (1, more[3:])
    assert shown_in(log.folder) == [*shown, Exposure("r2", NOW, None, "shop", 3, "recommend", "i0", 0, 1.0)]
    figures = describe(log.folder)
    assert (figures["events"], figures["lists"], figures["shown_items"]) == (1, 2, 4)


# Kills, disks, other processes ------------------------------------------------------------------------------------

WRITER = """
import sys
from pathlib import Path
from tfllmrec.feedback.event_log import EventLog
name, size = sys.argv[2], int(sys.argv[3])
with EventLog(Path(sys.argv[1])) as log:
    for batch in range(10**9):
        ids = [f"{name}-{batch}-{n}" for n in range(size)]
        log.append([{"user_id": name, "item_id": each, "event_id": each} for each in ids])
        print(batch, flush=True)
"""


def start_writer(folder, name, size=3):
    command = [sys.executable, "-c", WRITER, str(folder), name, str(size)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_an_acknowledged_event_survives_kills(tmp_path):
    """Of a batch all events are there or none; benchmarks/intake.py kills a hundred times."""
    draw = random.Random(42)
    acknowledged = {}
    for kill in range(4):
        name = f"w{kill}"
        writer = start_writer(tmp_path, name)
        with killed_when_late(writer):
            first = writer.stdout.readline()
            time.sleep(draw.uniform(0, 0.1))
            writer.send_signal(signal.SIGKILL)
            told = [first, *writer.stdout.read().splitlines()]
            writer.wait()
        acknowledged[name] = int([line for line in told if line.strip()][-1])
    with EventLog(tmp_path) as log:
        found = [event["event_id"] for event in log.replay()]
        assert len(found) == len(set(found))
        for name, last in acknowledged.items():
            batches = {int(each.split("-")[1]) for each in found if each.startswith(f"{name}-")}
            # The last write may have been committed without being acknowledged.
            assert batches in (set(range(last + 1)), set(range(last + 2)))
            assert len([each for each in found if each.startswith(f"{name}-")]) == 3 * len(batches)
        assert log.append([{"user_id": "w0", "item_id": "x", "event_id": "w0-0-0"}]).duplicates == 1


def test_two_processes_write_at_once(tmp_path, log):
    writer = start_writer(log.folder, "other", 1)
    with killed_when_late(writer):
        writer.stdout.readline()
        for n in range(30):
            assert log.append([click(n)]).accepted == 1
        writer.kill()
        last = int(["0", *writer.stdout.read().split()][-1])
        writer.wait()
    found = items(log)
    assert [item for item in found if item.startswith("i")] == [f"i{n}" for n in range(30)]
    assert {f"other-{n}-0" for n in range(last + 1)} <= set(found)


def test_a_log_that_was_killed_while_it_was_made_is_made_again(tmp_path):
    with sqlite3.connect(tmp_path / LOG_FILE) as begun:
        begun.execute("PRAGMA journal_mode = WAL")
    with EventLog(tmp_path) as log:
        assert log.append([click(1)]).accepted == 1


def test_several_writers_make_the_log_at_once(tmp_path):
    def write(n):
        with EventLog(tmp_path / "log") as log:
            return log.append([click(n), click(0)]).accepted

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(write, range(1, 17))) == 17


def test_a_log_that_another_process_holds_for_too_long(log, monkeypatch):
    with sqlite3.connect(log.folder / LOG_FILE, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        log._connection.execute("PRAGMA busy_timeout = 10")
        with pytest.raises(WriteError, match="is busy: another process has held it for too long"):
            log.append([click(1)])
        other.execute("ROLLBACK")
    assert log.append([click(1)]).accepted == 1


def test_a_full_disk_loses_nothing_that_was_acknowledged(tmp_path):
    """The disk fills up, then there is room again: the events that were refused may be sent again."""
    with EventLog(tmp_path / "log") as log:
        taken, refused = [], None
        with small_files():
            for n in range(10_000):
                batch = [click(n, note="x" * 1000, event_id=f"{n}-{k}") for k in range(20)]
                try:
                    log.append(batch)
                except WriteError as error:
                    refused, text = batch, str(error)
                    break
                taken += [event["event_id"] for event in batch]
        assert refused and "cannot be written: " in text
        assert "Make room: no event was lost that the log has acknowledged" in text
        assert [event["event_id"] for event in log.replay()] == taken
        assert log.append(refused).accepted == 20
        assert [event["event_id"] for event in log.replay()] == taken + [event["event_id"] for event in refused]


def test_a_disk_without_room_for_a_page(log):
    """SQLITE_FULL, as from a disk with no free block."""
    log.append([click(0)])
    pages = log._connection.execute("PRAGMA page_count").fetchone()[0]
    log._connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(WriteError, match="No space left on device"):
        log.append([click(n, note="x" * 1000) for n in range(1, 100)])
    assert items(log) == ["i0"]
    log._connection.execute("PRAGMA max_page_count = 1000000")
    assert log.append([click(n) for n in range(1, 100)]).accepted == 99


def test_commits_are_synchronised(log):
    """Nothing else tells a kill, which the page cache survives, from a power cut."""
    assert log._connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    assert log._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


# What is no log ----------------------------------------------------------------------------------------------------


def test_what_is_no_log(tmp_path):
    with pytest.raises(DataError, match=r"is not an event log: expected a folder with events\.sqlite3"):
        LogReader(tmp_path)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / LOG_FILE).write_text("x" * 5000)
    with pytest.raises(DataError, match="is damaged"):
        LogReader(tmp_path / "text")
    with pytest.raises(DataError, match="is damaged"):
        EventLog(tmp_path / "text")
    (tmp_path / "other").mkdir()
    with sqlite3.connect(tmp_path / "other" / LOG_FILE) as other:
        other.execute("CREATE TABLE t (x)")
    with pytest.raises(DataError, match="is not an event log"):
        EventLog(tmp_path / "other")
    EventLog(tmp_path / "log").close()
    with sqlite3.connect(tmp_path / "log" / LOG_FILE) as newer:
        newer.execute("PRAGMA user_version = 9")
    with pytest.raises(DataError, match="an event log of layout 9; this version of tfllmrec reads 1"):
        LogReader(tmp_path / "log")
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="file cannot be written"):
        EventLog(tmp_path / "file")


def test_a_reader_that_fails_leaves_no_file_open(tmp_path):
    (tmp_path / LOG_FILE).write_text("x" * 5000)
    opened = len(list(Path("/proc/self/fd").iterdir()))
    kept = []
    for _ in range(3):
        with pytest.raises(DataError) as refused:
            LogReader(tmp_path)
        kept.append(refused)  # its traceback holds what was opened
    assert len(list(Path("/proc/self/fd").iterdir())) == opened


def test_a_damaged_page_is_named(log):
    log.append([click(n, note="x" * 1000) for n in range(100)])
    log.close()
    file = log.folder / LOG_FILE
    content = bytearray(file.read_bytes())
    content[8192:] = os.urandom(len(content) - 8192)
    file.write_bytes(content)
    with pytest.raises(DataError, match="is damaged"):
        list(log.replay())


# Files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_a_log_and_what_it_exports_are_the_same_data(log, tmp_path, suffix):
    log.append([
        click(2, kind="view", device='a,"b\n', dwell=3.5, seen=True, rating=4),
        click(1, kind="purchase", request_id="r", dwell=2.5, rating=2),
        click(0, seen=False, dwell=None, mixed=1),
        click(5, mixed="x"),
    ])  # fmt: skip
    told = export(log.folder, tmp_path / f"e{suffix}")
    last = describe(log.folder)["last_number"]
    assert told == {"file": str(tmp_path / f"e{suffix}"), "rows": 4, "next": last, "left_out": 0}
    config = DataConfig(unrated=[])
    of_log, of_file = (
        read_dataset(config.model_copy(update={"events": path})) for path in (log.folder, tmp_path / f"e{suffix}")
    )
    pd.testing.assert_frame_equal(of_log.events, of_file.events)
    by_item = of_log.events.set_index("item_id")
    assert by_item.loc["i2", ["timestamp_s", "kind", "rating", "dwell"]].tolist() == [NOW + 2, "view", 4, "3.5"]
    assert "received_s" not in of_log.events and "event_id" not in of_log.events
    with EventLog(tmp_path / "again", clock=lambda: NOW + 100) as again:
        done = append_file(again, tmp_path / f"e{suffix}", config)
        assert (done.accepted, done.refused, done.duplicates) == (4, 0, 0)
        assert append_file(again, tmp_path / f"e{suffix}", config).duplicates == 4


def test_further_fields_of_a_log_are_never_taken_for_its_own_columns(log):
    log.append([click(n, score=0.1 * n, action="dislike", Kind="view", user="x") for n in range(4)])
    log.append([click(4, stars="good", order_id="7")])
    dataset = read_dataset(DataConfig(events=log.folder, max_bad_rows=0))
    assert dataset.events["rating"].isna().all() and (dataset.events["kind"] == "").all()
    assert {"score", "action", "Kind", "user", "stars"} <= {*dataset.events}
    assert set(dataset.users["user_id"]) == {"u0", "u1", "u2"}
    mapped = DataConfig(events=log.folder, columns={"rating": "score"})
    assert read_dataset(mapped).events["rating"].notna().sum() == 4


def test_integers_beyond_float64_beside_other_numbers_are_text(log, tmp_path):
    log.append([
        click(1, large=2**53 + 1, exact=2**53, alone=-(2**63), true=2**53 + 1),
        click(2, large=1.5, exact=1.5, alone=2**63 - 1, true=True),
    ])  # fmt: skip
    export(log.folder, tmp_path / "e.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "e.parquet").to_pydict()
    assert table["large"] == ["9007199254740993", "1.5"] and table["true"] == ["9007199254740993", "True"]
    assert table["exact"] == [2.0**53, 1.5] and table["alone"] == [-(2**63), 2**63 - 1]
    assert len(read_dataset(DataConfig(events=log.folder)).events) == 2


def test_a_value_of_a_field_is_spelt_the_same_whatever_the_others_are(log):
    """An update reads some of the rows, whose types may be others than those of all rows."""
    values = [True, False, 1, 1.0, -2.5, 1e20, 2**53 + 1, "x"]
    log.append([click(n, field=value) for n, value in enumerate(values)])
    assert read_table(log.folder, "events", DataConfig()).frame["field"].tolist() == list(map(as_text, values))
    for n, value in enumerate(values):
        with LogReader(log.folder) as reader:
            [batch] = reader.table(since=n, upto=n + 1).batches()
        assert as_text(batch["field"][0].as_py()) == as_text(value)


def test_only_the_most_frequent_fields_are_columns(log, tmp_path, monkeypatch):
    monkeypatch.setattr(event_log_file, "MOST_FURTHER", 2)
    log.append([click(n, **{f"rare{n}": 1}, z=n, y=n) for n in range(4)])
    told = export(log.folder, tmp_path / "e.csv")
    assert told["left_out"] == 4
    assert (tmp_path / "e.csv").read_text().splitlines()[0] == "user_id,item_id,timestamp_s,y,z"
    report = read_dataset(DataConfig(events=log.folder, max_columns=5)).report
    assert any("4 repaired: fields left out: only the 2 most frequent" in line for line in report.lines())


def test_a_log_is_not_appended_as_a_file(log, tmp_path):
    """Two purchases that differ in their event_id only would become one."""
    log.append([click(1, event_id="a"), click(1, event_id="b")])
    with EventLog(tmp_path / "other") as other, pytest.raises(DataError, match=r"is an event log.* copy its folder"):
        append_file(other, log.folder, DataConfig())


def test_an_export_from_a_cursor_on(log, tmp_path):
    log.append([click(1, device="phone"), click(2)])
    first = export(log.folder, tmp_path / "1.parquet")
    log.append([click(3, dwell=1)])
    export(log.folder, tmp_path / "2.parquet", since=first["next"])
    table = pyarrow.parquet.read_table(tmp_path / "2.parquet")
    assert table.column_names == ["user_id", "item_id", "timestamp_s", "dwell"]
    assert table["item_id"].to_pylist() == ["i3"]
    with pytest.raises(DataError, match=r"has no events after number"):
        export(log.folder, tmp_path / "3.parquet", since=describe(log.folder)["last_number"])
    with pytest.raises(ConfigError, match=r"expected a name that ends in .csv"):
        export(log.folder, tmp_path / "3.xlsx")


def test_exported_exposures(log, tmp_path):
    with pytest.raises(DataError, match="has no shown items after number 0"):
        export(log.folder, tmp_path / "x.jsonl", exposures=True)
    log.write([], [Exposure("r", NOW, None, "shop", 3, "recommend", "i", 0)])
    assert export(log.folder, tmp_path / "x.jsonl", exposures=True)["rows"] == 1
    assert json.loads((tmp_path / "x.jsonl").read_text()) == {
        "request_id": "r", "time_s": NOW, "user_id": None, "model": "shop", "version": 3, "policy": "recommend",
        "item_id": "i", "position": 0, "propensity": 1.0,
    }  # fmt: skip


def test_a_log_from_before_there_were_arms_is_read_and_written(log, tmp_path):
    plain = Exposure("r", NOW, "u", "m", 1, "recommend", "i", 0)
    log.write([], [plain])
    log.close()
    with sqlite3.connect(log.folder / LOG_FILE) as connection:
        for column in ("experiment", "arm"):
            connection.execute(f"ALTER TABLE exposures DROP COLUMN {column}")
    connection.close()
    export(log.folder, tmp_path / "x.parquet", exposures=True)
    assert not {"experiment", "arm"} & set(pyarrow.parquet.read_table(tmp_path / "x.parquet").column_names)
    with LogReader(log.folder) as reader:
        assert list(reader.between("exposures", ["time_s", "arm"], 0, NOW)) == [[(NOW, None)]]
    with EventLog(log.folder) as opened:
        assigned = plain._replace(request_id="s", experiment="m/2", arm="canary")
        opened.write([], [assigned])
        assert shown_in(opened.folder) == [plain, assigned]
    export(log.folder, tmp_path / "x.parquet", exposures=True)
    assert pyarrow.parquet.read_table(tmp_path / "x.parquet")["arm"].to_pylist() == [None, "canary"]


def test_exposures_of_searches_are_left_out(log, tmp_path):
    names = ["recommend", "search", "recommend_full", "search"]
    log.write([], [Exposure(f"r{n}", NOW, None, "m", 1, name, "i", 0) for n, name in enumerate(names)])

    def exported(policies, **order):
        told = export(log.folder, tmp_path / "x.parquet", exposures=True, policies=policies, **order)
        assert told["next"] == 4
        found = pyarrow.parquet.read_table(tmp_path / "x.parquet")["policy"].to_pylist()
        assert len(found) == told["rows"]
        return found

    assert exported(()) == ["recommend", "recommend_full"]
    assert exported(["search"]) == ["search"] * 2 and exported(["search", "recommend"]) == [*names[:2], "search"]
    with pytest.raises(DataError, match=r"'recommend_full' after number 3; its policies are 'recommend', "):
        exported((), since=3)
    assert pyarrow.parquet.read_table(tmp_path / "x.parquet").num_rows == 3  # as it was
    with pytest.raises(ConfigError, match="Events have no policy: add --exposures"):
        export(log.folder, tmp_path / "x.csv", policies=["search"])


def test_exposures_with_the_rewards_that_followed(log, tmp_path):
    lists = [
        ("a", "u", "x"),
        ("a", "u", "y"),
        ("b/0", "v", "x"),
        ("b/1", "w", "y"),
        ("c/1", "w", "x"),
        ("d", None, "x"),
    ]
    log.write([], [Exposure(r, NOW, u, "m", 1, "recommend", item, n) for n, (r, u, item) in enumerate(lists)])
    for request, item, kind in [
        ("a", "x", "click"), ("a", "x", "click"), ("a", "y", "view"), ("b", "y", "click"), ("c/1", "x", "click"),
        (None, "x", "click"),
    ]:  # fmt: skip
        log.append([click(len(list(log.replay()))) | {"item_id": item, "kind": kind, "request_id": request}])
    export(log.folder, tmp_path / "x.parquet", exposures=True, reward="click")
    table = pyarrow.parquet.read_table(tmp_path / "x.parquet")
    assert table["reward"].to_pylist() == [1, 0, 0, 1, 1, 0]
    found = ExposureLog.from_frame(table.to_pandas())
    assert found.reward.sum() == 3
    with pytest.raises(DataError, match="no events of kind 'buy' with a request_id"):
        export(log.folder, tmp_path / "y.csv", exposures=True, reward="buy")
    with pytest.raises(ConfigError, match="add --exposures"):
        export(log.folder, tmp_path / "y.csv", reward="click")


def test_rows_of_a_file_are_refused_by_themselves(log, tmp_path):
    (tmp_path / "e.csv").write_text(
        "user,movie_id,time,stars,event_id,city\n"
        "007,1,2020-01-01 10:00,4,a,Bonn\n7,2,2020-01-01 11:00,x,b,\n8,,2020-01-02 10:00,1,c,\n9,3,later,1,d,\n"
    )
    done = append_file(log, tmp_path / "e.csv", DataConfig(max_bad_rows=0.25))
    assert (done.accepted, done.refused, done.late) == (2, 2, 2)
    assert done.report.lines()[-1].endswith(
        "1 repaired: the rating is not a number: taken as unknown (e.csv:3, column 'stars': 'x')"
    )
    assert done.reasons == [
        "e.csv:4: no item_id: found event_id, rating, timestamp_s, user_id",
        "e.csv:5: expected a time, found 'later'",
    ]
    event, unrated = log.replay()
    assert unrated["item_id"] == "2" and "rating" not in unrated
    assert (event["user_id"], event["item_id"], event["rating"], event["city"]) == ("007", "1", 4.0, "Bonn")
    assert event["timestamp_s"] == 1577872800.0 and event["event_id"] == "a"
    (tmp_path / "bad.csv").write_text("user,item\na,b\nc,d\n")
    with pytest.raises(DataError, match=r"none of its 2 rows is an event. bad.csv:2: expected timestamp_s or event_id"):
        append_file(log, tmp_path / "bad.csv", DataConfig())


def test_a_file_of_unreadable_ratings_is_not_appended(log, tmp_path):
    (tmp_path / "e.csv").write_text("user,item,time,rating\na,1,1600000000,good\nb,2,1600000001,bad\n")
    with pytest.raises(DataError, match=r"the rating is not a number\. 2 of 2 rows of e\.csv cannot be read"):
        append_file(log, tmp_path / "e.csv", DataConfig())
    assert describe(log.folder)["last_number"] == 0


def test_a_data_set_of_a_log_has_the_limits_of_one_of_a_file(log):
    log.append([click(n) for n in range(5)])
    with pytest.raises(DataError, match=r"found 5 rows or more; expected at most data\.max_rows = 4"):
        read_dataset(DataConfig(events=log.folder, max_rows=4))
    with pytest.raises(DataError, match=r"data\.max_bytes"):
        read_dataset(DataConfig(events=log.folder, max_bytes=20))


def test_an_empty_log_is_no_data(log):
    with pytest.raises(DataError, match="has a header but no rows"):
        read_dataset(DataConfig(events=log.folder))


# Group commit ------------------------------------------------------------------------------------------------------


class SlowLog(EventLog):
    """Waits before each write until it is told to go on."""

    def __init__(self, folder):
        super().__init__(folder)
        self.go = threading.Semaphore(0)
        self.began = threading.Semaphore(0)
        self.error = None

    def write(self, batches, exposures=(), requests=()):
        self.began.release()
        assert self.go.acquire(timeout=30)
        if self.error:
            raise self.error
        return super().write(batches, exposures)


@pytest.fixture
def slow(tmp_path):
    commits = []
    writer = EventWriter(SlowLog(tmp_path / "log"), commits.append)
    writer.commits = commits
    yield writer
    writer.log.error = None
    for _ in range(100):
        writer.log.go.release()
    writer.close()


def test_requests_that_come_meanwhile_share_one_commit(slow):
    first = slow.submit(slow.log.check([click(0)]))
    assert slow.log.began.acquire(timeout=30)
    others = [slow.submit(slow.log.check([click(n), click(0)])) for n in range(1, 6)]
    cancelled = slow.submit(slow.log.check([click(99)]))
    assert cancelled.cancel()
    for _ in range(2):
        slow.log.go.release()
    assert first.result(30).accepted == 1
    assert [(r.accepted, r.duplicates) for r in (each.result(30) for each in others)] == [(1, 1)] * 5
    assert items(slow.log) == [f"i{n}" for n in range(6)]
    assert [len(commit.receipts) for commit in slow.commits] == [1, 5]


def test_a_failed_commit_fails_all_of_its_requests_and_no_later_one(slow):
    slow.log.error = WriteError("no room")
    failing = slow.submit(slow.log.check([click(0)]))
    slow.log.go.release()
    with pytest.raises(WriteError, match="no room"):
        failing.result(30)
    slow.log.error = None
    again = slow.submit(slow.log.check([click(0)]))
    slow.log.go.release()
    assert again.result(30).accepted == 1


def test_requests_are_answered_even_if_their_write_cannot_be_counted(tmp_path, monkeypatch, caplog):
    def fail(commit):
        raise KeyError("no such counter")

    writer = EventWriter(EventLog(tmp_path), fail)
    assert [writer.submit(writer.log.check([click(n)])).result(30).accepted for n in (1, 2)] == [1, 1]
    with monkeypatch.context() as patch:
        patch.setattr(writer.log, "write", lambda *_: fail(None))
        with pytest.raises(KeyError):
            writer.submit(writer.log.check([click(3)])).result(30)
    writer.close()
    assert sum("could not be counted" in record.message for record in caplog.records) == 3
    assert describe(tmp_path)["events"] == 2


def test_waiting_batches_and_lists_are_bounded(slow, monkeypatch):
    monkeypatch.setattr("tfllmrec.feedback.event_writer.MOST_BATCHES", 2)
    monkeypatch.setattr("tfllmrec.feedback.event_writer.MOST_SHOWN", 5)
    slow.submit(slow.log.check([click(0)]))
    assert slow.log.began.acquire(timeout=30)
    for n in (1, 2):
        slow.submit(slow.log.check([click(n)]))
    with pytest.raises(Full):
        slow.submit(slow.log.check([click(3)]))
    shown = [Exposure("r", NOW, None, "m", 1, "p", "i", 0)]
    assert [slow.offer(2, lambda: (shown, ())) for _ in range(3)] == [True, True, False]
    for _ in range(2):
        slow.log.go.release()


def test_a_list_that_cannot_be_made_fails_nothing_else(tmp_path):
    commits = []
    writer = EventWriter(EventLog(tmp_path), commits.append)
    shown = [Exposure("r", NOW, None, "m", 1, "p", "i", 0)]
    assert writer.offer(3, lambda: shown.no_such_thing) and writer.offer(2, lambda: (shown * 2, ()))
    future = writer.submit(writer.log.check([click(0)]))
    writer.close()
    assert future.result(0).accepted == 1
    assert [sum(commit.shown for commit in commits), sum(commit.dropped for commit in commits)] == [1, 4]


def test_closing_writes_what_is_queued(tmp_path):
    writer = EventWriter(EventLog(tmp_path))
    assert writer.offer(1, lambda: ([Exposure("r", NOW, None, "m", 1, "p", "i", 0)], ()))
    future = writer.submit(writer.log.check([click(0)]))
    writer.close()
    assert future.result(0).accepted == 1
    assert not writer.offer(1, tuple)
    with pytest.raises(Full):
        writer.submit(None)
    assert describe(tmp_path)["shown_items"] == 1


def test_lists_alone_are_written_soon(tmp_path, monkeypatch):
    monkeypatch.setattr("tfllmrec.feedback.event_writer.SHOWN_AFTER_S", 0.01)
    written = threading.Event()
    writer = EventWriter(EventLog(tmp_path), lambda commit: written.set())
    assert writer.offer(1, lambda: ([Exposure("r", NOW, None, "m", 1, "p", "i", 0)], ()))
    assert written.wait(30)
    assert len(shown_in(tmp_path)) == 1
    writer.close()
