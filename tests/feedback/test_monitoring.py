"""Alarms: a planted change raises its own and no other, days without a change raise none."""

import json
import re
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tfllmrec.errors import DataError
from tfllmrec.feedback import monitoring as module
from tfllmrec.feedback.event_log import EventLog, Exposure, RequestRecord
from tfllmrec.feedback.monitoring import (
    ALPHA,
    PSI_ALARM,
    Trial,
    change_lines,
    compare,
    drift_rows,
    exposure_rows,
    figure_rows,
    words_of,
)

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import monitoring as simulation

SMALL = simulation.Service(users=250)


@pytest.fixture(scope="module")
def day():
    return simulation.day_of(SMALL, np.random.default_rng(0), 0)


@pytest.mark.parametrize("name", simulation.CHANGES)
def test_a_planted_change_has_its_alarm_and_no_other(name, day):
    changed, own = simulation.CHANGES[name]
    if name in ("clicks fall by 30 %", "purchases fall by half"):
        changed = {key: value / 2 for key, value in changed.items()}  # 250 users do not show less
    now = simulation.day_of(replace(SMALL, **changed), np.random.default_rng(1), 1)
    about = [alarm.about for alarm in simulation.report_of(day, now).alarms]
    assert about and all(each.startswith(own) for each in about), about


def test_days_without_a_change_have_no_alarm():
    """benchmarks/monitoring.py does the same for 200 days."""
    assert simulation.without_change(6, seed=5, service=replace(SMALL, users=100)) == [[]] * 6


@pytest.mark.parametrize("name", simulation.ACTIVITY)
def test_users_who_come_more_or_less_often_raise_no_alarm(name):
    service = simulation.Service(users=150)
    assert simulation.with_activity(name, 1, seed=8, service=service) == [[]]


def test_the_advice_on_exposure_depends_on_the_direction():
    services = [simulation.Service(users=150, steepness=steepness) for steepness in (0.9, 1.8)]
    days = [simulation.day_of(service, np.random.default_rng(n), n) for n, service in enumerate(services)]
    for before, now, said, other in ((*days, "collapsed", "more items"), (*days[::-1], "more items", "collapsed")):
        found = [a.message for a in simulation.report_of(before, now).alarms if a.about in ("coverage", "gini")]
        assert len(found) == 2 and all(said in each and other not in each for each in found)


def test_a_change_of_few_users_is_no_alarm(day):
    few = simulation.Service(users=25, phone=0.95)
    now = simulation.day_of(few, np.random.default_rng(2), 1)
    report = simulation.report_of(day, now)
    (device,) = [drift for drift in report.drifts if drift.name == "field device"]
    assert device.psi > PSI_ALARM and device.p is None and report.alarms == []


def test_a_change_that_does_not_matter_is_no_alarm():
    rng = np.random.default_rng(3)
    before = simulation.day_of(simulation.Service(users=1000), rng, 0)
    now = simulation.day_of(simulation.Service(users=1000, phone=0.7), rng, 1)
    report = simulation.report_of(before, now)
    (device,) = [drift for drift in report.drifts if drift.name == "field device"]
    assert device.p_adjusted < ALPHA and device.size == "small" and report.alarms == []


def test_a_change_for_the_better_is_no_alarm(day):
    now = simulation.day_of(replace(SMALL, clicks=0.2, unknown=0.001), np.random.default_rng(4), 1)
    report = simulation.report_of(day, now)
    ctr = next(figure for figure in report.figures if (figure.measure, figure.group) == ("ctr", "all"))
    assert ctr.p_adjusted < ALPHA and ctr.change > 0.5
    assert not [alarm for alarm in report.alarms if "popularity" not in alarm.about]


def test_figures_are_those_of_the_tables(day):
    lists = day.lists[~day.lists["searched"]]
    report = compare(day, None, items=simulation.CATALOGUE)
    found = {(figure.measure, figure.group): figure for figure in report.figures}
    expected = {
        ("ctr", "all"): day.shown["used"].mean(),
        ("ctr", "stratum cold"): day.shown.loc[day.shown["stratum"] == "cold", "used"].mean(),
        ("conversion", "all"): day.shown["bought"].mean(),
        ("dwell_s", "all"): day.shown["dwell_s"].mean(),
        ("bounce", "all"): 1 - lists.loc[lists["listed"] > 0, "used"].mean(),
        ("unknown_ids", "all"): lists["unknown_ids"].sum() / lists["history_ids"].sum(),
        ("empty_lists", "all"): (lists["listed"] == 0).mean(),
        ("no_history", "all"): (lists["history_ids"] == 0).mean(),
    }
    for key, value in expected.items():
        assert found[key].value == pytest.approx(value) and found[key].low <= value <= found[key].high, key
    assert not [key for key in found if key[1].startswith(("scene", "version", "searches"))]  # one version: as all
    searches = compare(replace(day, found=day.shown.tail(50)), None).figures
    (ctr,) = [each for each in searches if (each.measure, each.group) == ("ctr", "searches")]
    assert ctr.count == 50 and ctr.value == pytest.approx(day.shown["used"].tail(50).mean())
    assert {each.measure for each in searches if each.group == "searches"} <= {"ctr", "conversion", "dwell_s"}
    assert report.alarms == [] and "nothing to compare" in report.headline and report.drifts == []


def test_groups_by_version_and_scene(day):
    table = day.lists.assign(**{"context.scene": np.where(np.arange(len(day.lists)) % 3, "feed", "cart")})
    table["version"] = np.where(np.arange(len(table)) % 2, "shop/3", "shop/4")
    before = replace(day, lists=table)
    slow = table["version"].to_numpy()[day.shown["list"]] == "shop/4"
    now = replace(before, shown=day.shown.assign(used=day.shown["used"] & (~slow | (np.arange(len(slow)) % 3 == 0))))
    report = compare(now, before, scene="scene")
    by_group = {figure.group: figure for figure in report.figures if figure.measure == "ctr"}
    assert set(by_group) == {
        "all",
        *(f"stratum {s}" for s in ("head", "tail", "cold")),
        "version shop/3",
        "version shop/4",
        "scene feed",
        "scene cart",
    }
    assert by_group["version shop/4"].value < by_group["version shop/3"].value / 2
    assert [g for g, figure in by_group.items() if g.startswith("version") and figure.alarm] == ["version shop/4"]
    assert by_group["version shop/4"].change < -0.5 and by_group["version shop/3"].change == 0
    assert compare(before, before, scene="scene").alarms == []


def with_canary(day, users, clicked):
    """The day, in whose second half some users get version 4; returns it with what it says of the canary."""
    half, lists = day.after_s + 43_200, day.lists
    canary = lists["user"].isin(users) & (lists["time_s"] > half)
    both = replace(day, lists=lists.assign(version=np.where(canary, "shop/4", "shop/3")))
    lost = canary.to_numpy()[both.shown["list"]] & (np.random.default_rng(0).random(len(both.shown)) > clicked)
    shown = both.shown.assign(used=both.shown["used"] & ~lost)
    used = np.bincount(shown["list"], shown["used"], minlength=len(lists)) > 0
    return replace(both, shown=shown, lists=both.lists.assign(used=used)), Trial("shop/4", "shop/3", half)


@pytest.mark.parametrize("reference", [False, True])
def test_a_canary_is_compared_with_the_stable_version_of_the_same_time(day, reference):
    before = day if reference else None
    users = day.lists["user"].drop_duplicates()[::4]
    now, trial = with_canary(day, users, clicked=0.0)
    assert compare(now, before, items=simulation.CATALOGUE).alarms == []  # nobody says which is the canary
    report = compare(now, before, items=simulation.CATALOGUE, trial=trial)
    assert {alarm.about for alarm in report.alarms} == {"ctr (canary shop/4)", "bounce (canary shop/4)"}
    assert "is 0.00%, and " in report.alarms[0].message and "tfllmrec rollback" in report.alarms[0].message
    assert report.state == ("compared" if reference else "first") and report.headline.endswith(": 2 alarms.")
    (ctr,) = [each for each in report.figures if (each.measure, each.group) == ("ctr", "canary shop/4")]
    stable = now.lists["version"].to_numpy()[now.shown["list"]] == "shop/3"
    assert ctr.reference_count == pytest.approx((stable & (now.shown["time_s"] > trial.since_s)).sum(), rel=0.02)
    good = compare(*with_canary(day, users, clicked=1.0)[:1], before, items=simulation.CATALOGUE, trial=trial)
    assert good.alarms == [] and any(each.group == "canary shop/4" and each.p for each in good.figures)


def test_a_canary_that_few_users_got_waits(day):
    now, trial = with_canary(day, day.lists["user"].drop_duplicates()[:5], clicked=0.0)
    report = compare(now, day, trial=trial)
    assert (report.state, report.alarms) == ("waiting", [])
    assert report.headline.endswith("no alarm; the canary cannot be judged yet.")
    assert any(note.startswith("the canary shop/4 is not compared yet: expected 30 users") for note in report.notes)
    untried = compare(replace(day, lists=day.lists.assign(version="shop/3")), None, trial=trial)
    assert untried.state == "waiting"
    alone = compare(replace(day, lists=day.lists.assign(version="shop/4")), None, trial=trial)  # it got all requests
    assert alone.state == "waiting"


def test_scores_of_different_versions_are_not_compared(day):
    other = replace(day, lists=day.lists.assign(version="shop/4"))
    report = compare(other, day)
    assert "best score" not in [drift.name for drift in report.drifts]
    assert "scores are not compared: no version answered in both periods" in report.notes


def test_rows_lines_and_json_say_the_same(day):
    now = simulation.day_of(replace(SMALL, phone=0.9), np.random.default_rng(6), 1)
    report = simulation.report_of(day, now)
    (alarm,) = report.alarms
    assert alarm.about == "field device" and "population stability index" in alarm.message and "To do:" in alarm.message
    plain = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert plain["alarms"] == [{"about": alarm.about, "message": alarm.message}]
    for header, rows in (figure_rows(report), drift_rows(report), exposure_rows(report)):
        assert rows and all(len(row) == len(header) for row in rows)
    assert len(plain["figures"]) == len(figure_rows(report)[1])
    assert report.headline.endswith("compared with the day before: one alarm.")
    assert isinstance(change_lines(report), list)
    assert [words_of(s) for s in (86400, 604800, 3600, 7200, 1800, 90)] == [
        "24 hours", "7 days", "hour", "2 hours", "30 minutes", "90 seconds",
    ]  # fmt: skip


def test_without_lists_there_is_an_error(day):
    empty = replace(day, lists=day.lists.head(0), shown=day.shown.head(0))
    with pytest.raises(DataError, match=r"No lists from .*: expected some\. Take a longer period"):
        compare(empty, day)


def test_a_fault_of_some_hours_is_dated(day):
    river = pytest.importorskip("river")
    assert river
    lists, shown = day.lists.sort_values("time_s").reset_index(drop=True), day.shown.copy()
    begun = day.after_s + 8 * 3600
    shown["used"] &= shown["time_s"] < begun
    shown = shown.assign(list=lists.set_index("request_id").index.get_indexer(shown["request_id"]))
    now = replace(day, shown=shown, lists=lists)
    report = compare(now, replace(day, after_s=day.after_s - 86400, upto_s=day.after_s))
    (ctr,) = [figure for figure in report.figures if (figure.measure, figure.group) == ("ctr", "all")]
    assert ctr.alarm and abs(ctr.since_s - begun) < 1800
    assert any(
        f"since about {pd.Timestamp(ctr.since_s, unit='s'):%Y-%m-%d %H:%M} UTC" in a.message for a in report.alarms
    )


def test_a_field_is_a_number_in_both_periods_or_in_none(day):
    rng = np.random.default_rng(7)

    def with_hours(hours):
        lists = day.lists.assign(**{"context.hour": rng.choice(hours, len(day.lists)).astype(int).astype(str)})
        return replace(day, lists=lists)

    whole, part = with_hours(range(24)), with_hours(range(8))
    (hour,) = [drift for drift in compare(part, whole).drifts if drift.name == "field hour"]
    assert hour.labels[0].startswith("up to") and sum(hour.after[:4]) == pytest.approx(1, abs=0.1) and hour.alarm
    (hour,) = [drift for drift in compare(part, with_hours(range(8))).drifts if drift.name == "field hour"]
    assert sorted(hour.labels) == [str(n) for n in range(8)] and not hour.alarm


def test_a_field_that_is_no_longer_sent_is_an_alarm(day):
    now = simulation.day_of(SMALL, np.random.default_rng(9), 1)
    mute = replace(now, lists=now.lists.drop(columns="context.device"))
    report = simulation.report_of(day, mute)
    (alarm,) = report.alarms
    assert alarm.about == "field device" and "none: 0.0% -> 100.0%" in alarm.message
    assert "no request of the period has the field device" in report.notes
    new = compare(day, replace(mute, after_s=0, upto_s=1))
    assert "no request of the reference has the field device" in new.notes


def test_without_river_a_note_says_what_is_missing(day, monkeypatch):
    monkeypatch.setitem(sys.modules, "river.drift", None)
    report = compare(day, None)
    assert report.changes == {} and any("tfllmrec[monitor]" in note for note in report.notes)


@pytest.mark.parametrize(
    ("gap", "state", "shares"),
    [
        ((0, 0), "compared", None),
        ((3, 10), "compared", ("100%", "75%")),
        ((3, 24), "gap", ("100%", "17%")),
        ((-1, 24), "gap", ("100%", "0%")),
        ((27, 47), "gap", ("21%", "100%")),
    ],
)
def test_a_gap_in_a_period_is_noticed(tmp_path, gap, state, shares):
    """Two days like each other, with clicks in the first hours, and hours without lists."""
    start, hours = 1.79e9, [hour for hour in range(-5, 48) if not gap[0] <= hour < gap[1]]
    shown, events = [], []
    for n, at in enumerate(start + 3600 * hour + 90 * part for hour in hours for part in range(1, 41)):
        of_list = f"r{n}", at, f"u{n % 40}"
        shown.append(Exposure(*of_list, "m", 1, "recommend", "i", 0))
        if (at - start) % 86400 <= 3 * 3600:
            events.append({"user_id": of_list[2], "item_id": "i", "request_id": of_list[0], "timestamp_s": at + 1})
    with EventLog(tmp_path / "log", clock=lambda: start + 49 * 3600) as log:
        log.write([log.check(events)], shown)
    report = module.monitor(tmp_path / "log", within_s=60, until_s=start + 48 * 3600 + 60)
    assert (report.state, report.alarms) == (state, [])
    assert [note for note in report.notes if "hours" in note] == (
        [] if shares is None
        else [f"{shares[0]} of the hours of the period have lists, and {shares[1]} of the 24 hours before"]
    )  # fmt: skip
    assert report.headline.endswith("no alarm." if state == "compared" else "; nothing to compare them with.")


def test_a_log_is_compared_with_a_period_and_with_another_log(tmp_path):
    def folder(name, start, days, clicks):
        rng = np.random.default_rng(days)
        lists, records, events = [], [], []
        for n, at in enumerate(np.sort(rng.uniform(0, days * 86400, 300 * days)).tolist()):
            items = [Exposure(f"r{n}", start + at, f"u{n % 90}", "m", 1, "recommend", f"i{k}", k) for k in range(5)]
            lists += items
            records.append(RequestRecord(f"r{n}", start + at, f"u{n % 90}", "m", 1, "recommend", 5, 3))
            events += [
                {"user_id": each.user_id, "item_id": each.item_id, "request_id": f"r{n}", "timestamp_s": start + at + 9}
                for each in items
                if rng.random() < clicks[int(at // 86400)]
            ]
        with EventLog(tmp_path / name, clock=lambda: start + days * 86400 + 9000) as log:
            log.write([log.check(events)], lists, records)
        return tmp_path / name

    log = folder("log", 1.79e9, 3, [0.4, 0.4, 0.2])
    then = 1.79e9 + 3 * 86400 + 9000
    monitor = partial(module.monitor, until_s=then)
    found = monitor(log, since_s=80_000)
    assert found.reference == "the 80000 seconds before" and {alarm.about for alarm in found.alarms} == {
        "ctr (all)",
        "bounce (all)",
    }
    assert found.lists[0] == pytest.approx(300 * 80 / 86.4, rel=0.1)
    assert {alarm.about for alarm in monitor(log, 150_000.0, since_s=80_000).alarms} >= {"ctr (all)"}
    other = folder("other", 1.7e9, 2, [0.2, 0.2])
    same = monitor(log, other, since_s=80_000)
    assert same.alarms == [] and same.reference == "the log other" and same.lists[1] == pytest.approx(600, abs=20)
    first = monitor(log, since_s=10 * 86400)
    assert (first.reference, first.state) == ("", "first") and "nothing to compare them with" in first.headline
    part = monitor(log, 200_000.0, since_s=80_000)
    assert "the log has only 49.2 hours of the 200000 seconds before" in part.notes and part.lists[1] > 500
    less = monitor(log, 7 * 86400.0, since_s=80_000)
    assert "the log has only 49.2 hours of the 7 days before" in less.notes and less.reference == ""

    old = module.monitor(log, since_s=80_000)  # now is long after the log's end
    (alarm,) = module.monitor(log, since_s=80_000, until_s=then + 80_000).alarms
    assert (old.state, found.state, old.drifts, old.lists[1]) == ("old", "compared", [], 0)
    assert [each.about for each in old.alarms] == [alarm.about] == ["log"]
    assert old.headline.startswith("The log is old: ") and old.lists[0] > found.lists[0]
    assert re.match(
        r"the log is old at 2026-09-\d\d \d\d:\d\d UTC: its newest list was made 24\.7 hours", alarm.message
    )
    assert "and its last event happened 24.7 hours before (2026-09-" in alarm.message
    day = monitor(log, since_s=40_000, until_s=1.79e9 + 2 * 86400)  # before the clicks fell
    assert day.alarms == [] and day.upto_s == pytest.approx(1.79e9 + 2 * 86400 - 1800, abs=1800)
    with pytest.raises(DataError, match="no lists from before --until"):
        module.monitor(log, until_s=1.7e9)


@pytest.mark.parametrize(
    ("days", "until", "newest", "lists"),
    [
        ([*[0.0] * 99, 10.0], 12.0, 10.0, 1),  # a single list within --within
        ([*[0.0] * 99, 40.0], 20.0, 0.0, 99),  # a gap, and lists after it
    ],
)
def test_a_log_is_old_by_its_newest_list_up_to_the_time_of_the_report(tmp_path, days, until, newest, lists):
    start, day = 1.79e9, 86400.0
    asked = [RequestRecord(f"r{n}", start + at * day, "u", "m", 1, "recommend", 0, 3) for n, at in enumerate(days)]
    with EventLog(tmp_path / "log", clock=lambda: start + 50 * day) as log:
        log.write([], [], asked)
    report = module.monitor(tmp_path / "log", until_s=start + until * day)
    (alarm,) = report.alarms
    assert (report.state, report.upto_s, report.lists) == ("old", start + newest * day, (lists, 0))
    assert f"its newest list was made {24 * (until - newest):.1f} hours before" in alarm.message
