"""Data sets that grow, and forget users."""

import numpy as np
import pandas as pd
import pytest
from small_datasets import finding

from tfllmrec.config import DataConfig, FieldConfig
from tfllmrec.data import Dataset, dataset_from_frames, read_dataset
from tfllmrec.data.extension import extended_entities, extended_events, known_occurrences
from tfllmrec.errors import ConfigError, DataError

ITEMS = pd.DataFrame({"item": ["b", "a", "10", "1"], "title": ["Bee", "Ant", "", "One"], "price": ["1", "2", "", ""]})
MORE_ITEMS = pd.DataFrame({"item": ["c", "a", "9"], "title": ["Cat", "", "Nine"], "colour": ["", "red", "blue"]})


def events(n, seed, users=8, items=12, **columns):
    """Random events of few users, items and moments, so that there are repeats and ties."""
    rng = np.random.default_rng(seed)
    frame = {
        "user": rng.integers(users, size=n),
        "item": rng.integers(items, size=n),
        "timestamp": 1e9 + 100 * rng.integers(30, size=n),
        "rating": rng.integers(1, 6, size=n),
        "kind": rng.choice(["view", "purchase", "cart"], size=n),
    }
    return pd.DataFrame({**frame, **columns}).astype({"user": str, "item": str})


def content(data):
    """The tables without indices: rows by their ids."""
    plain = data.events.drop(columns=["user_index", "item_index"]).sort_values(["user_id", "order"])
    tables = [plain, data.items.sort_values("item_id"), data.users.sort_values("user_id"), data.tags]
    return [table[sorted(table)].reset_index(drop=True) for table in tables]


def assert_same(one, other):
    for left, right in zip(content(one), content(other), strict=True):
        pd.testing.assert_frame_equal(left, right)
    assert one.ordered == other.ordered
    assert_whole(one)
    assert_whole(other)


def assert_whole(data):
    """What every Dataset keeps: indices are rows, events are in order, and each row read is kept or dropped."""
    table = data.events
    assert data.items.item_id.is_unique and data.users.user_id.is_unique
    assert (data.items.item_id.to_numpy()[table.item_index] == table.item_id).all()
    assert (data.users.user_id.to_numpy()[table.user_index] == table.user_id).all()
    assert table.equals(table.sort_values(["user_index", "order"]).reset_index(drop=True))
    assert (table.groupby("user_index").cumcount() == table.order).all()
    assert set(data.users.user_id) == set(table.user_id)
    report = data.report
    assert all(n == report.rows_kept[t] + report.dropped(t) for t, n in report.rows_in.items())
    replaced = sum(f.count for f in report.findings if (f.table, f.action) == ("events", "replaced"))
    assert report.rows_kept["events"] == len(table) + replaced


def test_ratings_that_come_one_at_a_time_are_kept():
    data = dataset_from_frames(pd.DataFrame({"user": ["u"], "item": ["click"], "timestamp": [1e9]}))
    for n, rating in enumerate([5, 5, 3]):
        assert not data.has_ratings  # ratings that are all the same say nothing
        event = {"user": ["u"], "item": [str(n)], "timestamp": [1e9 + 1 + n], "rating": [rating]}
        data = data.extend(pd.DataFrame(event))
    assert data.events.rating.fillna(0).tolist() == [0, 5, 5, 3] and data.has_ratings


# Items and users ------------------------------------------------------------------------------------------------------


def test_known_items_keep_their_rows_and_new_ones_follow_in_natural_order():
    data = dataset_from_frames(events(20, 0, items=4), ITEMS)
    grown = data.extend(items=MORE_ITEMS)
    assert data.items.item_id.tolist() == ["0", "1", "2", "3", "a", "b", "10"]
    assert grown.items.item_id.tolist() == ["0", "1", "2", "3", "a", "b", "10", "9", "c"]
    row = grown.items.set_index("item_id")
    assert row.loc["a"].to_dict() == {"title": "Ant", "colour": "red", "price": "2"}  # "" replaces nothing
    assert row.loc["9"].to_dict() == {"title": "Nine", "colour": "blue", "price": ""}
    assert list(grown.items) == ["item_id", "title", "colour", "price"]
    pd.testing.assert_frame_equal(grown.events, data.events)
    assert finding(grown, "new, after the known ones").count == 2
    assert finding(grown, "known, with other values now").count == 1
    assert finding(grown, "known, with other values now").example == "'a'"
    assert (grown.report.rows_in["items"], grown.report.rows_kept["items"]) == (7, 7)
    assert_whole(grown)
    again = grown.extend(items=MORE_ITEMS)
    assert again.fingerprint == grown.fingerprint
    assert data.items.equals(dataset_from_frames(events(20, 0, items=4), ITEMS).items)  # it stays as it was


def test_a_new_text_replaces_the_old_one():
    data = dataset_from_frames(events(20, 0, items=4), ITEMS)
    grown = data.extend(items=pd.DataFrame({"item": ["b"], "title": ["<b>Wasp</b>"]}))
    assert grown.items.set_index("item_id").loc["b"].to_dict() == {"title": "Wasp", "price": "1"}


def test_users_are_extended_as_items_are():
    users = pd.DataFrame({"user": ["0", "7"], "age": ["20", "30"]})
    log = events(40, 0, users=5)
    grown = dataset_from_frames(log, users=users).extend(
        events=events(5, 1, users=1).assign(user="12"),
        users=pd.DataFrame({"user": ["12", "1", "0", "99"], "age": ["50", "40", "", "1"], "town": ["", "A", "B", "C"]}),
    )
    assert grown.users.user_id.tolist() == ["0", "1", "2", "3", "4", "12"]  # 99 has no events
    assert grown.users.age.tolist() == ["20", "40", "", "", "", "50"]
    assert grown.users.town.tolist() == ["B", "A", "", "", "", ""]
    assert_whole(grown)


def test_the_order_of_the_new_rows_does_not_matter():
    data = dataset_from_frames(events(30, 0), ITEMS)
    log = events(30, 1, users=12, items=20)
    seen = set()
    for seed in range(4):
        rng = np.random.default_rng(seed)
        new, items = (table.iloc[rng.permutation(len(table))] for table in (log, MORE_ITEMS))
        seen.add(data.extend(events=new, items=items).fingerprint)
    assert len(seen) == 1 and data.fingerprint not in seen


def test_rows_of_a_table_are_merged_by_key():
    known = pd.DataFrame({"k": list("yx"), "v": ["1", "2"]}, dtype="str")
    came = pd.DataFrame({"k": list("zxw"), "v": ["3", "4", ""]}, dtype="str")
    assert extended_entities(known, came, "k").to_dict("list") == {"k": ["y", "x", "w", "z"], "v": ["1", "4", "", "3"]}
    assert extended_entities(known, came[:0], "k").equals(known)
    assert extended_entities(known[:0], known, "k").k.tolist() == ["x", "y"]


# Events ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("repeats", "left_out"),
    [
        ("last", []),
        ("first", []),
        ("all", []),
        ("last", ["kind", "rating"]),
        ("last", ["timestamp"]),
        ("first", ["timestamp", "rating", "kind"]),
    ],
)
def test_in_parts_or_at_once_is_the_same(repeats, left_out):
    """The same events, however they come: at once, in two parts or in three, the newest ones first or last."""
    config = DataConfig(repeats=repeats)
    log = events(240, 3, users=12).drop(columns=left_out)
    if repeats == "all":
        # A row that is there already is the same event, and no key orders two kinds of one moment.
        log = log.drop_duplicates([column for column in log if column != "kind"])
    whole = dataset_from_frames(log, ITEMS, config=config)
    parts = [log.iloc[:90], log.iloc[90:150], log.iloc[150:]]
    for first, second, third in (parts, parts[::-1]):
        start = dataset_from_frames(first, ITEMS, config=config)
        twice = start.extend(second, config=config).extend(third, config=config)
        once = start.extend(pd.concat([second, third]), config=config)
        assert_same(twice, once)
        assert_same(twice, whole)
        assert twice.report.tied_users == once.report.tied_users == whole.report.tied_users
    assert twice.items.item_id[: start.n_items].equals(start.items.item_id)
    assert twice.users.user_id[: start.n_users].equals(start.users.user_id)


def test_extending_with_nothing_or_with_itself_is_the_identity():
    for config in (DataConfig(), DataConfig(repeats="all")):
        log = events(60, 0)
        users, tags = (
            pd.DataFrame(t) for t in ({"user": ["1"], "age": ["9"]}, {"item": ["1"], "tag": ["fun"], "user": ["1"]})
        )
        data = dataset_from_frames(log, ITEMS, users, config, tags)
        assert data.extend(config=config).fingerprint == data.fingerprint
        again = data.extend(log, ITEMS, users, tags, config)
        assert again.fingerprint == data.fingerprint
        assert finding(again, "the event is known already").count == len(data.events)
        assert finding(again, "the tag is known already").count == 1
        assert_whole(again)


def test_new_tags_join_the_known_ones():
    tags = pd.DataFrame({"item": ["1", "2"], "tag": ["new", "fun"], "user": ["1", "2"], "timestamp": [5, 6]})
    grown = dataset_from_frames(events(20, 0), tags=tags[:1]).extend(tags=tags.iloc[::-1])
    assert grown.tags.tag.tolist() == ["new", "fun"]
    assert_whole(grown)


def test_counts_of_events():
    data = dataset_from_frames(pd.DataFrame({"user": ["u", "u"], "item": ["a", "b"], "timestamp": [1, 2]}))
    more = pd.DataFrame({"user": ["u", "u", "v", "u"], "item": ["a", "c", "a", "b"], "timestamp": [3, 0, 1, 2]})
    grown = data.extend(more)
    assert grown.events[["user_id", "item_id", "order"]].to_numpy().tolist() == [
        ["u", "c", 0], ["u", "b", 1], ["u", "a", 2], ["v", "a", 0],
    ]  # fmt: skip
    assert finding(grown, "the event is known already").count == 1  # b at 2
    assert finding(grown, "known events, by new ones of the same user and item (kept: the last)").count == 1  # a at 1
    assert finding(grown, "new, among the known ones").count == 2
    assert_whole(grown)


def test_each_row_of_an_extension_is_dropped_replaces_a_known_one_or_is_new():
    log = [("u", "a", "purchase", 5), ("u", "b", "view", 5), ("u", "c", "view", 5), ("v", "d", "view", 5)]
    more = [  # merged among themselves, merged into a known event, in the place of one, known, and new
        *[("u", "d", "view", 6), ("u", "d", "purchase", 7), ("u", "d", "purchase", 8)],
        *[("u", "a", "view", 9), ("u", "b", "view", 9), ("u", "c", "view", 5), ("v", "a", "view", 9)],
    ]
    log, more = (pd.DataFrame(rows, columns=["user", "item", "kind", "timestamp"]) for rows in (log, more))
    data = dataset_from_frames(log)
    grown = data.extend(more)
    found = grown.report.findings[len(data.report.findings) :]
    counts = {
        (f.action, f.what.partition(" (")[0]): f.count for f in found if f.action in ("dropped", "replaced", "added")
    }
    assert counts == {
        ("dropped", "a weaker event than another one of the same user and item"): 1,
        ("dropped", "the same user and item again"): 1,
        ("dropped", "the event is known already"): 1,
        ("dropped", "the same user and item in a known event, which stays"): 1,
        ("replaced", "known events, by new ones of the same user and item"): 1,
        ("added", "new, among the known ones"): 2,
    }
    assert sum(counts.values()) == len(more)
    assert grown.report.rows_kept["events"] - data.report.rows_kept["events"] == 3
    assert len(grown.events) == len(data.events) + 2
    assert_whole(grown)


def test_cells_of_known_rows_are_not_reported_again():
    items = pd.DataFrame({"item": [str(i) for i in range(60)], "price": ["free", *map(str, range(1, 60))]})
    data = dataset_from_frames(events(60, 0), items)
    assert finding(data, "column 'price': not a number").count == 1
    grown = data.extend(events(5, 1), items[:2])
    assert grown.report.findings[: len(data.report.findings)] == data.report.findings
    assert finding(grown, "column 'price': not a number").count == 1
    grown = data.extend(items=pd.DataFrame({"item": ["0", "60", "61"], "price": ["free", "free", "gratis"]}))
    known, added = [f for f in grown.report.findings if "column 'price'" in f.what]
    assert known in data.report.findings and (added.count, added.example) == (2, "'free'")


def test_what_a_column_means_is_decided_from_all_events():
    """Few new events with one time or one rating are no reason to ignore either."""
    data = dataset_from_frames(events(60, 0))
    today = pd.DataFrame({"user": ["0", "1"], "item": ["x", "y"], "timestamp": 2e9, "rating": 5})
    grown = data.extend(today)
    last = grown.events.groupby("user_id").tail(1).set_index("user_id")
    assert last.loc[["0", "1"], "item_id"].tolist() == ["x", "y"]
    assert last.loc[["0", "1"], "rating"].tolist() == [5, 5]
    assert not grown.report.doubts()
    # 0 is no rating on a scale of 1 to 5, which two values alone do not show.
    unrated = data.extend(today.assign(rating=[0, 5])).events.groupby("user_id").tail(1).set_index("user_id")
    assert unrated.rating[["0", "1"]].isna().tolist() == [True, False]
    # Known users have had their events.
    config = DataConfig(min_user_events=2)
    grown = data.extend(pd.concat([today, today.assign(user="new")[:1]]), config=config)
    assert "new" not in set(grown.users.user_id) and len(grown.events) == len(data.events) + 2


def test_events_that_an_order_column_orders_are_followed_by_the_new_ones():
    log = pd.DataFrame({"user": "u", "item": list("dacb"), "order": [5, 6, 8, 7]})
    grown = dataset_from_frames(log).extend(pd.DataFrame({"user": "u", "item": list("fe"), "order": [1, 2]}))
    assert grown.events.item_id.tolist() == list("dabcfe") and grown.ordered
    assert_whole(grown)
    day = log.assign(timestamp=[1e9, 1e9, 2e9, 2e9])  # within a day the order counts
    new = pd.DataFrame({"user": "u", "item": list("fe"), "order": [1, 2], "timestamp": [1e9, 2e9]})
    assert dataset_from_frames(day).extend(new).events.item_id.tolist() == list("dafbce")
    against = log.assign(timestamp=[4e9, 3e9, 2e9, 1e9])  # times that the order contradicts
    assert dataset_from_frames(against).extend(new).events.item_id.tolist() == list("dabcfe")


def test_new_events_that_nothing_orders_are_refused():
    data = dataset_from_frames(events(20, 0))
    with pytest.raises(DataError, match="no column says where the new ones belong"):
        data.extend(events(20, 1).drop(columns="timestamp"))
    unordered = dataset_from_frames(events(20, 0).drop(columns="timestamp"))
    assert not unordered.extend(events(20, 1)).ordered


def test_other_settings_of_repeats_are_refused():
    data = dataset_from_frames(events(60, 0), config=DataConfig(repeats="all"))
    with pytest.raises(ConfigError, match=r"data\.repeats: expected all, .* found last"):
        data.extend(events(5, 1))
    assert data.extend(events(5, 1), config=DataConfig(repeats="all")).repeats
    merged = dataset_from_frames(events(60, 0), config=DataConfig(repeats="first"))
    with pytest.raises(ConfigError, match=r"data\.repeats: expected first or last, .* found all"):
        merged.extend(events(5, 1), config=DataConfig(repeats="all"))
    assert not merged.extend(events(5, 1)).repeats


def test_new_events_are_checked_like_the_first_ones():
    data = dataset_from_frames(events(20, 0), ITEMS)
    with pytest.raises(DataError, match="no column for user_id"):
        data.extend(pd.DataFrame({"item": ["a"]}))
    bad = events(20, 1).assign(timestamp="when?")
    with pytest.raises(DataError, match="cannot be read"):
        data.extend(bad)
    log = pd.DataFrame(
        {"user": [str(u) for u in range(30) for _ in range(9)], "item": [str(i) for _ in range(30) for i in range(9)]}
    )
    grown = data.extend(log.assign(timestamp=np.arange(len(log)) * (1 + np.arange(len(log)) % 3)))
    assert any("ascend by item id" in doubt for doubt in grown.report.doubts())


def test_new_items_of_events_are_told():
    grown = dataset_from_frames(events(20, 0), ITEMS).extend(events(20, 1).assign(item="none"))
    assert grown.items.item_id.iloc[-1] == "none" and grown.n_items == len(
        set(events(20, 0).item) | {*ITEMS.item, "none"}
    )
    # A catalogue of new items goes with events of known ones.
    grown = dataset_from_frames(events(20, 0), ITEMS).extend(events(20, 1, items=3), MORE_ITEMS)
    assert_whole(grown)


def test_further_columns_of_events_are_kept():
    """Whatever columns the tables have; they are no part of what orders or merges events."""
    known = dataset_from_frames(events(20, 0)).events.assign(device="phone")
    came = known[:0]
    report = dataset_from_frames(events(20, 0)).report
    same = extended_events(
        known, came, ordered=True, came_ordered=True, known_repeats=False, repeats="last", weights={}, report=report
    )
    pd.testing.assert_frame_equal(same, known)


# Saving and files -----------------------------------------------------------------------------------------------------


def test_files_extend_a_saved_data_set(tmp_path):
    data = dataset_from_frames(events(40, 0), ITEMS)
    data.save(tmp_path / "saved")
    events(40, 1, users=12).to_csv(tmp_path / "e.csv", index=False)
    MORE_ITEMS.to_csv(tmp_path / "i.csv", index=False)
    known = Dataset.load(tmp_path / "saved")
    grown = read_dataset(DataConfig(events="e.csv", items="i.csv"), tmp_path, known)
    assert grown.fingerprint == data.extend(events(40, 1, users=12), MORE_ITEMS).fingerprint
    assert grown.name == "frames"
    only_items = read_dataset(DataConfig(items="i.csv"), tmp_path, known)
    assert only_items.fingerprint == data.extend(items=MORE_ITEMS).fingerprint
    grown.save(tmp_path / "saved")
    assert Dataset.load(tmp_path / "saved").fingerprint == grown.fingerprint
    with pytest.raises(ConfigError, match="found neither"):
        read_dataset(DataConfig(), tmp_path, known)
    with pytest.raises(ConfigError, match="found a saved data set"):
        read_dataset(DataConfig(source="saved"), tmp_path, known)


def test_a_catalogue_alone_is_no_data_set():
    with pytest.raises(DataError, match="Expected a table of events"):
        dataset_from_frames(None, ITEMS)


def test_further_columns_come_along_and_are_empty_where_a_table_lacks_them():
    first = pd.DataFrame({"user": ["u", "u"], "item": ["a", "b"], "time": [1.6e9, 1.7e9], "shop": ["x", "y"]})
    later = pd.DataFrame({"user": ["u"], "item": ["c"], "time": [1.65e9], "lamp": ["on"]})
    users = pd.DataFrame({"user": ["u"], "shop": ["z"]})
    known = dataset_from_frames(first, users=users, config=DataConfig(fields={"shop": FieldConfig(owner="request")}))
    whole = known.extend(later, users=users)
    assert whole.events[["item_id", "lamp", "shop"]].to_numpy().tolist() == [
        ["a", "", "x"],
        ["c", "on", ""],
        ["b", "", "y"],
    ]
    assert list(whole.users) == ["user_id", "shop"] and whole.users["shop"].tolist() == ["z"]
    assert {field.key for field in whole.schema} >= {"event.lamp", "request.shop", "user.shop"}


def test_an_event_that_comes_again_without_a_column_keeps_what_is_known():
    first = pd.DataFrame({"user": ["u", "u"], "item": ["a", "b"], "time": [1.6e9, 1.7e9], "shop": ["x", "y"]})
    for repeats in ("last", "all"):
        config = DataConfig(repeats=repeats)
        known = dataset_from_frames(first, config=config)
        whole = known.extend(first.drop(columns="shop"), config=config)
        assert whole.events["shop"].tolist() == ["x", "y"]


def test_late_and_known_events_are_counted():
    known = dataset_from_frames(pd.DataFrame({"user": ["u"] * 3, "item": ["a", "b", "c"], "time": [10.0, 20.0, 30.0]}))
    came = pd.DataFrame({"user": ["u", "u", "u", "v"], "item": ["b", "d", "e", "a"], "time": [20.0, 15.0, 40.0, 5.0]})
    whole = known.extend(came)
    assert whole.events.item_id.tolist() == ["a", "d", "b", "c", "e", "a"]
    assert finding(whole, "late").count == 1
    assert finding(whole, "known already").count == 1
    assert finding(whole, "new, among the known ones").count == 3


def test_a_key_is_known_as_often_as_it_was_there():
    keys, known = pd.Series([7, 5, 7, 7, 3]), pd.Series([7, 3, 7, 9])
    assert known_occurrences(keys, known).tolist() == [True, False, True, False, True]
