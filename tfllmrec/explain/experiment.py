"""The page of an experiment: one HTML file that needs neither JavaScript nor other files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tfllmrec.durable import write_text
from tfllmrec.evaluation.figures import difference_intervals
from tfllmrec.explain.pages import html_page, require_jinja
from tfllmrec.explain.sections import Section, Table
from tfllmrec.feedback.experiments import comparison_rows, user_rows
from tfllmrec.version import __version__

if TYPE_CHECKING:
    from tfllmrec.feedback.experiments import Analysis


def write_experiment(analysis: Analysis, out: Path) -> Path:
    """Writes the numbers of users, the differences with a figure, and how to read them.

    Args:
      analysis: The result of :func:`tfllmrec.feedback.experiments.analyze`.
      out: The HTML file.

    Raises:
      ConfigError: jinja2 or matplotlib is not installed.
      WriteError: The disk is full, read-only or broken.
    """
    require_jinja()
    differences = Section("Differences")
    by_metric: dict[str, dict[str, tuple[float, float | None, float | None]]] = {}
    for each in analysis.comparisons:
        by_metric.setdefault(each.metric, {})[each.arm] = (each.difference, each.low, each.high)
    if by_metric:
        differences.table(Table(*comparison_rows(analysis), note=f"Intervals: {analysis.described}."))
        differences.figure(
            difference_intervals(by_metric, analysis.control, 1 - analysis.alpha),
            "differences",
            "Difference of each arm to the control. Filled circles: the interval excludes 0.",
        )
    users = Section("Users")
    users.table(Table(*user_rows(analysis)))
    users.items(analysis.left_out)
    reading = Section("How to read it")
    reading.text(*analysis.explained)
    facts = {
        "title": f"Experiment {analysis.experiment}",
        "headline": analysis.headline,
        "alarms": analysis.alarms,
        "sections": [section for section in (differences, users, reading) if section.parts],
        "version": __version__,
    }
    write_text(out, html_page("report.html", **facts))
    return out
