"""The metrics stay small, whatever clients send and however often versions change."""

import time
from collections import Counter

import numpy as np

from tfllmrec.client.answers import Receipt
from tfllmrec.feedback.event_log import Exposure
from tfllmrec.feedback.event_writer import Commit
from tfllmrec.feedback.events import check
from tfllmrec.server.intake import Recent
from tfllmrec.server.lists import Items, lists_of
from tfllmrec.server.metrics import MOST_KINDS, MOST_VERSIONS, Metrics


def lines(metrics, start):
    return [line for line in metrics.page().decode().splitlines() if line.startswith(start)]


def test_series_of_versions_that_are_not_used_any_more_are_dropped():
    metrics = Metrics(lambda: 0)
    lists = lists_of({}, {"item_ids": np.array([[b"a"]], object)}, Items())
    for version in range(1, 50):
        metrics.answer("shop", 1, "recommend", 0.1)  # the stable version goes on
        metrics.answer("shop", version, "recommend", 0.1)
        metrics.lists("shop", version, "recommend", lists)
        metrics.commit(Commit([], 1, 0, 0.1), Counter({("shop", str(version), "recommend"): 1}))
    counts = lines(metrics, "tfllmrec_answer_seconds_count")
    assert len(counts) == MOST_VERSIONS and any('version="1"' in line and line.endswith(" 50.0") for line in counts)
    assert not any('version="2"' in line for line in lines(metrics, "tfllmrec_"))
    for name in ("tfllmrec_list_items_count", "tfllmrec_listed_items_total", "tfllmrec_used_items_total"):
        assert MOST_VERSIONS - 1 <= len(lines(metrics, name)) <= MOST_VERSIONS, name


def test_series_of_versions_that_are_served_are_kept():
    metrics, served = Metrics(lambda: 0), range(1, 2 * MOST_VERSIONS)
    metrics.versions(lambda: [("shop", version, []) for version in served])
    for _ in range(3):
        for version in served:
            metrics.answer("shop", version, "recommend", 0.1)
    counts = lines(metrics, "tfllmrec_answer_seconds_count")
    assert len(counts) == len(served) and all(line.endswith(" 3.0") for line in counts)
    served = range(100, 102)
    for version in (100, 101):
        metrics.answer("shop", version, "recommend", 0.1)
    assert len(lines(metrics, "tfllmrec_answer_seconds_count")) == MOST_VERSIONS


def test_lists_without_a_history_are_no_lists_for_an_empty_history():
    metrics = Metrics(lambda: 0)
    ids = {"item_ids": np.array([[b"a"], [b"b"]], object)}
    metrics.lists("shop", 1, "similar", lists_of({}, ids, Items()))
    history = np.array([[b""], [b"x"]], object)
    metrics.lists("shop", 1, "recommend", lists_of({"history": history}, ids, Items()))
    for name, expected in (("tfllmrec_lists_without_history_total", "1.0"), ("tfllmrec_history_ids_count", "2.0")):
        (line,) = lines(metrics, name + "{")
        assert 'signature="recommend"' in line and line.endswith(f" {expected}")
    assert len(lines(metrics, "tfllmrec_list_items_count")) == 2


def test_a_server_that_never_has_an_event_has_the_time_of_its_start():
    metrics = Metrics(lambda: 0)
    metrics.log(lambda: 0)
    ((_, value),) = (line.split() for line in lines(metrics, "tfllmrec_last_event_timestamp_seconds"))
    assert abs(float(value) - time.time()) < 60
    ((_, value),) = (line.split() for line in lines(metrics, "tfllmrec_last_list_timestamp_seconds"))
    assert float(value) == 0


def test_kinds_beyond_the_first_ones_are_counted_together():
    metrics = Metrics(lambda: 0)
    sent = [{"user_id": "u", "item_id": "i", "event_id": str(n), "kind": f"kind {n}"} for n in range(30)]
    batch = check([*sent, {"user_id": "u", "item_id": "i", "event_id": "x"}], 1e9)
    for _ in range(2):
        metrics.commit(Commit([Receipt(31, 0, (), 0, 0)], 0, 0, 0.1, batches=[batch]), {})
    found = lines(metrics, "tfllmrec_events_by_kind_total")
    assert len(found) == MOST_KINDS + 1
    assert f'tfllmrec_events_by_kind_total{{kind="other"}} {2 * (31 - MOST_KINDS)}.0' in found


def shown(request, item, version=1):
    return Exposure(request, 1e9, None, "shop", version, "recommend", item, 0)


def test_an_item_that_was_shown_is_taken_once():
    recent = Recent(10)
    recent.add([shown("r", "a"), shown("r", "b"), shown("many/0", "a", 2), shown("many/1", "a", 3)])
    assert recent.take("r", "a") == [("shop", "1", "recommend")] and recent.take("r", "a") == []
    assert recent.take("r", "z") == recent.take("s", "a") == []
    assert recent.take("many/0", "a") == [("shop", "3", "recommend")]  # lists of a request are looked up together


def test_only_the_last_lists_are_remembered():
    recent = Recent(10)
    recent.add([shown("first", "a")])
    recent.add([shown(f"r{n}", item) for n in range(4) for item in "abc"])
    assert recent.take("first", "a") == recent.take("r0", "a") == []
    assert all(recent.take(f"r{n}", item) for n in (1, 2, 3) for item in "abc")
    recent.add([shown(f"s{n}", "a") for n in range(100)])
    assert sum(bool(recent.take(f"s{n}", "a")) for n in range(100)) == 10
