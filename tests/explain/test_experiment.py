"""The page of an experiment."""

import numpy as np
import pandas as pd
from html_pages import check, told

from tfllmrec.explain.experiment import write_experiment
from tfllmrec.feedback.assignment import Experiment
from tfllmrec.feedback.experiments import Metric, Users, analyze


def analysis_of(name, arms, metric="value"):
    rng = np.random.default_rng(0)
    arm = np.repeat(list(arms), 100)
    table = pd.DataFrame({"user_id": range(len(arm)), "arm": arm, metric: rng.normal(size=len(arm))})
    return analyze(Users(table, in_two_arms=9), Experiment(name, arms), [Metric(metric)])


def test_the_page_has_users_differences_and_how_to_read_them(tmp_path):
    analysis = analysis_of("ranking", {"control": 1, "a": 1, "b": 1})
    text = check(write_experiment(analysis, tmp_path / "page.html"))
    words = told(text)
    assert "Experiment ranking" in words and "300 users. No difference is significant." in words
    assert "a 100 33.33% 33.33%" in words and "users with exposures in several arms, left out: 9" in words
    assert "Alarm: 9 users were in several arms" in words and "asymptotic confidence sequences" in words
    for each in analysis.comparisons:
        assert f"value {each.arm} {each.control_value:.4g} {each.value:.4g} {each.difference:+.4g}" in words
    assert text.count("<svg") == 1 and "difference to control, with its 95 % interval" in text


def test_the_page_of_an_experiment_without_users_in_an_arm_has_the_alarm(tmp_path):
    table = pd.DataFrame({"user_id": range(1000), "arm": "a", "value": 1.0})
    analysis = analyze(Users(table), Experiment("e", {"a": 1, "b": 1}), [Metric("value")])
    words = told(check(write_experiment(analysis, tmp_path / "page.html")))
    assert "Alarm: The numbers of users do not fit the shares: a 1,000 (expected 500), b 0" in words


def test_names_of_the_data_do_not_break_the_page(tmp_path, hostile):
    for number, name in enumerate(hostile):
        arms = {f"{name}1": 1, f"{name}2": 1}
        check(write_experiment(analysis_of(name or "e", arms, name.strip() or "m"), tmp_path / f"{number}.html"))
