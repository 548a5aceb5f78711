"""The page of monitoring: one HTML file that needs neither JavaScript nor other files."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tfllmrec.durable import write_text
from tfllmrec.evaluation.figures import rate_by_time, two_distributions
from tfllmrec.explain.pages import html_page, require_jinja
from tfllmrec.explain.sections import Section, Table
from tfllmrec.feedback.monitoring import (
    ALPHA,
    LEAST_CHANGE,
    MEASURES,
    PSI_ALARM,
    PSI_MODERATE,
    change_lines,
    drift_rows,
    exposure_rows,
    figure_rows,
)
from tfllmrec.version import __version__

if TYPE_CHECKING:
    from tfllmrec.feedback.monitoring import Report

#: The number of fields that are drawn: those with the largest population stability index.
DRAWN = 6


def write_monitoring(report: Report, out: Path) -> Path:
    """Writes the figures, drifts and exposure of a report, with pictures, and how to read them.

    Args:
      report: The result of :func:`tfllmrec.feedback.monitoring.monitor`.
      out: The HTML file.

    Raises:
      ConfigError: jinja2 or matplotlib is not installed.
      WriteError: The disk is full, read-only or broken.
    """
    require_jinja()
    users = Section("What users did")
    if len(report.hours) > 1:
        times, rate, low, high = np.array(report.hours).T
        users.figure(
            rate_by_time([_moment(at) for at in times], rate, low, high, _moment(report.after_s)),
            "ctr-by-hour",
            "Click-through rate by the hour, with its 95 % interval; the period begins at the dashed line.",
        )
    users.table(Table(*figure_rows(report), note="; ".join(f"{name}: {each.means}" for name, each in MEASURES.items())))
    users.items(change_lines(report))
    inputs = Section("Inputs and scores")
    inputs.table(Table(*drift_rows(report)))
    for at, each in enumerate(sorted(report.drifts, key=lambda drift: -drift.psi)[:DRAWN]):
        inputs.figure(
            two_distributions(each.labels, np.asarray(each.before), np.asarray(each.after), each.name),
            f"drift-{at}",
            f"Population stability index {each.psi:.3f}, {each.size}.",
        )
    shown = Section("Exposure of items")
    shown.table(Table(*exposure_rows(report)))
    reading = Section("How to read it")
    reading.text(
        f"An alarm needs a p-value below {ALPHA:g}, adjusted for all comparisons of the page (Holm) and for events of "
        f"one user being alike, and a change that matters: {LEAST_CHANGE:.0%} in the wrong direction for what users "
        f"did, a population stability index of {PSI_ALARM:g} for a field ({PSI_MODERATE:g} is called moderate).",
        "Coverage and Gini's index depend on how much was shown; the expected value is that of the same users divided "
        "at random.",
    )
    reading.items(report.notes)
    facts = {
        "title": f"Monitoring of {report.log}",
        "headline": report.headline,
        "alarms": [alarm.message for alarm in report.alarms],
        "sections": [section for section in (users, inputs, shown, reading) if section.parts],
        "version": __version__,
    }
    write_text(out, html_page("report.html", **facts))
    return out


def _moment(time_s: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(time_s, datetime.UTC)
