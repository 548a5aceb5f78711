"""The report of one run, or of several runs side by side: one HTML file that needs no JavaScript and no other files.

Recorded results are read from the run folder. Only for a single run, examples, exposure, reliance on terms and fields,
gate, calibration and labels are computed with its model, and the information of the fields from its data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tfllmrec.data.features import require_scikit_learn
from tfllmrec.durable import write_text
from tfllmrec.errors import ConfigError
from tfllmrec.explain.compare import Comparison, compare
from tfllmrec.explain.one_run import against_baselines, headline_of, sections_of_run
from tfllmrec.explain.pages import html_page, require_jinja
from tfllmrec.explain.several_runs import headline_of_runs, sections_of_runs
from tfllmrec.progress import Tell, to_stderr
from tfllmrec.runs.run import Run
from tfllmrec.version import __version__

#: The file names of the report of one run and of several runs.
REPORT, COMPARISON = "report.html", "comparison.html"
#: The maximum number of runs in a report.
RUNS = 8


@dataclass(frozen=True)
class Page:
    """A report that was written.

    Attributes:
      path: The HTML file.
      headline: A summary of the result.
      comparison: The comparison of the runs, or of a single run with its baselines.
    """

    path: Path
    headline: str
    comparison: Comparison

    def differences(self) -> dict[str, dict[str, dict[str, float]]]:
        """Returns :attr:`Comparison.differences` as JSON values."""
        names = ("difference", "low", "high")
        return {
            label: {name: dict(zip(names, found, strict=True)) for name, found in rows.items()}
            for label, rows in self.comparison.differences.items()
        }


def write_report(runs: Sequence[Path | str], out: Path | None = None, tell: Tell = to_stderr) -> Page:
    """Writes the report of a run, or of several runs side by side.

    Args:
      runs: Complete run folders; all others are compared with the first one.
      out: The HTML file; by default ``report.html`` in the run folder, or for several runs ``comparison.html`` in the
        first one.
      tell: Called with a line for each step.

    Raises:
      ConfigError: There are no runs, or too many; or matplotlib, jinja2 or scikit-learn is not installed.
      DataError: The runs do not have the same data and test queries, or the data has changed since the fit.
      ModelError: A folder is not a complete run, or damaged.
      WriteError: The disk is full, read-only or broken.
    """
    if not 1 <= len(runs) <= RUNS:
        raise ConfigError(f"Expected 1 to {RUNS} runs for a report, got {len(runs)}.")
    require_jinja()
    if len(runs) == 1:
        require_scikit_learn()
    opened = [Run.open(run) for run in runs]
    if len(opened) == 1:
        title, comparison = opened[0].metrics["data"]["name"], against_baselines(opened[0])
        headline, sections = headline_of(opened[0]), sections_of_run(opened[0], comparison, tell)
        alarms = opened[0].metrics.get("alarms", [])
    else:
        comparison = compare(opened)
        title = f"{opened[0].metrics['data']['name']}: {len(opened)} runs"
        headline, sections, alarms = headline_of_runs(comparison), sections_of_runs(opened, comparison), []
    facts = {"title": title, "headline": headline, "alarms": alarms, "sections": sections, "version": __version__}
    path = out or opened[0].folder / (REPORT if len(opened) == 1 else COMPARISON)
    write_text(path, html_page("report.html", **facts))
    return Page(path, headline, comparison)
