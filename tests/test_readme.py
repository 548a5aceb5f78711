"""The README's script runs as it is printed, and README and docs name only what there is."""

import re
from pathlib import Path

import numpy as np
import pytest

from tfllmrec import assets
from tfllmrec.config import ExperimentConfig
from tfllmrec.errors import DataError

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def anchors(page: Path) -> set[str]:
    """Names of the headings of a page, spelled as GitHub spells them in links."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [ROOT / "README.md", *(ROOT / "docs").glob("*.md")], ids=lambda page: page.name)
def test_every_path_and_setting_that_a_page_names_is_there(page):
    text = page.read_text()
    named = re.findall(r"`((?:tfllmrec|configs|benchmarks|notebooks|docs|deploy)/[\w./-]*)`", text)
    assert [path for path in named if not (ROOT / path).exists()] == []
    linked = [link.partition("#") for link in re.findall(r"\]\(([^)]+)", text) if not link.startswith("http")]
    assert [link for link, _, _ in linked if not (page.parent / link).exists()] == []
    assert [(link, a) for link, _, a in linked if a and a not in anchors(page.parent / link if link else page)] == []
    settings = re.findall(
        r"`((?:data|split|text|tuning|distillation|model|training|ranking|evaluation)\.(?!safetensors)\w+)[`=]", text
    )
    sections = ExperimentConfig().model_dump()
    assert [name for name in settings if name.split(".")[1] not in sections[name.split(".")[0]]] == []
    assert named or linked


@pytest.mark.slow
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
