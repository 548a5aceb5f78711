"""Every dashboard of TensorBoard over a run, in headless Chromium."""

import time
from importlib.util import find_spec

import pytest

pytestmark = [pytest.mark.tf, pytest.mark.slow]

#: Text that is there once a dashboard shows the run, through all shadow roots.
TEXT = """
(() => {
  const found = [];
  const walk = (node) => {
    if (node.nodeType === Node.TEXT_NODE) found.push(node.nodeValue);
    if (node.shadowRoot) walk(node.shadowRoot);
    if (node.tagName === 'IFRAME' && node.contentDocument?.body) walk(node.contentDocument.body);
    if (!['SCRIPT', 'STYLE'].includes(node.tagName)) for (const child of node.childNodes) walk(child);
  };
  walk(document.body);
  return found.join('').replace(/\\s+/g, '');
})()
"""
DASHBOARDS = {
    "timeseries": ["accuracy/ndcg@10"],
    "custom_scalars": ["How good", "What epochs are compared by", "Matches (1)"],
    "images": ["gate by popularity", "exposure"],
    "graphs": ["Main Graph", "gradient_tape"],
    "histograms": ["gates/dense terms against behaviour"],
    "text": ["recommendations", "config"],
    "pr_curves": ["clicks/all", "is at step"],
    "projector": ["item vectors", "title"],
    "hparams": ["model.embedding_dim", "Number of matching session groups: 1"],
}


def lacking_of(page, wanted, seconds=60):
    """What of ``wanted`` does not stand in the page, after some time, and its text; both without spaces."""
    ends = time.monotonic() + seconds
    while True:
        text = page.evaluate(TEXT)
        lacking = [part for part in wanted if part.replace(" ", "") not in text]
        if not lacking or time.monotonic() > ends:
            return lacking, text
        time.sleep(0.3)


def test_each_dashboard_shows_the_run_in_chromium(shown_run, browser, picture):
    from tfllmrec.board.server import board_of

    dashboards = dict(DASHBOARDS)
    if find_spec("tensorboard_plugin_profile") and (shown_run.folder / "logs" / "profile" / "plugins").is_dir():
        dashboards["profile"] = ["Performance Summary"]  # the planted run has too few steps for one
    with board_of([shown_run.folder]) as address:
        for name, wanted in dashboards.items():
            browser.open("about:blank")  # a change of the part after # alone loads nothing
            browser.open(f"{address}#{name}")
            lacking, text = lacking_of(browser, wanted)
            picture(f"board-{name}")
            assert not lacking, (name, text[:2000])
