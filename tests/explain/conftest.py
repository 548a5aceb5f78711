import pytest
from plain_runs import stand_in, write_run

from tfllmrec.config import DataConfig, SplitConfig
from tfllmrec.data import dataset_from_frames, make_split
from tfllmrec.runs.run import Run

#: Titles that would break a page, a formula of matplotlib, an SVG or a Markdown table if they were not escaped.
HOSTILE = [
    "<script>alert(1)</script>",
    "</svg></table><img src=x onerror=alert(2)>",
    "{{ 7 * 7 }} {% raw %}",
    "$x^$ \\frac{",
    "&amp; & \" ' `",
    "\x00\x07 \u202egnp.exe \uffff",
    "| # *bold* [a](javascript:alert(3))",
    "_begins with an underscore",
    "long " * 2000,
]


@pytest.fixture
def hostile():
    return HOSTILE


@pytest.fixture
def plain_run(chain_split, tmp_path):
    return write_run(tmp_path / "plain", chain_split)


@pytest.fixture
def domain_run(tmp_path):
    """A run on the planted ring whose test asks for its first 15 items, the domain ``small``."""
    from conftest import chain_events, chain_items

    items = chain_items()
    items["domain"] = ["small" if n < 15 else "large" for n in range(len(items))]
    dataset = dataset_from_frames(chain_events(), items, config=DataConfig(name="two"))
    split = make_split(dataset, SplitConfig(domain="small"), seed=42)
    return write_run(tmp_path / "domain", split, domain="small")


@pytest.fixture
def loads_stand_in(monkeypatch):
    """Runs load a model of a few lines of numpy."""
    monkeypatch.setattr(Run, "load_model", lambda run, refit=False: stand_in(run.dataset.n_items))


@pytest.fixture
def hostile_split():
    """The planted ring, whose items have titles, and whose users have ids, that nobody would wish for."""
    from conftest import chain_events, chain_items

    items = chain_items()
    items["title"] = [f"{HOSTILE[n % len(HOSTILE)]}{n}" for n in range(len(items))]
    items["category"] = "<b>bold</b>|news"
    events = chain_events()
    events["user"] = "<i>\u202e" + events["user"] + "</i>"
    dataset = dataset_from_frames(events, items, config=DataConfig(name="<u>shop</u>"))
    return make_split(dataset, SplitConfig(), seed=42)
