"""Reports of run folders without TensorFlow; tests/explain/test_of_a_fit.py reports on a real fit."""

import json
import re
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import chain_events, chain_items
from html_pages import check, told
from plain_runs import Next, stand_in, write_run

from tfllmrec.config import SplitConfig, TrainingConfig
from tfllmrec.data import dataset_from_frames, make_split
from tfllmrec.data.features import feature_report
from tfllmrec.data.graph import ItemGraph, shared_values
from tfllmrec.errors import ConfigError, DataError, ModelError
from tfllmrec.evaluation.protocol import evaluate, paired_difference
from tfllmrec.evaluation.result_files import save_result
from tfllmrec.explain.one_run import _information, changed_settings
from tfllmrec.explain.report import RUNS, write_report
from tfllmrec.explain.sections import Table
from tfllmrec.runs.run import ABLATION, Run, SourceRun, Transferred


def test_the_graph_has_a_section_with_a_picture(plain_run, loads_stand_in):
    n_items = plain_run.dataset.n_items
    cells = ["shared" if item in (3, 5, 7) else "" for item in range(n_items)]
    ItemGraph(n_items, (shared_values("author", cells, 9),)).save(plain_run.folder / "graph")
    text = check(write_report([plain_run.folder], tell=lambda line: None).path)
    assert "<h2>Graph of the items</h2>" in text and "The strongest neighbours of" in text and "same author" in text


def test_a_transferred_run_shows_what_the_domains_share(plain_run, loads_stand_in):
    source = SourceRun(folder="films", name="films", data_sha256="abc")
    Transferred(sources=[source], overlaps=[], missing=["items.plot"]).write(plain_run.folder)
    text = check(write_report([plain_run.folder], tell=lambda line: None).path)
    assert "<h2>Transfer</h2>" in text and "source: films" in text and "the target lacks items.plot" in text


def test_of_one_run(plain_run, loads_stand_in):
    page = write_report([plain_run.folder], tell=lambda line: None)
    assert page.path == plain_run.folder / "report.html"
    text = check(page.path)
    headings = re.findall(r"<h2>(.*?)</h2>", text)
    assert headings == [
        "Scoreboard",
        "Popular, rare and new items",
        "Training",
        "Chosen from the data",
        "Examples",
        "Exposure",
        "What the lists rely on",
        "What the fields are worth",
        "How informative the fields are",
        "Data and split",
        "How to reproduce",
    ]
    # strata, epochs, gate, exposure, fields; of 60 targets no groups by popularity are made
    assert text.count("<svg") == 5
    words, model = told(text), plain_run.metrics["results"]["hybrid"]
    difference, low, high = paired_difference(*plain_run.results.values(), "ndcg@10")
    assert low > 0
    assert page.headline in words
    assert f"On average {model['recall@10']:.1%} of the held-out items are among" in page.headline
    assert (
        f"ahead of the best baseline, popularity, by {difference:.4f} in ndcg@10: statistically significant at 5 %"
        in page.headline
    )
    assert f"{low:+.4f} to {high:+.4f}; fewer than 500 targets" in page.headline
    assert page.headline.endswith("The interval covers users, not seeds.")
    assert f"popularity {difference:+.4f} [{low:+.4f}, {high:+.4f}]" in words
    assert "targets 60 60 46" in words  # of ndcg, recall and recall of the tail; the head has too few
    assert "Not shown, fewer than 20 targets: recall@10/head (14), recall@10/cold (0)" in words
    assert "all 600 17% 33% 50%" in words and "event.rating +0.0000 [+0.0000, +0.0000]" in words
    assert f"data fingerprint {plain_run.dataset.fingerprint}" in words
    assert "events events.csv" in words and "/somewhere" not in text
    assert "tfllmrec fit plain/config.yaml --out plain-again" in words
    assert words.count("not adjusted for the number of comparisons") == 1
    events = len(plain_run.split.train)
    assert f"the 600 places in the lists of 10 for 60 test queries, and how evenly they share their {events}" in words


def test_exposure_is_that_of_the_domain_that_the_test_asks_for(domain_run, loads_stand_in):
    words = told(write_report([domain_run.folder], tell=lambda line: None).path.read_text())
    asked = domain_run.split
    events = asked.train_counts[asked.test.candidates].sum()
    assert 0 < events < len(asked.train)
    assert "10 best of 15 (" in words and "The test ranks the 15 items of the domain small." in words
    assert "How evenly 15 items share the" in words
    assert f"how evenly they share their {events} training events" in words
    measured = domain_run.results["hybrid"].metrics["gini@10"]
    assert f"recommended: Gini {measured:.2f}" in words


def test_the_same_run_gives_the_same_page(plain_run, loads_stand_in, tmp_path):
    first, second = (write_report([plain_run.folder], tmp_path / name).path for name in ("a.html", "b.html"))
    assert first.read_bytes() == second.read_bytes()


def test_a_report_written_from_inside_the_folder_names_it(plain_run, loads_stand_in, monkeypatch):
    named = write_report([plain_run.folder], tell=lambda line: None).path.read_bytes()
    monkeypatch.chdir(plain_run.folder)
    assert write_report(["."], tell=lambda line: None).path.read_bytes() == named


def test_fields_are_shown_by_what_they_tell(tmp_path, loads_stand_in):
    events, items = chain_events(), chain_items()
    place = events["item"].str[1:].astype(int)
    events["device"] = np.where(place % 2, "tv", "phone")
    events["screen"] = np.where(place % 2, "large", "small")
    events["<b>weather"] = np.random.default_rng(1).choice(["sun", "rain"], len(events))
    items["shape"] = "round"
    split = make_split(dataset_from_frames(events, items), SplitConfig(), seed=42)
    run = write_run(tmp_path / "run", split)
    text = check(write_report([run.folder], tell=lambda line: None).path)
    words = told(text.split("<h2>How informative the fields are</h2>")[1].split("<h2>")[0])
    report = feature_report(run.dataset, seed=run.config.seed)
    for row in report.rows:
        assert " ".join(filter(None, row)).replace("  ", " ") in words
    assert report.pairs[0].line() in words and f"--set '{report.suggestion[:12]}" in words
    picture = told(text.split('aria-label="How much a field tells')[1].split("</svg>")[0])
    assert re.search(r"request\.device request\.screen .*\(request\.<b>weather\)", picture)


def test_ids_alone_are_not_measured():
    events = pd.DataFrame({"user": ["u", "u", "v", "v"], "item": ["a", "b", "a", "c"], "session_id": list("wxyz")})
    dataset = dataset_from_frames(events)
    assert dataset.schema.lines() == ["event.session_id: id"]
    assert not _information(SimpleNamespace(dataset=dataset)).parts


def test_examples_are_what_the_rule_says(plain_run, loads_stand_in):
    text = write_report([plain_run.folder]).path.read_text()
    found = dict(zip(plain_run.split.test.user_ids, plain_run.results["hybrid"].per_query["recall@10"], strict=True))
    good, bad = text.split("<h3>Found among the first 10</h3>")[1].split("<h3>Missed by the first 10</h3>")
    good, bad = (re.findall(r"<h4>User (\w+)</h4>", part) for part in (good, bad))
    assert len(set(good)) == len(set(bad)) == 5
    assert all(found[user] > 0 for user in good) and all(found[user] == 0 for user in bad)
    titles = plain_run.dataset.items["title"]
    queries = plain_run.split.test
    row = list(queries.user_ids).index(bad[0])
    example = told(text.split(f"<h4>User {bad[0]}</h4>")[1].split("</div>")[0])
    scores = stand_in(plain_run.dataset.n_items).score(queries.slice(row, row + 1))[0]
    scores[queries.history[row]] = -np.inf
    target = queries.targets[row][0]
    rank = int((scores > scores[target]).sum()) + 1
    assert rank > 10 and f"Held out: {titles[target]} (rank {rank})" in example
    assert f"Recommended: {titles[np.argmax(scores)]} " in example
    assert example.index(titles[queries.history[row][-1]]) < example.index("Recommended")


def test_titles_are_data(hostile_split, tmp_path, loads_stand_in):
    run = write_run(tmp_path / "<b>run; ls", hostile_split)
    text = check(write_report([run.folder], tmp_path / "page.html").path)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text and "{{ 7 * 7 }}" in text
    assert "\\x00\\x07" in text and "\\u202egnp" in text and "\u202e" not in text
    assert "tfllmrec fit '&lt;b&gt;run; ls/config.yaml'" in text.replace("&#39;", "'")
    assert "&lt;u&gt;shop&lt;/u&gt;" in text and "<u>" not in text
    assert "long long" in text and "long " * 30 not in text


def test_an_ablation_is_shown(plain_run, loads_stand_in):
    split = plain_run.split
    for name, share in (("whole_model", 0.6), ("without_behaviour", 0.1)):
        result = evaluate(
            Next(split.dataset.n_items, share), split.test, train_counts=split.train_counts, strata=split.strata()
        )
        save_result(plain_run.folder / ABLATION / f"{name}.npz", result)
    words = told(check(write_report([plain_run.folder]).path))
    assert "What each part is worth" in words
    assert re.search(r"without behaviour -0\.\d{4} \[-0\.\d{4}, -0\.\d{4}\]", words)


def test_a_baseline_with_the_same_figure_is_not_ahead(plain_run):
    from tfllmrec.explain.one_run import headline_of

    hybrid = plain_run.results["hybrid"]
    plain_run.results["markov"] = hybrid
    headline = headline_of(plain_run)
    assert headline.endswith("The best baseline, markov, has the same ndcg@10.") and "behind" not in headline


def test_of_several_runs(chain_split, tmp_path, monkeypatch):
    def no_model(run, refit=False):
        raise AssertionError("several runs are compared by what they recorded")

    monkeypatch.setattr(Run, "load_model", no_model)
    runs = [
        write_run(tmp_path / "runs" / "first", chain_split),
        write_run(tmp_path / "runs" / "second", chain_split, 0.9, training=TrainingConfig(epochs=7)),
        write_run(tmp_path / "more" / "first", chain_split, 0.1),
    ]
    page = write_report([run.folder for run in runs])
    assert page.path == runs[0].folder / "comparison.html"
    words = told(check(page.path))
    assert "second is better (+" in page.headline and "more/first is worse (-" in page.headline
    difference, low, high = paired_difference(runs[1].results["hybrid"], runs[0].results["hybrid"], "ndcg@10")
    assert f"second {difference:+.4f} [{low:+.4f}, {high:+.4f}]" in words
    assert "training.epochs auto 7 auto" in words
    for folder in ("runs/first", "second", "more/first"):
        assert f"tfllmrec fit {folder}/config.yaml --out {folder}-again" in words
    assert page.differences()["ndcg@10"]["second"] == {"difference": difference, "low": low, "high": high}


def test_too_few_queries_are_not_compared(tmp_path, loads_stand_in):
    events = chain_events()
    few = dataset_from_frames(events[events.user.isin([f"u{n}" for n in range(12)])], chain_items())
    split = make_split(few, SplitConfig(), seed=42)
    runs = [write_run(tmp_path / name, split, share).folder for name, share in (("a", 0.3), ("b", 0.9))]
    page = write_report(runs[:1])
    assert page.headline.endswith("Fewer than 20 targets are too few to compare it with baselines.")
    assert "Not shown, fewer than 20 targets: ndcg@10 (12), recall@10 (12)" in told(check(page.path))
    page = write_report(runs)
    assert page.headline.startswith("The runs have fewer than 20 test targets") and page.differences() == {}
    check(page.path)


def test_runs_of_other_data_or_another_split_are_refused(chain_split, hostile_split, tmp_path):
    first = write_run(tmp_path / "first", chain_split)
    other = write_run(tmp_path / "other", hostile_split)
    with pytest.raises(DataError, match=r"other and .*first were made of different data .*compare runs of the same"):
        write_report([first.folder, other.folder])
    random = make_split(chain_split.dataset, SplitConfig(kind="leave_random_out"), seed=42)
    split = write_run(tmp_path / "split", random)
    with pytest.raises(
        DataError, match=r"different test queries \(leave_random_out split.*leave_last_out.*same section"
    ):
        write_report([first.folder, split.folder])
    record = json.loads((first.folder / "run.json").read_text()) | {"data_sha256": "0" * 64}
    (first.folder / "run.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match="has changed since the run: fit again"):
        write_report([first.folder])


def test_a_seed_that_draws_other_targets_is_refused(chain_split, tmp_path):
    splits = [make_split(chain_split.dataset, SplitConfig(kind="leave_random_out"), seed) for seed in (1, 2)]
    runs = [write_run(tmp_path / str(seed), split, seed=seed) for seed, split in zip((1, 2), splits, strict=True)]
    with pytest.raises(DataError, match=r"different test queries .*seed 2.*seed 1"):
        write_report([run.folder for run in runs])


def test_what_is_no_complete_run_is_refused(plain_run, tmp_path):
    with pytest.raises(ModelError, match="is not a run folder"):
        write_report([tmp_path / "nothing"])
    copy = shutil.copytree(plain_run.folder, tmp_path / "copy")
    (copy / "metrics.json").unlink()
    with pytest.raises(ModelError, match="was not finished"):
        write_report([plain_run.folder, copy])
    with pytest.raises(ConfigError, match=f"Expected 1 to {RUNS} runs"):
        write_report([plain_run.folder] * (RUNS + 1))


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_a_missing_extra_is_named(plain_run, loads_stand_in, monkeypatch, package):
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"need.? {package} .*: pip install 'tfllmrec\[report\]'"):
        write_report([plain_run.folder])
    assert not (plain_run.folder / "report.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser(hostile_split, loads_stand_in, tmp_path, browser, width):
    """The page fits its window, loads nothing, and nothing goes wrong; each table scrolls in its own box."""
    run = write_run(tmp_path / "run", hostile_split)
    again = write_run(tmp_path / "again", hostile_split, 0.9)
    for runs in ([run.folder], [run.folder, again.folder]):
        page = write_report(runs, tmp_path / "page.html").path
        browser.open(page.as_uri(), width)
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        smallest = "Math.min(...[...document.querySelectorAll('svg text')].map(t => t.getBoundingClientRect().height))"
        assert browser.evaluate(smallest) > 8
        assert browser.evaluate("performance.getEntriesByType('resource').length") == 0
    assert browser.problems == []
    browser.open("data:text/html,<script>console.error('seen')</script>", width)
    assert any("seen" in problem for problem in browser.problems)  # this test would notice


def test_what_is_cut_from_a_table_is_counted():
    table = Table(["setting", "value"], [[str(n), "1"] for n in range(70)], "Settings.")
    assert table.shortened(70) is table
    short = table.shortened(60)
    assert (len(short.rows), short.rows[-1], short.note) == (60, ["59", "1"], "Settings. And 10 more.")


def test_settings_that_differ_from_their_defaults(plain_run):
    assert dict(changed_settings(plain_run.config)) == {
        "data.name": plain_run.dataset.name,
        "evaluation.baselines": "['popularity']",
        "evaluation.bootstrap": "20",
        "ranking.epochs": "0",
        "split.kind": "leave_last_out",
        "text.template": "{title}",
    }
