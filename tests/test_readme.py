"""The README's script runs as it is printed, and the README names only what there is."""

import re
from pathlib import Path

import numpy as np
import pytest

from tfllmrec import assets
from tfllmrec.errors import DataError

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_every_path_that_the_readme_names_is_there():
    named = re.findall(r"`((?:tfllmrec|configs|benchmarks|notebooks)/[\w./-]*)`", README)
    assert len(named) > 8
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.tf
def test_the_script_runs(tmp_path, monkeypatch, capsys):
    try:
        assets.weights("minilm")
    except DataError as error:
        pytest.skip(f"needs the bundled BERT: {error}")
    things = ["apple", "pear", "bolt", "screw", "novel", "poem", "drum", "flute"]
    items = [f"i{n},{things[n % 8]} number {n}" for n in range(40)]
    (tmp_path / "items.csv").write_text("\n".join(["item,title", *items]))
    generator = np.random.default_rng(0)
    events = [
        f"u{u},i{(start + step) % 40},{step}"
        for u in range(60)
        for start in [generator.integers(40)]
        for step in range(8)
    ]
    (tmp_path / "events.csv").write_text("\n".join(["user,item,timestamp", *events]))
    monkeypatch.chdir(tmp_path)
    script = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)[0]
    names: dict = {}
    exec(compile(script, "README.md", "exec"), names)
    # Everybody walks along the catalogue, one item at a time: the next one is known.
    assert names["result"].metrics["recall@5"] > 0.9
    assert len(re.findall(r"epoch \d: retrieval_loss .* validation ndcg@10", capsys.readouterr().out)) == 3
    assert list((tmp_path / "logs").iterdir())
