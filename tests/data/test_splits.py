from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from tfllmrec.columns import ITEM_INDEX, ORDER, TIMESTAMP, USER_INDEX
from tfllmrec.config import DataConfig, SplitConfig
from tfllmrec.data import Ragged, Split, dataset_from_frames, make_split
from tfllmrec.data.schema import RATING_KEY
from tfllmrec.errors import ConfigError, DataError

KINDS = ["leave_last_out", "leave_random_out", "global_time", "cold_items", "cold_users", "random", "fixed"]


def dataset(histories, *, timed=True, items=None, repeats="last", test_events=None, **columns):
    """``histories``: user -> item ids; event number n of the whole log happens at n seconds."""
    rows = [(u, i, 1 + ord(i[0]) % 5) for u, row in histories.items() for i in row]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "rating"])
    if timed:
        frame["timestamp"] = np.arange(len(frame))
    frame = frame.assign(**columns)
    catalogue = None if items is None else pd.DataFrame({"item_id": items, "title": items})
    config = DataConfig(repeats=repeats, name="made")
    return dataset_from_frames(frame, catalogue, config=config, test_events=test_events)


def random_dataset(seed=0, users=40, items=30, repeats="last", timed=True):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 12, users)
    frame = pd.DataFrame(
        {
            "user": np.repeat(np.arange(users), lengths),
            "item": rng.integers(0, items, lengths.sum()),
            "rating": rng.integers(1, 6, lengths.sum()),
        }
    ).astype({"user": str, "item": str})
    if timed:
        frame["time"] = rng.integers(1, 500, lengths.sum())
    return dataset_from_frames(frame, config=DataConfig(repeats=repeats), test_events=frame[::5])


def ids(split, row):
    return [split.dataset.items.item_id[i] for i in row]


def by_user(split, queries):
    """user -> (history, targets) as item ids."""
    rows = zip(queries.user_ids, queries.history, queries.targets, strict=True)
    return {u: (ids(split, h), ids(split, t)) for u, h, t in rows}


def test_values_of_columns_that_the_data_lacks_are_missing():
    """Whether models can read them, or only rules and people do."""
    events = pd.DataFrame({"user": [*"aaabbb"], "item": [*"xyzxyz"], "time": range(6), "device": [*"pqpqpq"]})
    events["session"] = [f"s-{number}" for number in range(6)]
    items = pd.DataFrame({"item": [*"xyz"], "title": ["one", "two", "three"], "url": [*"123"], "price": [1.5, 2, 3]})
    users = pd.DataFrame({"user": [*"ab"], "age": ["young", "old"]})
    whole = make_split(dataset_from_frames(events, items, users), SplitConfig(), seed=0)
    assert {"request.device", "event.session", "user.age", "item.url", "item.price"} <= {f.key for f in whole.schema}
    bare = dataset_from_frames(events[["user", "item", "time"]])
    split = make_split(bare, SplitConfig(), seed=0, schema=whole.schema)
    assert by_user(split, split.test) == by_user(whole, whole.test)
    assert split.test.fields["request.device"].tolist() == split.test.fields["user.age"].tolist() == [0, 0]
    assert split.items["url"].tolist() == split.items["price"].tolist() == [""] * 3
    assert "url" not in bare.items


def test_leave_last_out():
    data = dataset({"u": ["a", "b", "c", "d"], "v": ["b", "a"], "w": ["c", "a", "b"], "x": ["d"]})
    split = make_split(data, SplitConfig(kind="leave_last_out"), seed=0)
    assert by_user(split, split.test) == {"u": (["a", "b", "c"], ["d"]), "w": (["c", "a"], ["b"])}
    assert by_user(split, split.validation) == {"u": (["a", "b"], ["c"]), "w": (["c"], ["a"])}
    # Users with fewer than 3 events are for training only.
    assert list(zip(split.train.user_id, split.train.item_id, strict=True)) == [
        *(("u", "a"), ("u", "b"), ("v", "b"), ("v", "a"), ("w", "c"), ("x", "d"))
    ]
    assert by_user(split, split.train_queries()) == {
        "u": (["a", "b"], []),
        "v": (["b", "a"], []),
        "w": (["c"], []),
        "x": (["d"], []),
    }
    assert split.test.ratings[0].tolist() == [1 + ord("a") % 5, 1 + ord("b") % 5, 1 + ord("c") % 5]


def test_auto_depends_on_whether_the_data_is_ordered():
    histories = {"u": ["a", "b", "c"], "v": ["a", "b", "c"]}
    assert make_split(dataset(histories), SplitConfig(), 0).kind == "leave_last_out"
    assert make_split(dataset(histories, timed=False), SplitConfig(), 0).kind == "leave_random_out"


def test_leave_last_out_without_order_is_refused():
    with pytest.raises(DataError, match="order"):
        make_split(dataset({"u": ["a", "b", "c"]}, timed=False), SplitConfig(kind="leave_last_out"), 0)


def test_global_time():
    # Ten events at 0 to 9 s; the last tenth is the test (9 s on), the two tenths before that the validation (7 s on).
    data = dataset({"u": ["a", "b", "c"], "v": ["a", "b", "c", "d"], "w": ["a", "b", "c"]})
    order = {"u": [0, 7, 9], "v": [1, 2, 3, 4], "w": [5, 6, 8]}
    events = data.events.copy()
    events[TIMESTAMP] = np.concatenate([order[u] for u in ("u", "v", "w")]).astype(float)
    split = make_split(
        replace(data, events=events), SplitConfig(kind="global_time", validation_share=0.2, test_share=0.1), 0
    )
    assert split.train[TIMESTAMP].max() == 6
    assert by_user(split, split.validation) == {"u": (["a"], ["b"]), "w": (["a", "b"], ["c"])}
    assert by_user(split, split.test) == {"u": (["a", "b"], ["c"])}


def test_global_time_leaves_out_users_of_whom_nothing_was_known():
    data = dataset({"u": ["a", "b"], "v": ["a", "b"], "w": ["a", "b"]})
    events = data.events.copy()
    events[TIMESTAMP] = [0.0, 3.0, 1.0, 5.0, 4.0, 6.0]  # w begins after train ends
    split = make_split(
        replace(data, events=events), SplitConfig(kind="global_time", validation_share=0.34, test_share=0.33), 0
    )
    assert by_user(split, split.validation) == {"u": (["a"], ["b"])}
    assert by_user(split, split.test) == {"v": (["a"], ["b"]), "w": (["a"], ["b"])}


def test_global_time_needs_times():
    with pytest.raises(DataError, match="6 of 6 events of made have no time"):
        make_split(
            dataset({"u": ["a", "b", "c"], "v": ["a", "b", "c"]}, timed=False), SplitConfig(kind="global_time"), 0
        )


def test_cold_items_are_nowhere_but_in_their_targets():
    data = random_dataset()
    split = make_split(data, SplitConfig(kind="cold_items", validation_share=0.1, test_share=0.2), seed=3)
    tested, validated = (set(q.targets.values) for q in (split.test, split.validation))
    active = data.events[ITEM_INDEX].nunique()
    assert (split.train_counts == 0).sum() == round(0.1 * active) + round(0.2 * active)
    assert tested and validated and not tested & validated
    assert not (tested | validated) & set(split.train[ITEM_INDEX])
    own = split.train_queries()
    history = dict(zip(own.user_ids, own.history, strict=True))
    for user, row in zip(split.test.user_ids, split.test.history, strict=True):
        assert row.tolist() == history[user].tolist()


def test_cold_users_are_not_in_train():
    data = random_dataset()
    split = make_split(data, SplitConfig(kind="cold_users", validation_share=0.2, test_share=0.2), seed=3)
    counts = np.bincount(data.events[USER_INDEX])
    enough = int((counts >= 2).sum())
    assert len(split.test) == len(split.validation) == round(0.2 * enough)
    held_out = set(split.test.user_ids) | set(split.validation.user_ids)
    assert len(held_out) == 2 * round(0.2 * enough)
    assert not held_out & set(split.train.user_id)
    for user, history, target in zip(split.test.user_ids, split.test.history, split.test.targets, strict=True):
        assert [*history, *target] == data.events[ITEM_INDEX][data.events.user_id == user].tolist()


def test_leave_random_out_takes_two_events_of_each_user_that_has_three():
    data = random_dataset(timed=False)
    split = make_split(data, SplitConfig(kind="leave_random_out"), seed=1)
    counts = np.bincount(data.events[USER_INDEX])
    assert len(split.test) == len(split.validation) == (counts >= 3).sum()
    assert len(split.train) == len(data.events) - 2 * (counts >= 3).sum()
    again, other = (make_split(data, SplitConfig(kind="leave_random_out"), seed) for seed in (1, 2))
    assert again.test.targets.values.tolist() == split.test.targets.values.tolist()
    assert other.test.targets.values.tolist() != split.test.targets.values.tolist()
    # Not simply the last ones.
    last = data.events.groupby(USER_INDEX)[ITEM_INDEX].last()
    tested = {u: t[0] for u, t in zip(split.test.user_ids, split.test.targets, strict=True)}
    assert any(tested[u] != last[i] for i, u in enumerate(data.users.user_id) if u in tested)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("repeats", ["last", "all"])
@pytest.mark.parametrize("seed", [0, 1])
def test_no_event_is_used_twice(kind, repeats, seed):
    """The slow way: lists of events, one at a time."""
    data = random_dataset(seed, users=60, repeats=repeats)
    split = make_split(data, SplitConfig(kind=kind, validation_share=0.2, test_share=0.2), seed)
    for queries in (split.validation, split.test):
        for user, history, targets in zip(queries.user_ids, queries.history, queries.targets, strict=True):
            own = data.events[ITEM_INDEX][data.events.user_id == user].tolist()
            for item in [*history, *targets]:
                own.remove(item)  # ValueError where an event would be used a second time
            assert (len(history) or kind == "fixed") and len(targets)
    used = [tuple(e) for e in split.train[[USER_INDEX, ITEM_INDEX]].to_numpy()]
    for queries in (split.validation, split.test):
        for user, targets in zip(queries.user_ids, queries.targets, strict=True):
            used += [(data.users.user_id.tolist().index(user), item) for item in targets]
    left = [tuple(e) for e in data.events[[USER_INDEX, ITEM_INDEX]].to_numpy()]
    for event in used:
        left.remove(event)
    # With the validation events, there is all of training and validation, in the order of the data.
    both, validation = split.train_and_validation_events, split.validation_events
    assert both.index.is_monotonic_increasing and both.equals(data.events.loc[both.index])
    expected = pd.concat([split.train, validation]).sort_values([USER_INDEX, ORDER])
    assert both[ORDER].tolist() == expected[ORDER].tolist() and len(validation)
    queries = split.train_queries(validation=True)
    assert ids(split, queries.history.values) == both.item_id.tolist() and not len(queries.targets.values)
    assert queries.user_ids.tolist() == list(dict.fromkeys(both.user_id))
    assert split.train.index.tolist() == list(range(len(split.train)))


def test_strata():
    # Training events: a 3, b 2, c 2, d 1, e 0, f 0 of N = 6; users u to x keep their last two events back.
    data = dataset(
        {"u": ["a", "b", "c", "e", "f"], "v": ["a", "c", "b", "e", "f"], "w": ["a", "d", "e", "f"]},
        items=["a", "b", "c", "d", "e", "f"],
    )
    split = make_split(data, SplitConfig(), 0)
    assert split.train_counts.tolist() == [3, 2, 2, 1, 0, 0]
    assert split.train_counts.dtype == np.int64
    strata = split.strata(head_share=1 / 3)
    # round(6 / 3) = 2 items: a, and of b and c, which tie, the one with the smaller index: b.
    assert strata["head"].tolist() == [True, True, False, False, False, False]
    assert strata["tail"].tolist() == [False, False, True, True, True, True]
    assert strata["cold"].tolist() == [False, False, False, False, True, True]
    # A share beyond the items with events does not make cold items popular.
    assert split.strata(0.9)["head"].tolist() == [True, True, True, True, False, False]


@pytest.mark.parametrize("kind", KINDS)
def test_too_few_events(kind):
    data = dataset({"u": ["a", "b"]}, test_events="1:")
    with pytest.raises(DataError, match=f"too few events for a {kind} split: 1 users and 2 events"):
        make_split(data, SplitConfig(kind=kind), 0)


def test_shares_that_leave_nothing():
    with pytest.raises(ConfigError, match=r"validation_share 0.5 and test_share 0.5"):
        make_split(random_dataset(), SplitConfig(kind="cold_users", validation_share=0.5, test_share=0.5), 0)


def with_target(queries, targets):
    return replace(queries, targets=Ragged.from_rows(targets, np.int64))


def with_history(queries, rows):
    history = Ragged.from_rows(rows, np.int64)
    ratings = Ragged(np.full(len(history.values), np.nan, np.float32), history.offsets)
    return replace(queries, history=history, exclude=history, fields={RATING_KEY: ratings})


def leaking(kind, timed=True):
    data = random_dataset(5, users=30, items=40, timed=timed)
    return make_split(data, SplitConfig(kind=kind, validation_share=0.2, test_share=0.2), 0)


@pytest.mark.parametrize("kind", KINDS)
def test_check_finds_a_test_event_in_train(kind):
    split = leaking(kind)
    user = split.dataset.users.user_id.tolist().index(split.test.user_ids[0])
    events = split.dataset.events
    leak = events[(events[USER_INDEX] == user) & (events[ITEM_INDEX] == split.test.targets[0][0])]
    leaky = replace(split, train=pd.concat([split.train, leak], ignore_index=True))
    with pytest.raises(DataError, match=rf"The {kind} split of frames leaks: an event is used by two"):
        leaky.check()


@pytest.mark.parametrize("kind", KINDS)
def test_check_finds_a_target_in_its_own_history(kind):
    split = leaking(kind)
    rows = [[*h, t[0]] for h, t in zip(split.test.history, split.test.targets, strict=True)]
    with pytest.raises(DataError, match="a test target is in its own history"):
        replace(split, test=with_history(split.test, rows)).check()


@pytest.mark.parametrize("kind", ["leave_last_out", "leave_random_out", "global_time", "random", "fixed"])
def test_check_finds_a_test_target_in_a_validation_history(kind):
    split = leaking(kind)
    targets = dict(zip(split.test.user_ids, split.test.targets, strict=True))
    rows = [[*h, *targets.get(u, [])] for u, h in zip(split.validation.user_ids, split.validation.history, strict=True)]
    with pytest.raises(DataError, match="a validation history holds a test target"):
        replace(split, validation=with_history(split.validation, rows)).check()


def test_check_finds_a_validation_history_beyond_train_that_nobody_asks_for():
    split = leaking("leave_random_out")
    targets = dict(zip(split.test.user_ids, split.test.targets, strict=True))
    rows = [[*h, *targets.get(u, [])] for u, h in zip(split.validation.user_ids, split.validation.history, strict=True)]
    unasked = split.test.take(np.arange(0))
    with pytest.raises(DataError, match="a validation history holds an event outside train"):
        replace(split, validation=with_history(split.validation, rows), test=unasked).check()


def test_check_finds_a_test_history_with_held_out_items():
    split = leaking("cold_items")
    targets = dict(zip(split.validation.user_ids, split.validation.targets, strict=True))
    rows = [[*h, *targets.get(u, [])] for u, h in zip(split.test.user_ids, split.test.history, strict=True)]
    with pytest.raises(DataError, match="a test history holds an event outside train"):
        replace(split, test=with_history(split.test, rows)).check()


def test_make_split_checks_itself(monkeypatch):
    checked = []
    monkeypatch.setattr(Split, "check", lambda split: checked.append(split))
    split = make_split(random_dataset(), SplitConfig(), 0)
    assert checked == [split]


def test_check_finds_an_exclusion_that_is_not_the_history():
    split = leaking("leave_random_out")
    none = Ragged.from_rows([[]] * len(split.test), np.int64)
    with pytest.raises(DataError, match="excludes something else"):
        replace(split, test=replace(split.test, exclude=none)).check()


def test_check_finds_an_unknown_user_and_a_user_twice():
    split = leaking("leave_random_out")
    strange = np.array(["?", *split.test.user_ids[1:]], dtype=object)
    with pytest.raises(DataError, match=r"unknown user '\?'"):
        replace(split, test=replace(split.test, user_ids=strange)).check()
    with pytest.raises(DataError, match="have the same fields of the request"):
        replace(split, test=split.test.take(np.array([0, 0]))).check()


def test_check_finds_a_target_that_is_not_the_next_event():
    split = leaking("leave_last_out")
    # The last history entry and the target change places: same events, wrong order.
    rows = [[*h[:-1], t[0]] for h, t in zip(split.test.history, split.test.targets, strict=True)]
    targets = [[h[-1]] for h in split.test.history]
    validation = split.validation.take(np.arange(0))
    swapped = replace(split, validation=validation, test=with_target(with_history(split.test, rows), targets))
    with pytest.raises(DataError, match="not the event that comes next"):
        swapped.check()


def test_check_finds_an_event_before_the_end_of_train():
    split = leaking("global_time")
    late = split.dataset.events[TIMESTAMP].max() + 1
    train = split.train.copy()
    train.loc[0, TIMESTAMP] = late
    with pytest.raises(DataError, match="not later than all of train"):
        replace(split, train=train).check()
    # The same for a validation event that happens after the test begins.
    user = split.dataset.users.user_id.tolist().index(split.validation.user_ids[0])
    events = split.dataset.events.copy()
    events.loc[(events[USER_INDEX] == user) & (events[ITEM_INDEX] == split.validation.targets[0][0]), TIMESTAMP] = late
    with pytest.raises(DataError, match="not later than all of validation"):
        replace(split, dataset=replace(split.dataset, events=events)).check()


def test_check_finds_a_cold_item_in_train():
    split = leaking("cold_items")
    extra = split.dataset.events.iloc[[0]].assign(**{ITEM_INDEX: split.test.targets[0][0]})
    data = replace(split.dataset, events=pd.concat([split.dataset.events, extra], ignore_index=True))
    with pytest.raises(DataError, match="a held-out test item is met before"):
        replace(split, dataset=data, train=pd.concat([split.train, extra], ignore_index=True)).check()


def test_check_finds_a_cold_user_in_train():
    split = leaking("cold_users")
    user = split.test.user_ids[0]
    events = split.dataset.events
    train = pd.concat([split.train, events[events.user_id == user].iloc[[0]]], ignore_index=True)
    with pytest.raises(DataError, match=f"the held-out test user '{user}' is met before"):
        replace(split, train=train).check()


# Shares, given events, contexts and re-use ---------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_random_shares_are_right_in_total_and_for_each_user(seed):
    lengths = {str(user): 1 + user % 9 for user in range(300)}
    data = dataset({user: [str(item) for item in range(n)] for user, n in lengths.items()}, timed=False)
    split = make_split(data, SplitConfig(kind="random", validation_share=0.1, test_share=0.2), seed)
    of_user = {"test": {}, "validation": {}}
    for part, counts in of_user.items():
        queries = getattr(split, part)
        counts.update(zip(queries.user_ids, queries.targets.lengths.tolist(), strict=True))
    for user, n in lengths.items():
        tested, validated = (of_user[part].get(user, 0) for part in ("test", "validation"))
        held_out = np.floor(0.3 * n), np.ceil(0.3 * n)
        assert held_out[0] <= tested + validated <= held_out[1] or n == 1
        assert abs(tested - 0.2 * n) < 1.35 and n - tested - validated >= 1
    # Users of one event give none.
    events = sum(lengths.values())
    ones = sum(n == 1 for n in lengths.values())
    assert abs(sum(of_user["test"].values()) - 0.2 * events) <= 1 + ones
    assert abs(len(split.train) - 0.7 * events) <= 1 + ones


def test_random_rounding_favours_nobody():
    """A tenth of five events is a test event for half of the users, other ones with another seed."""
    data = dataset({str(user): list("abcde") for user in range(200)}, timed=False)
    tested = []
    for seed in range(2):
        split = make_split(data, SplitConfig(kind="random"), seed)
        assert split.test.targets.lengths.tolist() == split.validation.targets.lengths.tolist() == [1] * 100
        tested.append(set(split.test.user_ids))
    assert 25 < len(tested[0] & tested[1]) < 75
    drawn = np.bincount(split.test.targets.values, minlength=5)
    assert (drawn > 5).all()  # any of a user's events, not only the last ones


def test_random_histories_are_the_training_events_and_in_the_test_the_validation_events():
    data = dataset({str(user): list("abcdefghij") for user in range(10)})
    split = make_split(data, SplitConfig(kind="random"), 0)
    trained = {user: [*row] for user, (row, _) in by_user(split, split.train_queries()).items()}
    validation, test = by_user(split, split.validation), by_user(split, split.test)
    for user in trained:
        assert validation[user][0] == trained[user] and len(trained[user]) == 8
        assert test[user][0] == sorted(trained[user] + validation[user][1])
        assert sorted(test[user][0] + test[user][1]) == list("abcdefghij")


LOG = {"u": list("abcdefghij"), "v": list("abcdefghij"), "w": ["a"]}


def test_fixed_rows_are_the_test():
    data = dataset(LOG, test_events="8:13")  # i and j of u, and a to c of v
    assert data.test_events == "8:13" and data.report.rows_kept["test_events"] == 5
    split = make_split(data, SplitConfig(kind="fixed", test_events="8:13", validation_share=0.25), 0)
    assert {user: targets for user, (_, targets) in by_user(split, split.test).items()} == {
        "u": ["i", "j"], "v": ["a", "b", "c"],
    }  # fmt: skip
    # A quarter of eight and of seven other events.
    assert split.validation.targets.lengths.tolist() in ([2, 1], [2, 2])
    assert by_user(split, split.test)["u"][0] == list("abcdefgh")
    assert len(split.train) == 21 - 5 - split.validation.targets.lengths.sum()
    assert "request.test_event" not in [f.key for f in split.schema] + [f.key for f in data.schema]


def test_all_fixed_events_are_the_test_even_where_nothing_else_is_known_of_the_user():
    data = dataset(LOG, test_events="15:")  # f to j of v, and all of w
    split = make_split(data, SplitConfig(kind="fixed", validation_share=0.3), 0)
    assert by_user(split, split.test) == {"v": (list("abcde"), list("fghij")), "w": ([], ["a"])}
    assert set(split.validation.user_ids) <= {"u", "v"}


def test_fixed_events_need_a_data_set_that_was_read_with_them():
    for data in (dataset(LOG), dataset(LOG, test_events="0:5")):
        with pytest.raises(ConfigError, match="expected 0:4, and the data set was read with"):
            make_split(data, SplitConfig(kind="fixed", test_events="0:4"), 0)
    with pytest.raises(ConfigError, match=r"expected rows .* was read with no test events"):
        make_split(dataset(LOG), SplitConfig(kind="fixed", validation_share=0.3), 0)
    assert (
        len(make_split(dataset(LOG, test_events="0:5"), SplitConfig(kind="fixed", validation_share=0.3), 0).test) == 1
    )


def test_check_finds_events_that_change_places_with_the_given_ones():
    split = leaking("fixed")
    names = split.dataset.events.test_event.to_numpy()
    other = replace(split.dataset, events=split.dataset.events.assign(test_event=~names))
    with pytest.raises(DataError, match=r"a test target is not among the events of split\.test_events"):
        replace(split, dataset=other).check()
    with pytest.raises(DataError, match=r"an event of split\.test_events is in train or validation"):
        replace(split, dataset=other, test=split.test.take(np.arange(0))).check()


CONTEXTS = {"u": list("abcdefgh"), "v": list("abcdefgh")}
DEVICES = ["tv", "pc", "tv", "pc", "tv", "pc", "", "tv"] * 2


def test_targets_of_different_requests_are_asked_for_apart():
    events = 16
    data = dataset(CONTEXTS, test_events="3:12", device=DEVICES, temperature=[20.5, *[""] * (events - 1)])
    split = make_split(data, SplitConfig(kind="fixed", validation_share=0.3), 0)
    # The query whose target came first is the first one of its user.
    asked = [(user, ids(split, row)) for user, row in zip(split.test.user_ids, split.test.targets, strict=True)]
    assert asked == [("u", ["d", "f"]), ("u", ["e", "h"]), ("u", ["g"]), ("v", ["a", "c"]), ("v", ["b", "d"])]
    devices = split.schema["request.device"].encode(["pc", "tv", "", "tv", "pc"])
    assert split.test.fields["request.device"].tolist() == devices.tolist()
    histories = [ids(split, row) for row in split.test.history]
    assert histories == [list("abc")] * 3 + [list("efgh")] * 2
    seconds = split.test.fields["request.timestamp_s"]
    assert seconds.tolist() == [3, 4, 6, 8, 9]  # of the first target: times alone separate nothing
    plain = make_split(dataset(CONTEXTS, test_events="3:12"), SplitConfig(kind="fixed", validation_share=0.3), 0)
    assert by_user(plain, plain.test) == {"u": (list("abc"), list("defgh")), "v": (list("efgh"), list("abcd"))}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_asks_for_the_targets_of_a_context_alone(kind):
    """The slow way: the device of each target is looked up in the log."""
    rng = np.random.default_rng(3)
    log = {str(user): [str(item) for item in rng.permutation(40)[:12]] for user in range(30)}
    columns = {"device": rng.choice(["tv", "pc", ""], 360), "timestamp": 1 + rng.permutation(360)}
    data = dataset(log, test_events="300:", **columns)
    split = make_split(data, SplitConfig(kind=kind, validation_share=0.2, test_share=0.2), 0)
    device = data.events.set_index([data.events.user_id, data.events[ITEM_INDEX]]).device
    for queries in (split.validation, split.test):
        codes = queries.fields["request.device"]
        assert len(set(zip(queries.user_ids, codes, strict=True))) == len(queries)
        for user, code, targets in zip(queries.user_ids, codes, queries.targets, strict=True):
            met = {device[user, item] for item in targets}
            assert split.schema["request.device"].encode(list(met)).tolist() == [code]


def test_check_finds_queries_of_one_user_that_do_not_go_together():
    data = dataset(CONTEXTS, test_events="3:12", device=DEVICES)
    split = make_split(data, SplitConfig(kind="fixed", validation_share=0.3), 0)
    rows = [row[:-1] if number == 1 else row for number, row in enumerate(map(list, split.test.history))]
    history = Ragged.from_rows(rows, np.int64)
    fields = {
        key: Ragged(np.zeros(len(history.values), field.values.dtype), history.offsets)
        if isinstance(field, Ragged)
        else field
        for key, field in split.test.fields.items()
    }
    shorter = replace(split.test, history=history, exclude=history, fields=fields)
    with pytest.raises(DataError, match="two queries of user 'u' have different histories"):
        replace(split, test=shorter).check()
    codes = split.test.fields["request.device"].copy()
    codes[1] = codes[0]
    alike = replace(split.test, fields={**split.test.fields, "request.device": codes})
    with pytest.raises(DataError, match="two queries of user 'u' have the same fields of the request"):
        replace(split, test=alike).check()


def test_where_reuse_is_the_task_nothing_is_excluded():
    again = {"u": list("abacabad"), "v": list("bbbbcbba")}
    split = make_split(dataset(again, repeats="all"), SplitConfig(), 0)
    assert split.dataset.repeats and len(split.test.history.values) == 14
    assert len(split.test.exclude.values) == len(split.train_queries().exclude.values) == 0
    assert len(split.test.exclude) == 2
    history = split.test.history
    with pytest.raises(DataError, match="a query excludes an item, though re-use is the task"):
        replace(split, test=replace(split.test, exclude=history)).check()
    once = make_split(dataset(again, repeats="last"), SplitConfig(), 0)
    assert not once.dataset.repeats and once.test.exclude is once.test.history


def test_the_last_choices_are_held_out_whatever_follows_them():
    kinds = [
        "view",
        "dislike",
        "purchase",
        "view",
        "skip",
        "view",
        "view",
        "impression",
        "skip",
        "view",
        "purchase",
        "view",
    ]
    rows = {"u": ["a", "b", "c", "d", "e", "f", "g"], "v": ["b", "a", "c", "d"], "w": ["a"]}
    split = make_split(dataset(rows, kind=kinds), SplitConfig(kind="leave_last_out"), seed=0)
    assert by_user(split, split.test) == {"u": (["a", "b", "c", "d", "e", "f"], ["g"])}
    # v has two choices, so v is for training; what came after u's target of the validation is not.
    assert by_user(split, split.validation) == {"u": (["a", "b", "c", "d", "e"], ["f"])}
    assert split.test.weights.values.tolist() == [0.5, -0.75, 1.0, 0.5, -0.25, 0.5]
    assert ids(split, split.test.choices[0]) == ["a", "c", "d", "f"]
    by_id = dict(zip(split.dataset.items.item_id, split.train_counts, strict=True))
    assert by_id == {"a": 2, "b": 0, "c": 2, "d": 2, "e": 0, "f": 0, "g": 0}


def test_what_follows_the_last_choice_is_in_no_history_and_counted():
    kinds = ["view", "view", "view", "skip", "view", "dislike"]
    split = make_split(
        dataset({"u": ["a", "b", "c", "d", "e", "f"]}, kind=kinds), SplitConfig(kind="leave_last_out"), 0
    )
    assert by_user(split, split.validation) == {"u": (["a", "b"], ["c"])}
    assert by_user(split, split.test) == {"u": (["a", "b", "c", "d"], ["e"])}
    (finding,) = split.findings
    assert finding.count == 2 and "not used as targets" in finding.what
    assert finding.example == "user 'u', item 'd', 'skip'"


@pytest.mark.parametrize("kind", ["leave_random_out", "cold_users", "random"])
def test_only_choices_are_targets(kind):
    rng = np.random.default_rng(3)
    rows = {f"u{user}": [f"i{item}" for item in rng.permutation(20)[:12]] for user in range(30)}
    kinds = rng.choice(["view", "dislike", "impression"], 360, p=[0.4, 0.3, 0.3])
    split = make_split(dataset(rows, kind=list(kinds)), SplitConfig(kind=kind), seed=0)
    of_pair = dict(zip(zip(split.dataset.events.user_id, split.dataset.events.item_id, strict=True),
                       split.dataset.events.kind, strict=True))  # fmt: skip
    for queries in (split.validation, split.test):
        assert len(queries) > 2
        asked = [
            (user, item)
            for user, row in zip(queries.user_ids, queries.targets, strict=True)
            for item in ids(split, row)
        ]
        assert {of_pair[pair] for pair in asked} == {"view"}


def test_what_was_only_shown_may_be_recommended():
    kinds = ["view", "impression", "dislike", "view", "view"]
    data = dataset({"u": ["a", "b", "c", "d", "e"]}, kind=kinds)
    split = make_split(data, SplitConfig(kind="leave_last_out"), seed=0)
    assert ids(split, split.test.history[0]) == ["a", "b", "c", "d"]
    assert ids(split, split.test.exclude[0]) == ["a", "c", "d"]
    with pytest.raises(DataError, match="excludes something else than its history"):
        replace(split, test=replace(split.test, exclude=split.test.history)).check()


def test_names_that_say_nothing_give_no_weights():
    split = make_split(dataset({"u": ["a", "b", "c", "d"]}, kind=["x"] * 4), SplitConfig(kind="leave_last_out"), seed=0)
    assert split.test.weights is None and not split.findings


# Events that an earlier model was trained on --------------------------------------------------------------------------


def test_what_an_earlier_model_was_trained_on_is_held_out_no_more():
    data = dataset({"u": ["a", "b", "c", "d"], "v": ["b", "a", "c"]})
    rows = {pair: row for row, pair in enumerate(zip(data.events.user_id, data.events.item_id, strict=True))}
    trained = np.array([rows["u", "a"], rows["v", "b"], rows["v", "a"]])  # of v, one event is new
    split = make_split(data, SplitConfig(kind="leave_last_out"), seed=0, trained=trained)
    assert by_user(split, split.validation) == {"u": (["a", "b"], ["c"])}
    assert by_user(split, split.test) == {"u": (["a", "b", "c"], ["d"]), "v": (["b", "a"], ["c"])}
    assert split.trained_before == 1
    assert "1 kept: to be held out, but an earlier model was trained on them" in str(split.findings[-1])
    # No target comes before a training event of its user.
    split = make_split(data, SplitConfig(kind="leave_last_out"), seed=0, trained=np.array([rows["v", "c"]]))
    assert by_user(split, split.test) == {"u": (["a", "b", "c"], ["d"])} and split.trained_before == 2


@pytest.mark.parametrize("kind", ["random", "leave_random_out"])
def test_no_event_is_drawn_that_an_earlier_model_was_trained_on(kind):
    data = random_dataset()
    trained = np.arange(50)
    split = make_split(data, SplitConfig(kind=kind), seed=2, trained=trained)
    train = set(zip(split.train[USER_INDEX], split.train[ITEM_INDEX], strict=True))
    events = data.events.iloc[trained]
    assert split.trained_before > 0
    assert set(zip(events[USER_INDEX], events[ITEM_INDEX], strict=True)) <= train
