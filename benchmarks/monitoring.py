"""Counts the alarms of monitoring on simulated days without a change and with one planted; a section of RESULTS.md.

    python benchmarks/monitoring.py

Each day is compared with the day before by ``tfllmrec.feedback.monitoring``. Nothing is trained; it takes some minutes.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import stats
from sections import made_by, replace_section

from tfllmrec.evaluation.report import markdown_table
from tfllmrec.feedback.monitoring import DAY_S, Report, compare
from tfllmrec.feedback.observed import Observed, observed

ITEMS, LENGTH = 2000, 10
CATALOGUE = pd.DataFrame(
    {
        "item_id": [f"i{n}" for n in range(ITEMS)],
        "train_events": np.r_[np.linspace(2000, 1, ITEMS - 200).astype(int), np.zeros(200, int)],
        "stratum": ["head"] * 400 + ["tail"] * 1400 + ["cold"] * 200,
    }
)


@dataclass(frozen=True)
class Service:
    """The behaviour of a simulated service on a day.

    Users differ in the share of items that they click, in the length of their histories and in their devices. There is
    one search for every three lists.

    Attributes:
      users: The number of users.
      lists: The mean number of lists that a user requests.
      clicks: The mean share of shown items that are clicked.
      bought: The share of clicked items that are bought.
      stay_s: The mean dwell time after a click.
      history: The mean length of histories.
      unknown: The share of ids in histories that the model does not know.
      empty: The share of lists that are empty.
      score: The mean of the lists' best scores.
      phone: The share of requests from phones.
      steepness: The preference for popular items: the exponent of the power law of their ranks.
      letters: The length of search texts: 1 plus a Poisson number with this mean.
      script: The script of search texts.
    """

    users: int = 400
    lists: float = 6.0
    clicks: float = 0.08
    bought: float = 0.15
    stay_s: float = 40.0
    history: float = 20.0
    unknown: float = 0.02
    empty: float = 0.01
    score: float = 1.5
    phone: float = 0.6
    steepness: float = 0.9
    letters: float = 12.0
    script: str = "LATIN"


#: By the name of a change: the settings that it replaces, and the beginnings of the names of its own alarms.
CHANGES: dict[str, tuple[dict[str, float | str], tuple[str, ...]]] = {
    "clicks fall by 30 %": ({"clicks": 0.056}, ("ctr", "bounce", "conversion")),
    "purchases fall by half": ({"bought": 0.075}, ("conversion",)),
    "users stay half as long": ({"stay_s": 20.0}, ("dwell_s",)),
    "histories are half as long": ({"history": 10.0}, ("history ids", "no_history")),
    "unknown ids from 2 to 6 %": ({"unknown": 0.06}, ("unknown_ids",)),
    "empty lists from 1 to 6 %": ({"empty": 0.06}, ("empty_lists", "list length")),
    "best scores rise by one deviation": ({"score": 2.0}, ("best score",)),
    "phones from 60 to 90 %": ({"phone": 0.9}, ("field device",)),
    "lists move to popular items": (
        {"steepness": 1.5},
        ("popularity of", "coverage", "gini"),
    ),
    "texts are twice as long": ({"letters": 24.0}, ("letters of texts",)),
    "texts in another script": ({"script": "CYRILLIC"}, ("script of texts",)),
}

#: By name: settings of the service before and after, which differ only in the number of users and of their lists.
ACTIVITY: dict[str, tuple[dict[str, float], dict[str, float]]] = {
    "seven days before one hour": ({"lists": 42.0}, {"lists": 1.2, "users": 100}),
    "half as many lists a user": ({}, {"lists": 3.0}),
    "twice as many lists a user": ({}, {"lists": 12.0}),
}


def day_of(service: Service, rng: np.random.Generator, day: int) -> Observed:
    """Simulates one day of a service."""
    start = 1.79e9 + day * DAY_S
    lists = rng.geometric(1 / service.lists, service.users)
    user = np.repeat(np.arange(service.users), lists)
    n = len(user)
    time = start + np.sort(rng.uniform(1, DAY_S, n))
    user = rng.permutation(user)
    taste = rng.beta(4, 4 / service.clicks - 4, service.users)
    length = rng.gamma(4, service.history / 4, service.users)
    on_phone = rng.beta(2 * service.phone, 2 * (1 - service.phone), service.users)
    ids = rng.poisson(length[user])
    empty = rng.random(n) < service.empty
    requests = pd.DataFrame(
        {
            "request_id": [f"r{day}-{at}" for at in range(n)],
            "time_s": time,
            "user_id": [f"u{each}" for each in user],
            "model": "shop",
            "version": 3,
            "policy": "recommend",
            "listed": np.where(empty, 0, LENGTH),
            "history_ids": ids,
            "unknown_ids": rng.binomial(ids, service.unknown),
            "best_score": np.where(empty, np.nan, rng.normal(service.score, 0.5, n)),
            "mean_score": np.nan,
            "letters": None,
            "script": None,
            "context": np.where(rng.random(n) < on_phone[user], '{"device":"phone"}', '{"device":"tv"}'),
        }
    )
    weights = 1 / np.arange(1, ITEMS + 1) ** service.steepness
    row = np.repeat(np.flatnonzero(~empty), LENGTH)
    item = rng.choice(ITEMS, len(row), p=weights / weights.sum())
    shown = requests.loc[row, ["time_s", "request_id", "user_id", "model", "version", "policy"]].reset_index(drop=True)
    shown["item_id"] = CATALOGUE["item_id"].to_numpy()[item]
    clicked = rng.random(len(row)) < taste[user[row]]
    clicks = shown[clicked].assign(kind="click", dwell_s=rng.exponential(service.stay_s, int(clicked.sum())))
    buys = clicks[rng.random(len(clicks)) < service.bought].assign(kind="purchase", dwell_s=np.nan)
    events = pd.concat([clicks, buys])
    events["timestamp_s"] = events["time_s"] + rng.uniform(1, 600, len(events))
    searches = requests[rng.random(n) < 1 / 3].copy()
    searches["request_id"] += "s"
    searches["policy"] = "search"
    searches["letters"] = rng.poisson(service.letters, len(searches)) + 1
    searches["script"] = service.script
    asked = pd.concat([requests, searches], ignore_index=True)
    return observed(shown, events, asked, start, start + DAY_S, 1800, CATALOGUE)


def report_of(before: Observed, now: Observed) -> Report:
    return compare(now, before, "the day before", items=CATALOGUE)


def without_change(days: int, seed: int, service: Service = Service()) -> list[list[str]]:
    """Returns the subjects of the alarms of each simulated day, without a change."""
    rng = np.random.default_rng(seed)
    before, found = day_of(service, rng, 0), []
    for day in range(1, days + 1):
        now = day_of(service, rng, day)
        found.append([alarm.about for alarm in report_of(before, now).alarms])
        before = now
    return found


def with_change(name: str, days: int, seed: int, service: Service = Service()) -> tuple[int, int]:
    """Returns the number of days on which a planted change has its alarm, and of those with any other alarm."""
    changed, own = CHANGES[name]
    rng = np.random.default_rng(seed)
    found = other = 0
    for day in range(days):
        before = day_of(service, rng, 2 * day)
        now = day_of(replace(service, **changed), rng, 2 * day + 1)  # type: ignore[arg-type]
        about = [alarm.about for alarm in report_of(before, now).alarms]
        found += any(each.startswith(own) for each in about)
        other += any(not each.startswith(own) for each in about)
    return found, other


def with_activity(name: str, days: int, seed: int, service: Service = Service()) -> list[list[str]]:
    """Returns the subjects of the alarms of each pair of days that differ only in activity, see :data:`ACTIVITY`."""
    rng = np.random.default_rng(seed)
    before, after = (replace(service, **changed) for changed in ACTIVITY[name])  # type: ignore[arg-type]
    return [
        [alarm.about for alarm in report_of(day_of(before, rng, 2 * day), day_of(after, rng, 2 * day + 1)).alarms]
        for day in range(days)
    ]


def section(days: int, changed_days: int, seed: int, command: str) -> str:
    alarms = without_change(days, seed)
    false = sum(bool(each) for each in alarms)
    low, high = stats.binomtest(false, days).proportion_ci()
    print(f"{false} of {days} days without a change have an alarm: {[each for each in alarms if each]}", flush=True)
    rows = []
    for place, name in enumerate(CHANGES):
        found, other = with_change(name, changed_days, seed + 1 + place)
        rows.append([name, f"{found} of {changed_days}", f"{other} of {changed_days}"])
        print(rows[-1], flush=True)
    for place, name in enumerate(ACTIVITY):
        other = sum(map(bool, with_activity(name, changed_days, seed + 1 + len(CHANGES) + place)))
        rows.append([name, "none to expect", f"{other} of {changed_days}"])
        print(rows[-1], flush=True)
    return "\n".join(
        [
            made_by(command, seed),
            "",
            f"A simulated service of {Service.users} users a day, about six lists of {LENGTH} each; users differ in "
            "how much they click, in the length of their histories and in their devices. Each day is compared with the "
            "day before.",
            "",
            f"Without a change, {false} of {days} days have an alarm ({false / days:.1%}, 95 % interval {low:.1%} to "
            f"{high:.1%}); the goal is at most 1 %.",
            "",
            *markdown_table(["change planted on a day", "days with its alarm", "days with any other alarm"], rows),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--days", type=int, default=200, help="Simulated days without a change.")
    parser.add_argument("--changed-days", type=int, default=20, help="Simulated days with each change.")
    parser.add_argument("--seed", type=int, default=42)
    given = parser.parse_args()
    command = shlex.join(["python", *sys.argv])
    replace_section("monitoring", section(given.days, given.changed_days, given.seed, command))


if __name__ == "__main__":
    main()
