"""What is read of a period, beside what was written."""

import numpy as np
import pandas as pd
import pytest

from tfllmrec.data.files.event_log import EVENTS, EXPOSURES, REQUESTS, WRITTEN_WITHIN_S, LogReader
from tfllmrec.errors import DataError
from tfllmrec.feedback import observed as module
from tfllmrec.feedback.event_log import EventLog, Exposure, RequestRecord
from tfllmrec.feedback.observed import ends_of, observed, read_period

ITEMS = pd.DataFrame({"item_id": ["a", "b", "c"], "train_events": [9, 1, 0], "stratum": ["head", "tail", "cold"]})


def shown(request, time_s, items, user=None, policy="recommend"):
    return [Exposure(request, time_s, user, "m", 3, policy, item, place) for place, item in enumerate(items)]


def asked(request, time_s, listed, user=None, policy="recommend", **more):
    return RequestRecord(request, time_s, user, "m", 3, policy, listed, **more)


def event(item, request, time_s, kind="click", user="u", **more):
    given = {"user_id": user, "item_id": item, "kind": kind, "timestamp_s": time_s, "request_id": request, **more}
    return {name: value for name, value in given.items() if value is not None}


@pytest.fixture
def log(tmp_path):
    with EventLog(tmp_path / "log", clock=lambda: 1e9 + 50_000) as log:
        yield log


def read(log, after=1e9, upto=1e9 + 1000, within=100.0, items=ITEMS):
    return read_period(log.folder, after, upto, within, "dwell_s", items)


def write(log, events=(), exposures=(), requests=()):
    log.write([log.check(events)], exposures, requests)


def test_events_join_the_items_that_were_shown(log):
    write(
        log,
        [
            event("a", "r1", 1e9 + 12, dwell_s=2.5),
            event("a", "r1", 1e9 + 13, dwell_s=4),
            event("b", "r1", 1e9 + 14, kind="purchase"),
            event("c", "r1", 1e9 + 15, kind="dislike"),
            event("z", "r1", 1e9 + 16),  # was not shown
            event("a", "r2", 1e9 + 20 + 101),  # too late
            event("b", None, 1e9 + 20),  # of no list
            event("a", "many", 1e9 + 40),
            event("b", "many/1", 1e9 + 41),
        ],
        [
            *shown("r1", 1e9 + 10, "abc", "u1"),
            *shown("r2", 1e9 + 20, "ab"),
            *shown("many/0", 1e9 + 30, "ab"),
            *shown("many/1", 1e9 + 30, "ba"),
        ],
    )
    found = read(log)
    rows = {
        (request, item): (bool(used), bool(bought), stay)
        for request, item, used, bought, stay in found.shown[
            ["request_id", "item_id", "used", "bought", "dwell_s"]
        ].values
    }
    assert rows["r1", "a"] == (True, False, 6.5)
    assert rows["r1", "b"][:2] == (True, True) and np.isnan(rows["r1", "b"][2])
    assert rows["r1", "c"][:2] == (False, False) and rows["r2", "a"][0] is False
    assert [rows[key][0] for key in (("many/0", "a"), ("many/1", "a"), ("many/0", "b"), ("many/1", "b"))] == [
        True, True, False, True,
    ]  # fmt: skip
    by_list = found.lists.set_index("request_id")["used"]
    assert by_list.to_dict() == {"r1": True, "r2": False, "many/0": True, "many/1": True}
    assert found.shown.drop_duplicates("item_id").set_index("item_id")["stratum"].to_dict() == {
        "a": "head", "b": "tail", "c": "cold",
    }  # fmt: skip
    assert sorted(found.events["item_id"]) == list("aaaabbbcz")
    assert found.shown["version"].unique().tolist() == ["m/3"]
    users = found.lists.set_index("request_id")["user"]
    assert users["many/0"] == users["many/1"] and users.nunique() == 3  # without an id, each request is a user


def test_requests_have_empty_lists_searches_and_fields(log):
    fields = '{"device":"tv","hour":"%d"}'
    requests = [asked(f"r{n}", 1e9 + n, 1, history_ids=n, unknown_ids=1, context=fields % n) for n in range(1, 13)]
    write(
        log,
        events=[event("a", "s", 1e9 + 30)],
        exposures=[*shown("old", 1e9 + 3, "ab"), *shown("s", 1e9 + 21, "bac")],
        requests=[
            *requests,
            asked("none", 1e9 + 20, 0),
            asked("s", 1e9 + 21, 3, policy="search_full", letters=4, script="LATIN"),
        ],
    )
    period = read(log)
    lists = period.lists.set_index("request_id")
    assert period.shown["request_id"].tolist() == ["old", "old"]
    assert period.found[["request_id", "item_id", "used"]].values.tolist() == [
        ["s", "b", False], ["s", "a", True], ["s", "c", False],
    ]  # fmt: skip
    assert lists["searched"].sum() == 1 and lists.loc["s", ["letters", "script"]].tolist() == [4, "LATIN"]
    assert lists.loc["none", "listed"] == 0 and lists.loc["old", "listed"] == 2
    assert np.isnan(float(lists.loc["old", "history_ids"])) and lists.loc["r5", "history_ids"] == 5
    assert lists.loc["r5", "context.device"] == "tv"
    assert lists["context.hour"].dropna().tolist() == [str(n) for n in range(1, 13)]


def test_a_period_has_its_ends_and_nothing_beyond(log):
    times = [1e9 - 5000, 1e9, 1e9 + 1, 1e9 + 1000, 1e9 + 1001, 1e9 + 9000]
    late = [*times[:3], times[4], times[3], times[5]]  # written in another order
    for n, time_s in enumerate(late):
        write(log, [event("a", f"r{n}", time_s)], shown(f"r{n}", time_s, "a"), [asked(f"r{n}", time_s, 1)])
    found = read(log)
    assert sorted(found.lists["time_s"]) == [1e9 + 1, 1e9 + 1000] == sorted(found.shown["time_s"])
    assert len(found.events) == 2
    assert ends_of(log.folder) == (times[0], times[-1])
    assert ends_of(log.folder, 1e9 + 8999) == (times[0], 1e9 + 1000)  # the last one that was written
    assert ends_of(log.folder, times[0]) == (times[0], times[0])
    with pytest.raises(DataError, match="has no lists from before --until"):
        ends_of(log.folder, times[0] - 1)


def test_rows_between_two_times_are_those_of_a_slow_version(log, monkeypatch):
    monkeypatch.setattr("tfllmrec.data.files.event_log.PAGE", 7)
    rng = np.random.default_rng(0)
    made = np.cumsum(rng.exponential(40, 400)) + 1e9
    written = np.argsort(made + rng.uniform(0, WRITTEN_WITHIN_S, 400))
    for n in written:
        write(
            log,
            [event("a", None, made[n], event_id=str(n))],
            shown(f"r{n}", made[n], "a"),
            [asked(f"r{n}", made[n], 1)],
        )
    with LogReader(log.folder) as reader:
        for after, upto in ((made[50], made[300]), (0, 2e9), (made[-1], 2e9), (0, made[0]), (made[9], made[9])):
            expected = sorted(made[(made > after) & (made <= upto)])
            for table, column in ((EXPOSURES, "time_s"), (REQUESTS, "time_s"), (EVENTS, "timestamp_s")):
                found = [row[0] for page in reader.between(table, [column], after, upto) for row in page]
                assert sorted(found) == expected
                assert reader.count_between(table, after, upto) >= len(expected)
        assert reader.count_between(EXPOSURES, made[390], made[391]) < 100  # the rest is not read


def test_of_too_many_rows_a_part_of_the_requests_is_read(log, monkeypatch):
    monkeypatch.setattr(module, "MOST_ROWS", 100)
    exposures = [each for n in range(200) for each in shown(f"r{n}", 1e9 + n, "ab")]
    requests = [asked(f"r{n}", 1e9 + n, 2) for n in range(200)]
    write(log, [event("a", f"r{n}", 1e9 + n + 1, event_id=str(n)) for n in range(200)], exposures, requests)
    found = read(log, after=1e9 - 1)
    assert found.one_in == 4 and 30 <= len(found.lists) <= 70
    assert len(found.shown) == 2 * len(found.lists) and found.lists["used"].all()


def test_of_too_many_searches_a_part_is_read(log, monkeypatch):
    monkeypatch.setattr(module, "MOST_ROWS", 100)
    write(log, requests=[asked(f"r{n}", 1e9 + n, 2, policy="search") for n in range(200)])
    found = read(log, after=1e9 - 1)
    assert found.one_in == 2 and 70 <= len(found.lists) <= 130


def test_a_log_of_an_earlier_version_has_no_requests(log):
    write(log, exposures=shown("r", 1e9 + 1, "ab", "u"))
    log._connection.execute("DROP TABLE requests")
    found = read(log)
    assert found.lists["listed"].tolist() == [2] and found.lists["history_ids"].isna().all()
    EventLog(log.folder).close()  # a writer makes the table
    with LogReader(log.folder) as reader:
        assert reader.has_requests()


@pytest.mark.parametrize("nobody", [None, np.nan, "", 7])
def test_tables_without_users_or_with_numeric_user_ids_are_read(nobody):
    rows = pd.DataFrame(
        {
            "request_id": ["r1", "r2/0", "r2/1"], "time_s": 5.0, "user_id": nobody, "model": "m", "version": 3,
            "policy": "recommend", "item_id": "a", "position": 0,
        }
    )  # fmt: skip
    events = pd.DataFrame({"timestamp_s": [6.0], "user_id": nobody, "item_id": "a", "request_id": "r1"})
    found = observed(rows, events, None, 0, 10, 5)
    assert found.shown["used"].tolist() == [True, False, False]
    assert found.lists["user"].tolist() == ([0, 0, 0] if nobody == 7 else [0, 1, 1])


def test_wrong_tables_and_empty_logs(log):
    with pytest.raises(DataError, match="has no lists: expected those that 'tfllmrec serve --log' writes"):
        ends_of(log.folder)
    with pytest.raises(DataError, match="Expected a column 'time_s' in the shown items"):
        observed(pd.DataFrame({"request_id": []}), pd.DataFrame(), None, 0, 1, 1)
    assert len(read(log).lists) == 0
