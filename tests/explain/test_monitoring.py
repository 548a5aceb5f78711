"""The page of monitoring."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from html_pages import check, told

from tfllmrec.explain.monitoring import DRAWN, write_monitoring
from tfllmrec.feedback.drift import Shift
from tfllmrec.feedback.monitoring import Drift

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import monitoring as simulation


@pytest.fixture(scope="module")
def report():
    service, rng = simulation.Service(users=150), np.random.default_rng(0)
    days = [simulation.day_of(each, rng, n) for n, each in enumerate((service, replace(service, phone=0.95)))]
    return replace(simulation.report_of(*days), log="shop-log")


def test_the_page_has_figures_drifts_exposure_and_pictures(report, tmp_path):
    text = check(write_monitoring(report, tmp_path / "page.html"))
    words = told(text)
    assert "Monitoring of shop-log" in words and "compared with the day before: one alarm." in words
    assert "Alarm: field device moved: population stability index" in words
    ctr = report.figures[0]
    assert f"ctr all {ctr.value:.2%} [{ctr.low:.2%}, {ctr.high:.2%}] {ctr.count:,.0f} {ctr.reference:.2%}" in words
    assert "field device" in words and "gini" in words and "adjusted for all comparisons" in words
    assert text.count("<svg") == 1 + min(DRAWN, len(report.drifts))
    first = replace(report, reference="", drifts=[], exposed=[], hours=report.hours[:1], alarms=[], state="first")
    bare = check(write_monitoring(first, tmp_path / "first.html"))
    assert "<svg" not in bare and "nothing to compare them with yet" in told(bare)


def test_names_of_the_data_do_not_break_the_page(report, tmp_path, hostile):
    for number, name in enumerate(hostile):
        shift = Shift(0.3, 0.2, None, f"{name}: 1%", (name, "b"), (0.1, 0.9), (0.5, 0.5), (9, 9))
        drift = Drift(**vars(shift), name=f"field {name}", size="large")
        figure = replace(report.figures[0], group=f"scene {name}")
        page = replace(report, log=name, figures=[figure], drifts=[drift])
        check(write_monitoring(page, tmp_path / f"{number}.html"))


@pytest.mark.slow
def test_the_page_in_chromium(report, tmp_path, browser, picture):
    page = write_monitoring(report, tmp_path / "page.html")
    for width in (390, 1280):
        browser.open(page.as_uri(), width)
        assert browser.evaluate("document.documentElement.scrollWidth") <= width and browser.problems == []
        picture(f"monitoring-{width}")
