"""Planted columns: what is found, what is left out, and why."""

import json
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import chi2_contingency

from tfllmrec.config import parse_config
from tfllmrec.data import read_dataset
from tfllmrec.data.features import feature_report
from tfllmrec.errors import ConfigError

USERS, ITEMS = 120, 40


def planted(tmp_path, *overrides):
    """Young users take items of category 0 by day, old ones of category 1 by night; some columns mean nothing."""
    generator = np.random.default_rng(5)
    age = np.where(np.arange(USERS) % 2, 20, 60) + generator.integers(0, 9, USERS)
    events, hours = [], generator.integers(0, 2, (USERS, 20))
    for user in range(USERS):
        for place in range(20):
            kind = age[user] > 40 if hours[user, place] else user % 3 == 0
            item = 2 * min(int(generator.exponential(6)), ITEMS // 2 - 1) + int(kind)
            at = 86_400 * (user * 20 + place) + (43_200 if kind else 3_600)
            events.append((user, item, at, "tv" if kind else "phone", generator.choice(list("xyz"))))
    events = pd.DataFrame(events, columns=["user_id", "item_id", "timestamp", "device", "weather"])
    events["platform"] = events.device.map({"tv": "big", "phone": "small"})
    items = pd.DataFrame({"item_id": range(ITEMS)})
    items["title"] = [f"item {i}" for i in range(ITEMS)]
    items["categories"] = np.where(items.item_id % 2, "night", "day")
    items["price"] = np.exp(generator.normal(0, 0.1, ITEMS)) + np.where(items.item_id == 7, 1e6, 0)
    items["shape"] = "round"
    items["note"] = np.where(items.item_id == 3, "rare", "")
    looks = generator.normal(size=(ITEMS, 2)) @ generator.normal(size=(2, 6))
    items["look"] = [str(np.round(row, 4).tolist()) for row in looks]
    users = pd.DataFrame({"user_id": range(USERS), "age": age + 0.5, "shoe": generator.integers(0, 3, USERS)})
    for name, table in (("events", events), ("items", items), ("users", users)):
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    files = {name: str(tmp_path / f"{name}.csv") for name in ("events", "items", "users")}
    return read_dataset(parse_config({"data": files | {"repeats": "all"}}, list(overrides)).data, tmp_path)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return feature_report(planted(tmp_path_factory.mktemp("planted")))


def by_key(report):
    return {field.key: field for field in report.fields}


def test_what_tells_of_the_choice_is_told_from_what_does_not(report):
    fields = by_key(report)
    assert report.label == "category" and report.sampled == report.events == USERS * 20
    tells = {key: fields[key].tells[0] for key in ("request.device", "user.age", "request.weather", "user.shoe")}
    assert tells["request.device"].information == pytest.approx(1) and tells["request.device"].p == 0.01
    assert 0.05 < tells["user.age"].information < 0.9 and tells["user.age"].p == 0.01
    for key in ("request.weather", "user.shoe"):
        assert abs(tells[key].information) < 0.02 and tells[key].p > 0.05
        assert fields[key].drop == "tells nothing beyond chance"


def of_tables(tmp_path, **tables):
    """The report on tables that are written as CSV files; no setting but their paths and ``fields``."""
    fields = tables.pop("fields", {})
    for name, table in tables.items():
        pd.DataFrame(table).to_csv(tmp_path / f"{name}.csv", index=False)
    files = {name: str(tmp_path / f"{name}.csv") for name in tables}
    config = parse_config({"data": files | {"repeats": "all", "fields": fields}})
    return feature_report(read_dataset(config.data, tmp_path))


def test_columns_of_users_are_compared_with_other_assignments_to_users(tmp_path):
    """Two hundred events each: a test that takes them for independent finds the size of shoes highly significant."""
    generator = np.random.default_rng(1)
    shoe, taste = generator.integers(0, 3, 30), generator.integers(0, 2, 30)
    assert chi2_contingency(pd.crosstab(np.repeat(shoe, 200), np.repeat(taste, 200))).pvalue < 0.01
    events = {"user": np.repeat(np.arange(30), 200), "item": np.repeat(taste, 200)}
    found = of_tables(tmp_path, events=events, users={"user": np.arange(30), "shoe": shoe})
    assert by_key(found)["user.shoe"].tells[0].p > 0.05


def columns(n=60, **of_items):
    """Events of 40 users, each of whom takes every fourth of ``n`` items, and columns of the items."""
    users = np.repeat(np.arange(40), 15)
    events = {"user": users, "item": 4 * np.random.default_rng(3).integers(0, n // 4, 600) + users % 4}
    return {"events": events, "items": {"item": np.arange(n), **of_items}}


def test_only_fields_that_follow_from_each_other_say_the_same(tmp_path):
    n = np.arange(60)
    found = by_key(of_tables(tmp_path, **columns(group=[f"g{i % 4}" for i in n], subgroup=[f"s{i % 20}" for i in n])))
    assert not any("says the same" in found[f"item.{name}"].drop for name in ("group", "subgroup"))
    rare = ["a" if i % 30 == 0 else "b" if i % 30 == 1 else "" for i in n]
    found = by_key(of_tables(tmp_path, **columns(kind=[f"k{i % 3}" for i in n], rare=rare)))
    assert not any("says the same" in found[f"item.{name}"].drop for name in ("kind", "rare"))


def test_of_fields_that_say_the_same_one_stays(tmp_path):
    n = np.arange(60)
    found = by_key(of_tables(tmp_path, **columns(a=n % 4, b=n % 4 + 10, c=n % 4 + 20)))
    assert [found[f"item.{name}"].drop.startswith("says the same") for name in "abc"] == [False, True, True]
    sparse = ["x" if i == 0 else "" for i in n]
    found = by_key(of_tables(tmp_path, **columns(kind=["x" if i == 0 else "y" for i in n], rare=sparse)))
    assert found["item.rare"].drop.startswith("is missing") and "says the same" not in found["item.kind"].drop


def test_a_flag_is_more_than_one_value(tmp_path):
    found = by_key(of_tables(tmp_path, **columns(sale=["sale" if i % 3 else "" for i in range(60)], shape="round")))
    assert found["item.shape"].drop == "has one value only" and "one value" not in found["item.sale"].drop


def test_ratings_and_kinds_of_events_are_never_left_out(tmp_path):
    tables = columns()
    stars = np.random.default_rng(4).integers(1, 6, 600)
    tables["events"] |= {"rating": stars, "a_copy": [f"s{star}" for star in stars], "kind": "view"}
    found = by_key(of_tables(tmp_path, **tables))
    assert not found["event.rating"].drop and not found["event.kind"].drop
    assert found["event.a_copy"].drop == "says the same as event.rating"


def test_the_suggested_setting_keeps_others_and_odd_names(tmp_path):
    tables = columns(**{"o'clock: #1, odd": "same", "size": [i % 4 for i in range(60)]})
    asked = {"item.size": {"kind": "number"}, "item.o'clock: #1, odd": {"kind": "category"}}
    found = of_tables(tmp_path, fields=asked, **tables)
    files = {"events": str(tmp_path / "events.csv"), "items": str(tmp_path / "items.csv"), "repeats": "all"}
    again = read_dataset(parse_config({"data": files}, [found.suggestion]).data, tmp_path).schema
    assert "item.o'clock: #1, odd" not in {field.key for field in again} and again["item.size"].kind == "number"


def test_a_wide_vector_has_a_setting_that_reads_its_components(tmp_path):
    rng = np.random.default_rng(0)
    looks = rng.normal(size=(400, 3)) @ rng.normal(size=(3, 300))
    noise = rng.normal(size=(400, 300))
    cells = {name: [str(row.tolist()) for row in rows.round(3)] for name, rows in (("look", looks), ("noise", noise))}
    tables = columns(400, **cells, narrow=[str(row[:4].tolist()) for row in looks.round(3)])
    found = of_tables(tmp_path, fields={"look": {"kind": "vector"}}, **tables)
    assert by_key(found)["item.look"].width == 300 and by_key(found)["item.look"].components == (3, 3)
    assert json.loads(found.suggestion.removeprefix("data.fields="))["item.look"] == {"kind": "vector", "components": 3}
    assert found.advice.endswith("read wide vectors by the components with 99% of their variance")
    files = {name: str(tmp_path / f"{name}.csv") for name in ("events", "items")}
    schema = read_dataset(parse_config({"data": files}, [found.suggestion]).data, tmp_path).schema
    assert (schema["item.look"].width, schema["item.noise"].width, schema["item.narrow"].width) == (3, 300, 4)


@pytest.mark.parametrize("name", ["platform", "event.platform", "request.platform"])
def test_the_suggested_setting_holds_whatever_the_names_in_others(report, tmp_path, name):
    again = replace(report, asked={name: {"default": "tv"}, "request.device": {"default": "tv"}})
    keys = {field.key for field in planted(tmp_path, again.suggestion).schema}
    assert "request.platform" not in keys and "request.device" in keys


def test_times_of_events_are_read_by_hour_and_by_weekday(report):
    tells = {(each.target, each.part): each for each in by_key(report)["request.timestamp_s"].tells}
    by_hour = tells["item", "by hour"]
    assert by_hour.information == pytest.approx(1) and by_hour.p == 0.01 and by_hour.worded() == "1.0000 by hour"
    assert tells["item", "by weekday"].information < 0.05
    # The hour says the same as the device, but the weekday might tell something else.
    assert not by_key(report)["request.timestamp_s"].drop


def test_what_may_be_left_out_and_the_setting_that_does_it(report, tmp_path):
    fields = by_key(report)
    assert fields["item.shape"].drop == "has one value only"
    assert fields["item.note"].drop == "is missing in 97.5% of the rows"
    assert fields["request.platform"].drop == "says the same as request.device"
    assert not fields["request.device"].drop and not fields["item.categories"].drop
    without = planted(tmp_path, report.suggestion).schema
    assert {field.key for field in without.with_values} == {field.key for field in report.fields if not field.drop}


def test_outliers_missing_values_and_components(report):
    fields = by_key(report)
    assert fields["item.price"].outliers == pytest.approx(1 / ITEMS) and fields["user.age"].outliers == 0
    assert fields["item.look"].components == (2, 2) and fields["item.look"].kind == "vector"
    assert fields["item.title"].tells == () and fields["item.title"].distinct == ITEMS


def test_pairs_that_go_together(report):
    closest = report.pairs[0]
    assert {closest.first, closest.second} <= {"request.device", "request.platform", "request.timestamp_s by hour"}
    assert closest.association == pytest.approx(1) and closest.correlation is None
    assert not any("weather" in pair.first + pair.second for pair in report.pairs)


@pytest.mark.filterwarnings("error")
def test_a_number_that_never_changes_has_no_correlation(tmp_path):
    dataset = planted(tmp_path)
    same = replace(dataset, items=dataset.items.assign(latitude="27.9", price2=dataset.items.price))
    correlations = {(pair.first, pair.second): pair.correlation for pair in feature_report(same).pairs}
    assert correlations["item.price", "item.price2"] == pytest.approx(1)
    assert not any("item.latitude" in pair for pair in correlations)


def test_a_sample_keeps_the_share_of_each_popularity(tmp_path):
    dataset = planted(tmp_path)
    sampled = feature_report(dataset, at_most=400)
    assert (sampled.sampled, sampled.events) == (400, USERS * 20)
    assert by_key(sampled)["request.device"].tells[0].information == pytest.approx(1)
    from tfllmrec.data.features import _sample

    rows = _sample(dataset, 400, 1)
    counts = dataset.events.item_index.value_counts()
    share = [(counts[part.item_index] > 100).mean() for part in (dataset.events, dataset.events.iloc[rows])]
    assert share[0] == pytest.approx(share[1], abs=0.02) and not np.array_equal(rows, _sample(dataset, 400, 2))


def test_ratings_are_a_target(tmp_path):
    generator = np.random.default_rng(2)
    rows = [(u, i, 5 if (u + i) % 2 else 1, "tv" if (u + i) % 2 else "pc") for u in range(50) for i in range(20)]
    pd.DataFrame(rows, columns=["user", "item", "rating", "device"]).to_csv(tmp_path / "events.csv", index=False)
    users = pd.DataFrame({"user": range(50), "shoe": generator.integers(0, 3, 50)})
    users.to_csv(tmp_path / "users.csv", index=False)
    files = {"events": str(tmp_path / "events.csv"), "users": str(tmp_path / "users.csv")}
    found = by_key(feature_report(read_dataset(parse_config({"data": files}).data, tmp_path)))
    tells = {each.target: each.information for each in found["request.device"].tells}
    assert tells["rating"] == pytest.approx(1)
    assert {each.target for each in found["event.rating"].tells} == {"item"} and not found["event.rating"].drop


def test_without_scikit_learn_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ConfigError, match=r"needs scikit-learn .*: pip install 'tfllmrec\[features\]'"):
        feature_report(planted(tmp_path))
