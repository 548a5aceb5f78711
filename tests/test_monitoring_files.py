"""Tests that alert rules and dashboard are valid, and that a running server has each metric and label they name."""

import asyncio
import json
import re
import shutil
import subprocess
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import pytest
import yaml
from logged_lists import requests_in

from tfllmrec.client.client import PORTS
from tfllmrec.server.batching import Joining
from tfllmrec.server.lists import Items
from tfllmrec.server.tensors import STRING, Signature, TensorSpec

DEPLOY = Path(__file__).parents[1] / "deploy"
RULES = [rule for group in yaml.safe_load((DEPLOY / "alerts.yaml").read_text())["groups"] for rule in group["rules"]]
BOARD = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = {f"alert {rule['alert']}": rule["expr"] for rule in RULES} | {
    f"panel {panel['title']} {target['refId']}": target["expr"] for panel in PANELS for target in panel["targets"]
}

# PromQL ---------------------------------------------------------------------------------------------------------------

_TOKEN = re.compile(
    r"""(?P<space>\s+)|(?P<text>"(?:[^"\\]|\\.)*")|(?P<number>\d+(?:\.\d*)?(?:e[+-]?\d+)?(?![a-z])|\d+[smhdwy])"""
    r"""|(?P<name>[A-Za-z_:$][\w:$]*)|(?P<sign>=~|!~|!=|==|>=|<=|[-+*/%^<>=(){}\[\],])"""
)
_WORDS = {"and", "or", "unless", "offset", "bool"}
_GROUPING = {"by", "without", "on", "ignoring", "group_left", "group_right"}


def tokens(expression):
    at, found = 0, []
    while at < len(expression):
        token = _TOKEN.match(expression, at)
        assert token, f"not PromQL: {expression[at:]!r}"
        at = token.end()
        if token.lastgroup != "space":
            found.append((token.lastgroup, token.group()))
    return found


def parse(expression):
    """Returns the selectors (name, [(label, sign, value)]) and the grouping labels of a PromQL expression."""
    found, selectors, labels, at = tokens(expression), [], set(), 0
    text = [token for _, token in found]
    assert all(text.count(a) == text.count(b) for a, b in ("()", "{}", "[]"))

    def upto(closing, at):
        end = text.index(closing, at)
        return text[at + 1 : end], end + 1

    while at < len(found):
        kind, token = found[at]
        following = text[at + 1] if at + 1 < len(text) else ""
        at += 1
        if kind != "name" or token in _WORDS:
            continue
        if token in _GROUPING:
            if following == "(":
                inside, at = upto(")", at)
                labels |= set(inside) - {","}
            continue
        if following == "(" or (following in ("by", "without")):
            continue  # a function
        matchers = []
        if following == "{":
            inside, at = upto("}", at)
            parts = [part for part in inside if part != ","]
            matchers = [(parts[n], parts[n + 1], json.loads(parts[n + 2])) for n in range(0, len(parts), 3)]
        selectors.append((token, matchers))
    return selectors, labels


def test_the_parser_of_queries():
    selectors, labels = parse(
        'sum by (a, le) (rate(:x:y{b=~"c|d", e!="f,}"}[5m] offset 1d)) / on (g) group_left (h) z > 2e9 unless up'
    )
    assert selectors == [(":x:y", [("b", "=~", "c|d"), ("e", "!=", "f,}")]), ("z", []), ("up", [])]
    assert labels == {"a", "le", "g", "h"}
    with pytest.raises(AssertionError, match="not PromQL"):
        parse("a & b")


# A running server -----------------------------------------------------------------------------------------------------

IDS, K = TensorSpec(STRING, (None, None)), TensorSpec(np.dtype(np.int32), (None,))
LIST = Signature(
    {"history": IDS, "context": IDS},
    {"item_ids": IDS, "scores": TensorSpec(np.dtype(np.float32), (None, None)), "unknown": K},
    {"context": np.array([[b""]], object)},
)


class Fake:
    """A stand-in for a model's process that lists the history backwards; it does not know the item ``x``.

    Version 2 cannot be loaded.
    """

    alive = True
    metadata = {}  # noqa: RUF012
    definitions = {}  # noqa: RUF012
    items = Items()

    def __init__(self, folder, calls=1):
        if folder.name == "2":
            raise OSError("damaged")
        self.signatures = {"serving_default": LIST}
        self.joining = {"serving_default": Joining(LIST, False)}
        self.calls = {"serving_default": self.answer}

    def answer(self, inputs):
        history = inputs["history"]
        return {
            "item_ids": history[:, ::-1],
            "scores": np.ones(history.shape, np.float32),
            "unknown": (history == b"x").sum(axis=1).astype(np.int32),
        }

    def close(self):
        pass


def samples(page):
    """Returns the labels of each series by the name of the metric."""
    found = {}
    for line in page.splitlines():
        if line and line[0] != "#":
            name, labels = re.fullmatch(r"([\w:]+)(?:\{(.*)\})? \S+", line).groups()
            found.setdefault(name, []).append(dict(re.findall(r'([\w]+)="((?:[^"\\]|\\.)*)"', labels or "")))
    return found


@pytest.fixture(scope="module")
def page(serving, tmp_path_factory):
    """The content of /metrics after some requests, events and failures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tfllmrec.server.engine.ModelProcess", Fake)
        folder = tmp_path_factory.mktemp("served")
        for version in ("1", "2"):
            (folder / "models" / "shop" / version).mkdir(parents=True)
            (folder / "models" / "shop" / version / "saved_model.pb").write_text("x")
        config = folder / "models.config"
        config.write_text(
            'model_config_list { config { name: "shop" base_path: "%s" model_platform: "tensorflow" '
            "model_version_policy { all {} } version_labels { key: 'stable' value: 1 } } }"
            % (folder / "models" / "shop")
        )
        with serving(config, log=folder / "log") as server:
            at = f"http://127.0.0.1:{server.rest_port}"

            def ask(history, request):
                body = {"inputs": {"history": [history], "context": [["user_id=u"]]}}
                path = f"{at}/v1/models/shop/versions/1:predict"
                return httpx.post(path, json=body, headers={"x-request-id": request}, timeout=30)

            assert [ask(*each).status_code for each in ((["a", "x"], "r1"), ([""], "r2"), ((["b"]), "r1"))] == [200] * 3
            assert httpx.post(f"{at}/v1/models/shop:predict", content="{", timeout=30).status_code == 400
            for request, item in (("r1", "a"), ("r1", "a"), ("r9", "a"), ("r1", "z")):
                event = {
                    "user_id": "u",
                    "item_id": item,
                    "kind": "click",
                    "request_id": request,
                    "event_id": request + item,
                }
                assert httpx.post(f"{at}/v1/events", json={"events": [event, {}]}, timeout=30).status_code == 200
            assert httpx.post(f"{at}/v1/events", content="{", timeout=30).status_code == 400

            async def until():
                while b"tfllmrec_version_loads_total" not in server.engine.metrics.page():
                    await asyncio.sleep(0.01)

            asyncio.run(asyncio.wait_for(until(), 30))
            return httpx.get(f"{at}/monitoring/prometheus/metrics", timeout=30).text


@pytest.fixture(scope="module")
def series(page):
    return samples(page)


def value(page, line):
    (found,) = re.findall(rf"^{re.escape(line)} (\S+)$", page, flags=re.MULTILINE)
    return float(found)


def test_requests_lists_and_events_are_counted(page):
    of_list = 'model_name="shop",signature="serving_default",version="1"'
    for name, expected in {
        f"tfllmrec_answer_seconds_count{{{of_list}}}": 3,
        f"tfllmrec_list_items_sum{{{of_list}}}": 2 + 0 + 1,
        f"tfllmrec_history_ids_sum{{{of_list}}}": 2 + 0 + 1,
        f'tfllmrec_list_items_bucket{{le="0.0",{of_list}}}': 1,
        f"tfllmrec_empty_lists_total{{{of_list}}}": 1,
        f"tfllmrec_lists_without_history_total{{{of_list}}}": 1,
        f"tfllmrec_unknown_ids_total{{{of_list}}}": 1,
        'tfllmrec_listed_items_total{model_name="shop",signature="serving_default",stratum="unknown",version="1"}': 3,
        'tfllmrec_logged_items_total{model_name="shop",policy="recommend",version="1"}': 2,
        'tfllmrec_used_items_total{model_name="shop",policy="recommend",version="1"}': 1,  # r1 and a, once
        'tfllmrec_events_by_kind_total{kind="click"}': 4,
        'tfllmrec_event_requests_total{status="OK"}': 4,
        'tfllmrec_event_requests_total{status="INVALID_ARGUMENT"}': 1,
        'tfllmrec_shown_items_total{outcome="dropped"}': 1,  # the second r1
        'tfllmrec_version_available{model_name="shop",version="1"}': 1,
        'tfllmrec_version_label{label="stable",model_name="shop",version="1"}': 1,
    }.items():
        assert value(page, name) == expected, name
    assert 0 < value(page, f"tfllmrec_answer_seconds_sum{{{of_list}}}") < 30
    assert value(page, "tfllmrec_event_log_bytes") > 4096
    assert value(page, "tfllmrec_last_event_timestamp_seconds") > 1.7e9
    assert value(page, "tfllmrec_last_list_timestamp_seconds") > 1.7e9


#: Metrics of Prometheus itself with their labels, and the labels that it adds to the metrics that it reads.
OF_PROMETHEUS, ADDED = {"up": {"job", "instance"}}, {"job", "instance"}


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_each_query_names_metrics_and_labels_of_a_running_server(name, series):
    expression = EXPRESSIONS[name].replace("$__rate_interval", "5m")
    selectors, grouped = parse(expression)
    assert selectors
    known = set(ADDED)
    for metric, matchers in selectors:
        assert metric in series or metric in OF_PROMETHEUS, f"{metric} is not in /metrics"
        found = series.get(metric, [{}])
        labels = {label for each in found for label in each} | ADDED
        known |= labels
        for label, sign, wanted in matchers:
            assert label in labels, f"{metric} has no label {label}"
            if sign == "=" and label not in ADDED:
                assert wanted in {each[label] for each in found}, f"{metric} never has {label}={wanted}"
            if sign == "=~" and not wanted.startswith("$"):
                assert any(re.fullmatch(wanted, each[label]) for each in found)
    assert grouped <= known, f"{grouped - known} is no label of {[metric for metric, _ in selectors]}"


def test_placeholders_of_legends_and_annotations_are_labels_of_the_result(series):
    """``sum by (a)`` leaves only ``a``; without an aggregation a result has the labels of its metric."""
    said = {f"alert {rule['alert']}": re.findall(r"\$labels\.(\w+)", str(rule["annotations"])) for rule in RULES}
    for panel in PANELS:
        for target in panel["targets"]:
            said[f"panel {panel['title']} {target['refId']}"] = re.findall(r"{{(\w+)}}", target["legendFormat"])
    for name, placeholders in said.items():
        selectors, _ = parse(EXPRESSIONS[name].replace("$__rate_interval", "5m"))
        kept = {label for metric, _ in selectors for each in series.get(metric, [{}]) for label in each} | ADDED
        aggregated = re.findall(r"\bby \(([^)]*)\)", EXPRESSIONS[name])
        if aggregated:
            kept = set(re.split(r",\s*", aggregated[0]))
        elif "sum(" in EXPRESSIONS[name]:
            kept = set()
        assert set(placeholders) <= kept, name


@pytest.mark.tf
@pytest.mark.slow
@pytest.mark.long
def test_a_real_model_is_counted_by_stratum(chain_version, serving, tmp_path):
    """Tests the model's process, which reads the strata, together with the server's process."""
    items = pd.read_parquet(chain_version / "assets.extra" / "items.parquet").set_index("item_id")["stratum"]
    with serving(chain_version.parent, log=tmp_path / "log") as server:
        body = {"inputs": {"history": [["i1", "nobody"]], "ratings": [[5, 5]], "exclude": [["i2"]], "k": [9]}}
        at = f"http://127.0.0.1:{server.rest_port}"
        answer = httpx.post(f"{at}/v1/models/chain:predict", json=body, timeout=120).json()["outputs"]
        page = httpx.get(f"{at}/monitoring/prometheus/metrics", timeout=30).text
    shown = items[answer["item_ids"][0]].value_counts().to_dict()
    of_list = 'model_name="chain",signature="serving_default"'
    for stratum, expected in shown.items():
        assert value(page, f'tfllmrec_listed_items_total{{{of_list},stratum="{stratum}",version="1"}}') == expected
    assert value(page, f'tfllmrec_unknown_ids_total{{{of_list},version="1"}}') == 1
    (asked,) = requests_in(tmp_path / "log")
    assert (asked.history_ids, asked.unknown_ids, asked.listed) == (2, 1, 9)
    assert asked.best_score == pytest.approx(max(answer["scores"][0]), rel=1e-5)


# The programs that read the files -------------------------------------------------------------------------------------


def test_the_rules_are_what_prometheus_reads():
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert set(rule["annotations"]) == {"summary", "action"}
        assert re.fullmatch(r"\d+[smh]", rule.get("for", "1m"))
    config = yaml.safe_load((DEPLOY / "prometheus.yaml").read_text())
    (job,) = config["scrape_configs"]
    assert config["rule_files"] == ["alerts.yaml"] and job["job_name"] == "tfllmrec"
    assert job["static_configs"] == [{"targets": [f"localhost:{PORTS['http']}"]}]
    from tfllmrec.server.metrics import PATH

    assert job["metrics_path"] == PATH
    jobs = {
        matcher[2] for each in EXPRESSIONS.values() for _, m in parse(each)[0] for matcher in m if matcher[0] == "job"
    }
    assert jobs == {"tfllmrec"}


def test_the_dashboard_is_what_grafana_imports():
    assert BOARD["schemaVersion"] >= 36 and BOARD["uid"] and BOARD["title"] and "id" not in BOARD
    (given,) = BOARD["__inputs"]
    assert (given["type"], given["pluginId"]) == ("datasource", "prometheus")
    source = {"type": "prometheus", "uid": f"${{{given['name']}}}"}
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken = set()
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken and place["x"] + place["w"] <= 24, panel["title"]
        taken |= cells
    for panel in PANELS:
        defaults = panel["fieldConfig"]["defaults"]
        assert panel["type"] in ("timeseries", "stat") and panel["datasource"] == source and defaults["unit"]
        steps = defaults["thresholds"]["steps"]
        assert steps[0]["value"] is None and [s["value"] for s in steps[1:]] == sorted(s["value"] for s in steps[1:])
        assert all(target["datasource"] == source and target["refId"] for target in panel["targets"])
    required = {each["id"] for each in BOARD["__requires"]}
    assert {panel["type"] for panel in PANELS} <= required
    (variable,) = BOARD["templating"]["list"]
    used = set(re.findall(r"\$(\w+)", " ".join(target["expr"] for panel in PANELS for target in panel["targets"])))
    assert used == {variable["name"], "__rate_interval"}


def test_the_variable_of_the_dashboard_is_a_label_of_a_running_server(series):
    metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", BOARD["templating"]["list"][0]["definition"]).groups()
    assert all(label in each for each in series[metric])


CLICKS = """
rule_files: [{rules}]
evaluation_interval: 5m
tests:
  - interval: 5m
    input_series:
      - series: 'tfllmrec_logged_items_total{{model_name="shop",version="1",policy="recommend",instance="a"}}'
        values: '0+1000x600'
      - series: 'tfllmrec_used_items_total{{model_name="shop",version="1",policy="recommend",instance="a"}}'
        values: '0+100x300 {later}'
      - series: 'tfllmrec_last_event_timestamp_seconds{{instance="a"}}'
        values: '0x600'
    alert_rule_test:
      - eval_time: 40h
        alertname: TfllmrecClickRateFell
        exp_alerts: {alerts}
      - eval_time: 40h
        alertname: TfllmrecNoEvents
        exp_alerts: []
"""
FIRED = """
          - exp_labels: {severity: critical, model_name: shop}
            exp_annotations:
              summary: "The click-through rate of shop is 5%, under 70 % of a day ago."
              action: Run 'tfllmrec monitor LOG --since 3h --model MODEL'. Roll back if it is one version.
"""
promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool (apt-get install prometheus) is absent"
)


@promtool
def test_promtool_takes_the_files():
    for words in (["check", "rules", DEPLOY / "alerts.yaml"], ["check", "config", DEPLOY / "prometheus.yaml"]):
        done = subprocess.run(["promtool", *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@promtool
@pytest.mark.parametrize(("later", "alerts"), [("30050+50x299", FIRED), ("30100+100x299", "[]")])
def test_a_fallen_click_rate_is_an_alert_and_a_steady_one_is_none(tmp_path, later, alerts):
    (tmp_path / "tests.yaml").write_text(CLICKS.format(rules=DEPLOY / "alerts.yaml", later=later, alerts=alerts))
    done = subprocess.run(["promtool", "test", "rules", tmp_path / "tests.yaml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
