import numpy as np
import pandas as pd
import pytest

from tfllmrec.config import DataConfig, SplitConfig
from tfllmrec.data import Dataset, dataset_from_frames, make_split, read_dataset
from tfllmrec.errors import ConfigError, DataError

LOG = "user,item,rating,timestamp\n" + "".join(f"u{n % 3},{n},{1 + n % 5},{100 + n}\n" for n in range(30))


def marked(data):
    """The items of the test events, each of which has one event."""
    return sorted(data.events.item_id[data.events.test_event].astype(int))


def read(folder, log, test_events, **config):
    (folder / "log.csv").write_text(log)
    return read_dataset(DataConfig(events="log.csv", **config), folder, test_events=test_events)


@pytest.mark.parametrize(
    ("rows", "items"), [("0:4", [0, 1, 2, 3]), (":2", [0, 1]), ("27:", [27, 28, 29]), ("28:40", [28, 29])]
)
def test_rows_are_those_of_the_file_without_its_header(tmp_path, rows, items):
    data = read(tmp_path, LOG, rows)
    assert marked(data) == items and data.test_events == rows
    assert data.describe()["test_events"] == len(items)
    asked = 12 if rows == "28:40" else len(items)
    assert (data.report.rows_in["test_events"], data.report.rows_kept["test_events"]) == (asked, len(items))
    missing = [f for f in data.report.findings if f.table == "test_events"]
    assert [f.count for f in missing] == ([10] if rows == "28:40" else [])


def test_rows_that_are_dropped_in_cleaning_are_counted_and_move_no_other(tmp_path):
    lines = LOG.splitlines()
    lines[3:3] = ["u1,0", ""]  # after rows 0 and 1: a broken one, and a blank one
    lines += ["u0,0,2,500"]  # row 32 replaces row 0
    data = read(tmp_path, "\n".join(lines), "0:6", max_bad_rows=0.5)
    assert marked(data) == [1, 2, 3]
    [finding] = [f for f in data.report.findings if f.table == "test_events"]
    assert (finding.count, finding.action) == (3, "dropped")
    assert "named by split.test_events = 0:6, but not among the clean events" in finding.what
    assert marked(read(tmp_path, "\n".join(lines), "32:33", max_bad_rows=0.5)) == [0]


def test_rows_of_parts_count_one_after_another_and_those_of_a_list_once(tmp_path):
    folder = tmp_path / "log"
    folder.mkdir()
    for part in range(3):
        rows = "".join(f"u,{10 * part + n}\n" for n in range(4))
        (folder / f"part-{part}.csv").write_text("user,item\n" + rows)
    assert marked(read_dataset(DataConfig(events="log"), tmp_path, test_events="3:6")) == [3, 10, 11]
    lists = pd.DataFrame({"user": ["u", "v"], "item": [[1, 2, 3], [4, 5]]})
    assert marked(dataset_from_frames(lists, test_events="0:1")) == [1, 2, 3]


def test_an_empty_range_and_one_beyond_the_file_are_refused(tmp_path):
    for rows in ("5:5", "7:2", "30:"):
        with pytest.raises(ConfigError, match=r"expected rows such as 0:20000.* the events have the rows 0 to 29"):
            read(tmp_path, LOG, rows)
    with pytest.raises(DataError, match=r"None of the 10 events of split.test_events = 90:100 is among the 30 clean"):
        read(tmp_path, LOG, "90:100")


@pytest.mark.parametrize("rows", ["0:4", "5:", ":3"])
def test_an_empty_table_has_no_events_whatever_rows_are_named(rows):
    with pytest.raises(DataError) as plain:
        dataset_from_frames(pd.DataFrame({"user": [], "item": []}))
    with pytest.raises(DataError) as named:
        dataset_from_frames(pd.DataFrame({"user": [], "item": []}), test_events=rows)
    assert str(named.value) == str(plain.value)


def test_a_file_names_events_by_user_item_and_time(tmp_path):
    (tmp_path / "test.csv").write_text("item,user,timestamp\n4,u1,104\n5,u2,999\n6,u0,106\n6,u0,106\n77,u9,100\n")
    data = read(tmp_path, LOG, "test.csv")
    assert marked(data) == [4, 6] and data.test_events == "test.csv"
    assert (data.report.rows_in["test_events"], data.report.rows_kept["test_events"]) == (5, 2)
    (tmp_path / "pairs.csv").write_text("item,user\n4,u1\n5,u2\n")
    assert marked(read(tmp_path, LOG, "pairs.csv")) == [4, 5]
    with pytest.raises(DataError, match="does not exist"):
        read(tmp_path, LOG, "nowhere.csv")
    (tmp_path / "others.csv").write_text("item,user\n4,u2\n")
    with pytest.raises(DataError, match=r"None of the 1 events of split.test_events = others.csv"):
        read(tmp_path, LOG, "others.csv")


def test_repeated_events_are_told_apart_by_the_columns_that_both_tables_have():
    log = pd.DataFrame({"user": "u", "item": list("aaaab"), "device": ["tv", "pc", "tv", "tv", "tv"], "uses": range(5)})
    named = pd.DataFrame({"user": "u", "item": ["a", "a"], "device": "tv"})
    data = dataset_from_frames(log, config=DataConfig(repeats="all"), test_events=named)
    of_test = data.events[data.events.test_event]
    assert of_test.item_id.tolist() == ["a", "a"] and of_test.device.tolist() == ["tv", "tv"]
    exact = dataset_from_frames(log, config=DataConfig(repeats="all"), test_events=log[2:4])
    assert exact.events.uses[exact.events.test_event].tolist() == ["2", "3"]


def test_a_saved_data_set_keeps_its_test_events_and_takes_some_from_a_file(tmp_path):
    data = read(tmp_path, LOG, "0:4")
    data.save(tmp_path / "saved")
    saved = DataConfig(source="saved")
    again = read_dataset(saved, tmp_path, test_events="0:4")
    assert marked(again) == marked(read_dataset(saved, tmp_path)) == [0, 1, 2, 3]
    assert again.events.test_event.dtype == bool and again.fingerprint == data.fingerprint
    with pytest.raises(ConfigError, match=r"expected 0:4 for the saved data set saved, found 0:5"):
        read_dataset(saved, tmp_path, test_events="0:5")
    read(tmp_path, LOG, None).save(tmp_path / "plain")
    plain = DataConfig(source="plain")
    with pytest.raises(ConfigError, match=r"expected a file for the saved data set plain, found 0:4"):
        read_dataset(plain, tmp_path, test_events="0:4")
    (tmp_path / "test.csv").write_text("item,user\n4,u1\n")
    from_file = read_dataset(plain, tmp_path, test_events="test.csv")
    assert marked(from_file) == [4] and len(make_split(from_file, SplitConfig(kind="fixed"), 0).test) == 1
    assert "test_event" not in Dataset.load(tmp_path / "plain").events


def test_new_events_are_no_test_events(tmp_path):
    data = read(tmp_path, LOG, "0:4")
    new = pd.DataFrame(
        {"user": ["u0", "u1", "u0"], "item": [90, 91, 0], "rating": [5, 4, 1], "timestamp": [900, 1, 100]}
    )
    grown = data.extend(new)
    assert marked(grown) == [0, 1, 2, 3] and grown.test_events == "0:4" and len(grown.events) == 32
    assert grown.events.test_event.dtype == bool


def test_a_column_of_the_same_name_is_a_column_like_any_other(tmp_path):
    log = pd.DataFrame({"user": "u", "item": np.arange(9), "test_event": ["yes", "no", "no"] * 3})
    plain = dataset_from_frames(log)
    assert plain.events.source_test_event.tolist().count("yes") == 3 and "test_event" not in plain.events
    assert marked(dataset_from_frames(log, test_events="1:3")) == [1, 2]
