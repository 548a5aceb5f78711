"""Stand-ins where the program calls the libraries that need TensorFlow."""

import json
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest

from tfllmrec.client import answers
from tfllmrec.client.answers import Interest, Recommendation, to_frame
from tfllmrec.data.schema import Schema
from tfllmrec.errors import DataError, ModelError
from tfllmrec.text.reading import Reading

METRICS = {
    "data": {"name": "made"},
    "split": {"kind": "leave_last_out", "queries": 3},
    "results": {"hybrid": {"ndcg@10": 0.5}},
    "intervals": {"hybrid": {"ndcg@10": [0.49, 0.51]}},
    "alarms": ["hybrid: looks odd"],
}


@dataclass
class Ranked:
    item_id: str
    title: str
    click_probability: float
    rating: float | None = None


@dataclass
class FakeModel:
    """A catalogue of ``a`` to ``e``; the best are those not in the history, in alphabetical order."""

    folder: Path
    manifest: dict = field(default_factory=dict)
    calls: list = field(default_factory=list)
    filters: list = field(default_factory=list)
    searched: list = field(default_factory=list)
    categories: ClassVar = {"Comedy", "Drama"}
    rating: ClassVar = 4.25
    fails_for: ClassVar = ["u-fails"]
    people: ClassVar = {"u1": (["a", "b"], [5.0, 1.0]), "u2": (["e"], [3.0]), "u-fails": ([], [])}

    @property
    def schema(self):
        return Schema.from_dict(self.manifest.get("schema", []))

    def known(self, ids):
        return [i in "abcde" for i in ids]

    def history_of(self, user):
        self.searched.append(user)
        if user not in self.people:
            raise DataError(f"No user {user!r}. Near: u1")
        return self.people[user]

    def fields_of(self, user):
        return {"context": {"age": "30"}, "event_fields": [{"kind": "view"}] * len(self.people[user][0])}

    run = "the run"

    def known_users(self, users):
        return [user in self.people for user in users]

    def _best(self, hidden, k):
        left = [i for i in "abcde" if i not in hidden][:k]
        return [Recommendation(i, f"Title {i}", 1 / rank, "because") for rank, i in enumerate(left, start=1)]

    def recommend(
        self, users=None, k=10, *, histories=None, ratings=None, exclude=(), allow=None, categories=(), **rules
    ):
        self.filters.append((allow, categories))
        self.fields = {name: rules.pop(name, None) for name in ("context", "event_fields")}
        self.rules = rules
        print("chatter of a library")
        self.calls.append(("recommend", users, k, histories, ratings, exclude))
        if users == self.fails_for:
            raise ZeroDivisionError
        histories = [self.people[user][0] for user in users] if histories is None else histories
        unread = sum(not label.startswith("label") for label in rules.get("label_weights") or ())
        values = {"age": "", "about": "", "device": "phone tv", "hour": "12", "since": "0"}  # "": any
        unread += sum(
            (known := values.get(name.split(".")[-1])) is None or (known != "" and value not in known.split())
            for fields in self.fields["context"] or ()
            for name, value in (fields or {}).items()
        )
        return to_frame([answers.Answer(self._best([*h, *exclude], k), unread=unread) for h in histories], users)

    def search(self, texts, k=10, *, histories=None, exclude=(), allow=None, categories=()):
        self.filters.append((allow, categories))
        self.calls.append(("search", texts, k, histories, exclude))
        return to_frame([self._best([*history, *exclude], k) for history in histories or [[]]])

    def reading(self, text):
        return None if text == "hashed" else Reading({"LATIN": 1.0}, (), float(not text.isascii()), 0.25)

    def rank(self, history, items, ratings=None, **fields):
        self.fields = fields
        self.calls.append(("rank", history, items, ratings))
        known = [i for i in items if i in "abcde"]
        rated = [Ranked(i, f"Title {i}", 1 / len(known), self.rating) for i in sorted(known)]
        return rated + [Ranked(i, i, 0.0) for i in items if i not in known]

    def similar(self, items, k=10, *, allow=None, categories=()):
        self.filters.append((allow, categories))
        self.calls.append(("similar", items, k))
        return to_frame([self._best([item], k) for item in items])

    def related(self, items, k=10):
        self.calls.append(("related", items, k))
        return to_frame([[] if item == "e" else self._best([item], k) for item in items])

    def title(self, item):
        return f"Title {item}"

    def interests(self, history, ratings, k, *, event_fields):
        print("chatter of a library")
        self.fields = {"event_fields": event_fields}
        self.calls.append(("interests", history, ratings, k))
        known = [i for i in history if i in "abcde"][:k]
        return [Interest(f"about {i}", 1 / len(known), i, "broad", "rising") for i in known]


@dataclass
class FakeRun:
    folder: Path
    metrics: dict = field(default_factory=lambda: METRICS)

    @property
    def name(self):
        return self.folder.name


@dataclass
class FakeTrial:
    number: int
    state: str
    selection: float | None
    settings: dict
    metrics: dict


@dataclass
class FakeSearch:
    folder: Path
    trials: list
    importance: dict

    @property
    def best_config(self):
        return self.folder / "best.yaml"

    @property
    def fit_command(self):
        return f"tfllmrec fit {self.best_config} --out {self.folder}-best"

    @property
    def ranking(self):
        return sorted((t for t in self.trials if t.state == "complete"), key=lambda t: -t.selection)

    def as_json(self):
        return {"best": self.ranking[0].number}


@dataclass
class Libraries:
    """What the commands called, and what the stand-ins should do."""

    fitted: list = field(default_factory=list)
    tuned: list = field(default_factory=list)
    measured: list = field(default_factory=list)
    exported: list = field(default_factory=list)
    boards: list = field(default_factory=list)
    indexes: list = field(default_factory=list)
    models: list = field(default_factory=list)
    manifest: dict = field(default_factory=dict)
    raises: BaseException | None = None


@pytest.fixture
def libraries(monkeypatch):
    log = Libraries()

    def module(name, **content):
        made = types.ModuleType(name)
        made.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, made)

    def fit_experiment(config, out=None, *, base=Path(), resume=False):
        print("chatter of a library")
        log.fitted.append((config, out, base, resume))
        out = out or Path("runs/made")
        out.mkdir(parents=True, exist_ok=True)
        if not resume:
            (out / "config.yaml").write_text("seed: 42\n")
        if log.raises:
            raise log.raises
        (out / "metrics.json").write_text("{}")
        return FakeRun(out)

    def search(out):
        print("chatter of a library")
        if log.raises:
            raise log.raises
        figures = {"ndcg@10": 0.2, "recall@10": 0.4, "recall@10/tail": None}
        return FakeSearch(
            out or Path("runs/tune"),
            [
                FakeTrial(1, "complete", 0.12345, {"model.dropout": 0.123456, "model.blocks": 2}, figures),
                FakeTrial(2, "pruned", 0.05, {"model.dropout": 0.5, "model.blocks": 1}, figures),
                FakeTrial(3, "complete", 0.23456, {"model.dropout": 0.3, "model.blocks": 3}, figures),
            ],
            {"model.dropout": 0.75, "model.blocks": 0.25},
        )

    def tune(config, out=None, *, base=Path(), space=None, trials=20):
        log.tuned.append((config, out, base, [str(setting) for setting in space], trials))
        if out:
            out.mkdir(parents=True)
        return search(out)

    def go_on(out, trials=None, **allowed):
        log.tuned.append((out, trials, *allowed.values()))
        return search(out)

    def measure(path, refit_baselines=False):
        print("chatter of a library")
        log.measured.append((path, refit_baselines))
        return METRICS

    def export(run, target, new_items=None, *, index="auto"):
        print("chatter of a library")
        version = target / str(len(log.exported) + 1)
        log.exported.append((run, target))
        log.indexes.append(index)
        (version / "assets.extra").mkdir(parents=True)
        (version / "saved_model.pb").touch()
        counts = (
            {"file": new_items.name, "added": 1200, "replaced": 1, "unchanged": 0, "dropped": 3} if new_items else None
        )
        (version / "assets.extra" / "tfllmrec.json").write_text(json.dumps({"new_items": counts}))
        return version

    class Opener:
        @staticmethod
        def open(path):
            versions = sorted(Path(path).glob("[0-9]"))
            if not versions and not (Path(path) / "saved_model.pb").exists():
                raise ModelError(f"{path} contains no SavedModel")
            folder = versions[-1] if versions else Path(path)
            manifest = {"run": str(log.exported[-1][0].resolve()), "metrics": METRICS} if log.exported else log.manifest
            log.models.append(FakeModel(folder, manifest))
            return log.models[-1]

    module("tfllmrec.runs.experiment", fit_experiment=fit_experiment)
    module("tfllmrec.runs.run", Run=FakeRun)
    module("tfllmrec.explain.board", write_board=log.boards.append)
    module("tfllmrec.runs.search", tune=tune, resume=go_on, TRIALS=20)
    module("tfllmrec.serving.measure", measure=measure)
    module("tfllmrec.serving.export", export=export)
    module("tfllmrec.serving.saved_model", SavedModel=Opener)
    return log


@pytest.fixture
def saved_model(tmp_path):
    """``NAME`` with versions 2 and 10, and an unfinished 11."""
    for version in ("2", "10"):
        (tmp_path / "made" / version).mkdir(parents=True)
        (tmp_path / "made" / version / "saved_model.pb").touch()
    (tmp_path / "made" / "11").mkdir()
    return tmp_path / "made"


@pytest.fixture
def found():
    """(item id, title, score, reason)... -> the recommendations of one query."""
    return lambda *lines: to_frame([[Recommendation(*line) for line in lines]])
