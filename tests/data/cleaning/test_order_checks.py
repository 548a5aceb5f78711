import numpy as np
import pandas as pd
import pytest

from tfllmrec.config import DataConfig
from tfllmrec.data import dataset_from_frames

USERS, ITEMS = 300, 120


def planted(seed=0, events=8, **changes):
    """300 users, each with 8 events on items drawn at random, in a random order that ``order`` states."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "user": np.repeat([f"u{u}" for u in range(USERS)], events),
            "item": np.concatenate([rng.permutation(ITEMS)[:events] for _ in range(USERS)]),
            "rating": rng.integers(1, 6, USERS * events),
        }
    )
    frame = frame.assign(**changes)
    return ordered(frame.iloc[rng.permutation(len(frame))])


def ordered(frame):
    """The rows with an order column that counts each user's rows as they come, then in a random order again."""
    frame = frame.assign(order=frame.groupby("user").cumcount())
    return frame.iloc[np.random.default_rng(1).permutation(len(frame))]


def catalogue(seed=0):
    """Titles, prices and rows in three random orders, none of which is that of the ids."""
    rng = np.random.default_rng(seed)
    items = pd.DataFrame(
        {
            "item": np.arange(ITEMS),
            "title": [f"t{i:03}" for i in rng.permutation(ITEMS)],
            "price": rng.permutation(ITEMS) + 0.5,
            "genre": [f"g{i}" for i in rng.integers(0, 8, ITEMS)],
        }
    )
    return items.iloc[rng.permutation(ITEMS)].reset_index(drop=True)


def doubts(events, items=None, **config):
    data = dataset_from_frames(events, items, config=DataConfig(**config))
    found = data.report.doubts()
    assert data.describe()["doubts"] == found
    assert [f.table for f in data.report.findings if f.action == "doubted"] == ["events"] * len(found)
    return found


def the_doubt(*args, **config):
    [found] = doubts(*args, **config)
    return found


def sorted_by(key, ascending=True):
    """The planted events sorted within each user by ``key``, a function of the events joined to the catalogue."""
    joined = planted().merge(catalogue().assign(row=np.arange(ITEMS)), on="item")
    joined["key"] = key(joined)
    return ordered(joined.sort_values(["user", "key"], ascending=ascending)[["user", "item", "rating"]])


def test_a_random_order_is_not_doubted():
    for seed in range(5):
        assert doubts(planted(seed), catalogue()) == []


@pytest.mark.parametrize("ascending", [True, False])
@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("item id:", lambda e: e["item"]),  # numbers in the order of numbers
        ("item id as text:", lambda e: e["item"].astype(str)),
        ("title:", lambda e: e["title"]),
        ("price:", lambda e: e["price"]),
        ("the row of the item in the catalogue:", lambda e: e["row"]),
        ("the number of events of the item:", lambda e: e.groupby("item")["user"].transform("size")),
        ("rating:", lambda e: e["rating"]),
        ("categories:", lambda e: e["genre"]),
    ],
)
def test_events_that_are_sorted_within_each_user(name, key, ascending):
    found = [text for text in doubts(sorted_by(key, ascending), catalogue()) if "are on items with" not in text]
    assert len(found) == 1, found
    verb = "ascend" if ascending else "descend"
    assert found[0].startswith(f"the events of almost every user {verb} by {name} 300 of 300 users"), found
    assert f"adjacent events {verb} in 100.0% of the cases" in found[0]
    assert "data.columns" in found[0] and "split.kind" in found[0]


def test_prefixed_ids_are_compared_by_their_numbers():
    events = sorted_by(lambda e: e["item"])
    events["item"] = "B" + events["item"].astype(str)  # B2, B10
    assert any("ascend by item id:" in text for text in doubts(events))


@pytest.mark.parametrize(("share", "doubted"), [(0.95, True), (0.5, False)])
def test_almost_every_user_is_enough(share, doubted):
    by_id, random = sorted_by(lambda e: e["item"]), planted()
    users = [f"u{u}" for u in range(round(share * USERS))]
    mixed = pd.concat([by_id[by_id["user"].isin(users)], random[~random["user"].isin(users)]])
    found = doubts(mixed, catalogue())
    assert any("almost every user ascend by item id:" in text for text in found) == doubted


def test_few_users_prove_nothing():
    events = sorted_by(lambda e: e["item"])
    few = events[events["user"].isin([f"u{u}" for u in range(19)])]
    assert doubts(few, catalogue()) == []


def test_a_file_that_lists_events_item_by_item():
    events = planted()
    names = np.random.default_rng(5).permutation(ITEMS)  # an order of the items that no column has
    events = events.iloc[np.argsort(names[events["item"]], kind="stable")]
    events["order"] = events.groupby("user").cumcount()
    found = doubts(events, catalogue())
    assert any("ascend by the row of the event in the file, which lists the events item by item" in t for t in found)
    # With times that do not follow the file, the same file is in order.
    assert doubts(events.drop(columns="order").assign(time=np.random.default_rng(2).random(len(events)) * 1e6)) == []


@pytest.mark.parametrize("column", ["order", "timestamp"])
@pytest.mark.parametrize("step", [1, -1, 0.5, 60])
def test_a_column_that_counts_the_rows(column, step):
    events = planted().drop(columns="order")
    events[column] = 1e8 + step * np.arange(len(events))
    found = the_doubt(events, catalogue())
    assert "grows by the same step from row to row" in found and "data.columns" in found and f"'{column}'" in found


def test_rows_that_are_dropped_do_not_hide_a_row_number():
    events = planted().drop(columns="order").assign(order=lambda e: np.arange(len(e)))
    events["rating"] = events["rating"].astype(object)
    events.iloc[100, events.columns.get_loc("rating")] = "bad"
    assert "same step" in the_doubt(events, catalogue())


def test_a_log_in_order_of_time_is_not_doubted():
    events = planted().drop(columns="order")
    events["timestamp"] = np.cumsum(np.random.default_rng(3).integers(1, 100, len(events))) + 1_400_000_000
    assert doubts(events, catalogue()) == []


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("unit", ["id", "text", "catalogue"])
def test_ties_of_a_day_broken_by_id(unit, descending):
    events = planted(events=12)
    rng = np.random.default_rng(4)
    row = pd.Series(np.arange(ITEMS), index=catalogue()["item"])
    key = {"id": events["item"], "text": events["item"].astype(str), "catalogue": events["item"].map(row)}[unit]
    day = rng.integers(0, 6, len(events))  # two events a day
    by_day = events.assign(day=day, key=key).sort_values(["user", "day", "key"], ascending=[True, True, not descending])
    found = the_doubt(ordered(by_day.drop(columns=["day", "key"])), catalogue())
    name = {"id": "item id", "text": "item id as text", "catalogue": "the row of the item in the catalogue"}[unit]
    assert found.startswith(f"adjacent events {'de' if descending else 'a'}scend by {name} in ")
    assert "Published results" in found and "timestamp_s" in found
    # Broken by a hash, as by this library when it is given the days, the ties are not in order of id.
    assert not any("two apart" in text for text in doubts(by_day.drop(columns="order").assign(timestamp=by_day["day"])))


def test_ids_that_grow_with_time_are_not_taken_for_ties():
    events = planted(events=12)
    drift = events["item"] + np.random.default_rng(6).normal(0, 40, len(events))
    events = ordered(events.assign(drift=drift).sort_values(["user", "drift"]).drop(columns="drift"))
    assert not any("two apart" in text for text in doubts(events, catalogue()))


def test_ids_that_grow_with_time_to_another_length_are_not_taken_for_ties():
    rng = np.random.default_rng(1)
    user = np.repeat(np.arange(USERS), 10)
    day = rng.random(len(user)) * 350
    item = day.astype(int) // 20 * 100 + rng.integers(0, 100, len(user))
    events = pd.DataFrame({"user": [f"u{u}" for u in user], "item": item, "timestamp": 1.4e9 + day * 86_400})
    assert not any("two apart" in text for text in doubts(events))


def test_one_time_for_all_events_of_a_user():
    events = planted().drop(columns="order")
    events["timestamp"] = events["user"].str[1:].astype(int) * 86_400 + 1_400_000_000
    assert the_doubt(events, catalogue()).startswith("300 of 300 users with several events have one time for all of")


def test_one_time_for_all_events():
    events = planted().drop(columns="order").assign(timestamp=1_400_000_000)
    found = the_doubt(events, catalogue())
    assert "timestamp_s is the same in every row" in found and "data.columns" in found


def test_one_time_for_all_events_of_an_item():
    events = planted().drop(columns="order")
    date = np.random.default_rng(7).permutation(ITEMS)
    events["timestamp"] = date[events["item"]] * 86_400 + 1_400_000_000
    assert any(text.startswith("120 of 120 items with at least 5 events have one time") for text in doubts(events))


def test_ties_decide_the_test_item():
    events = planted().drop(columns="order")
    hour = events.groupby("user").cumcount()
    user = events["user"].str[1:].astype(int)
    # Of 300 users 30 have a tied last event, and 60 others a tied second last; the rest of their times differ.
    hour = hour.mask((hour == 7) & (user < 30), 6).mask((hour == 6) & (user >= 30) & (user < 90), 5)
    found = the_doubt(events.assign(timestamp=hour * 3600 + 1_400_000_000), catalogue())
    assert found.startswith("ties decide the held-out items of 90 of 300 users (30.0%)")
    assert "last event of 30 users (10.0%)" in found and "second last of 60 (20.0%)" in found
    # Ties among earlier events decide no test item; that there are some is counted, not doubted.
    early = (events.groupby("user").cumcount() - 1).clip(lower=0)
    data = dataset_from_frames(events.assign(timestamp=early * 3600 + 1_400_000_000), catalogue())
    assert data.report.doubts() == [] and data.describe()["tied_users"] == USERS


def test_an_order_column_leaves_no_ties():
    data = dataset_from_frames(planted().assign(timestamp=lambda e: e["user"].str[1:].astype(int) + 1e9))
    assert data.report.tied_users == 0 and not any("ties" in text for text in data.report.doubts())


def test_a_planted_block_of_late_items_is_cold():
    events = planted()
    # Each user's last event moves to one of 20 items that nobody meets earlier; each of those has 15 events.
    is_last = events.groupby("user")["order"].transform("max") == events["order"]
    user = events["user"].str[1:].astype(int)
    events["item"] = events["item"].mask(is_last, 1000 + user % 20)
    found = the_doubt(events)
    assert found.startswith("300 of 300 last events (100.0%) are on items with at least 5 events that have none left")
    assert "where 0 are expected" in found


def test_the_expected_number_of_cold_targets_is_that_of_random_orders(monkeypatch):
    from tfllmrec.data.cleaning import order_checks

    # Few events a user and an item, so that chance makes many targets cold: 3 events each, 2 of them held out.
    monkeypatch.setattr(order_checks, "MANY_EVENTS", 1)
    monkeypatch.setattr(order_checks, "MAX_COLD", 0.0)
    monkeypatch.setattr(order_checks, "MIN_COLD_RATIO", 0.0)
    rng = np.random.default_rng(8)
    users = np.repeat(np.arange(2000), 3)
    items = rng.integers(0, 3000, len(users))
    finding = order_checks._cold_targets(users, items)
    chance = (np.bincount(items) / 2 * (2 / 3) ** np.bincount(items)).sum()  # n / 2 * (2 / 3)^n for an item of n events
    assert f"where {chance:,.0f} are expected" in finding.what
    assert abs(finding.count - chance) < 5 * np.sqrt(chance)  # and so many there are


def test_one_last_item_for_most_users():
    events = planted()
    bye = pd.DataFrame({"user": [f"u{u}" for u in range(200)], "item": 999, "rating": 3, "order": 99})
    found = doubts(pd.concat([events, bye]))  # besides, the item is cold
    assert found[-1].startswith("200 of 300 users have the same last item, '999'")
    assert not any("same last item" in text for text in doubts(pd.concat([events, bye[:140]])))


def test_unordered_data_is_not_doubted():
    assert doubts(sorted_by(lambda e: e["item"]).drop(columns="order"), catalogue()) == []


def test_the_smallest_data():
    for n in (1, 2, 3):
        events = pd.DataFrame({"user": "u", "item": list("abc")[:n], "timestamp": [1, 2, 2][:n]})
        assert doubts(events) == []


def test_an_order_against_the_times():
    events = planted()
    newest_first = events.assign(timestamp=1.4e9 - 1000 * events.order)
    assert "the order column contradicts the times: in 100.0% of adjacent events" in the_doubt(newest_first)
    assert not doubts(events.assign(timestamp=1.4e9 + 1000 * events.order))


def test_titles_sorted_as_databases_sort_them():
    titles = [f"{'aB'[i % 2]}{i:03}" for i in range(ITEMS)]
    items = catalogue().assign(title=lambda frame: [titles[i] for i in np.random.default_rng(3).permutation(ITEMS)])
    joined = planted().merge(items, on="item").assign(key=lambda frame: frame.title.str.lower())
    events = ordered(joined.sort_values(["user", "key"])[["user", "item", "rating"]])
    assert any("ascend by title, regardless of case" in doubt for doubt in doubts(events, items))
