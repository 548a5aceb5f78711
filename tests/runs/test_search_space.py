import os
import subprocess
import sys

import pytest

from tfllmrec.config import ExperimentConfig, ModelConfig, TrainingConfig
from tfllmrec.errors import ConfigError
from tfllmrec.runs.search_space import (
    DEFAULT,
    Choice,
    Range,
    default_space,
    distinct,
    parse_space,
    require_optuna,
    value_of,
    with_settings,
)


@pytest.fixture
def config():
    return ExperimentConfig()


@pytest.mark.parametrize(
    ("line", "setting"),
    [
        ("model.dropout=0.1..0.5", Range("model.dropout", 0.1, 0.5)),
        ("model.dropout=0..0.5", Range("model.dropout", 0.0, 0.5)),
        (" training.learning_rate = 1e-4..1e-2:log", Range("training.learning_rate", 1e-4, 1e-2, log=True)),
        ("model.history_length=5..50:log", Range("model.history_length", 5, 50, log=True)),
        ("training.epochs=2..4", Range("training.epochs", 2, 4)),
        ("model.blocks=1,2, 3", Choice("model.blocks", (1, 2, 3))),
        ("model.blocks=1,2,1", Choice("model.blocks", (1, 2))),
        ("model.dropout=1e-3,0", Choice("model.dropout", (0.001, 0.0))),
        ("training.negatives=null,4096", Choice("training.negatives", (None, 4096))),
        ("training.precision=float32,mixed_bfloat16", Choice("training.precision", ("float32", "mixed_bfloat16"))),
        ("model.terms=[meaning],[meaning,behaviour]", Choice("model.terms", (["meaning"], ["meaning", "behaviour"]))),
    ],
)
def test_a_line_is_read_and_written(config, line, setting):
    assert parse_space([line], config) == (setting,)
    assert parse_space([str(setting)], config) == (setting,)
    values = [setting.low, setting.high] if isinstance(setting, Range) else setting.values
    assert all(type(value) is type(values[-1]) or value is None for value in values)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("model.dropuot=0.1..0.5", r"model\.dropuot is not a setting \(nearest: 'model\.dropout'\)"),
        ("dropout=0.1..0.5", r"dropout is not a setting \(nearest: 'model\.dropout'\)"),
        ("model=1,2", "--over model is not a setting"),
        (
            "model.dropout=0..1",
            r"model\.dropout: expected less than 1, got 1\.0\.\n\(of --over model\.dropout=0\.0\.\.1",
        ),
        ("model.dropout=-0.1,0.3", r"expected greater than or equal to 0, got -0\.1"),
        ("model.temperature=0.1..inf", "expected a finite number"),
        ("model.blocks=1..2.5", r"expected two whole numbers as in model\.blocks=LOW\.\.HIGH"),
        ("model.dropout=a..b", "expected two numbers"),
        ("model.dropout=0.5..0.1", "LOW below HIGH"),
        ("model.dropout=nan..0.1", "LOW below HIGH"),
        ("model.dropout=0..0.5:log", "LOW above 0 where the scale is log"),
        ("model.dropout=0.1..0.5:ln", r"LOW\.\.HIGH:log"),
        ("model.terms=1..2", "is not a number, so it has no range; list its values"),
        ("training.precision=float32,float16", "expected 'float32' or 'mixed_bfloat16', got 'float16'"),
        ("model.blocks=2", "two values or more; a single one goes with --set"),
        ("model.blocks=[1,{", "two values or more"),
        ("model.blocks", r"expected SECTION\.KEY=LOW\.\.HIGH"),
        ("model.blocks=", r"expected SECTION\.KEY=LOW\.\.HIGH"),
        ("data.name=a,b", r"only settings of model, item_weights, training are searched"),
        ("seed=1,2", r"only settings of model, item_weights, training are searched"),
        ("model.heads=2..8", "embedding_dim 128 is not a multiple of model.heads 3"),
        ("model.embedding_dim=64,66", "embedding_dim 66 is not a multiple of model.heads 4"),
    ],
)
def test_a_bad_line_says_what_was_expected(config, line, message):
    with pytest.raises(ConfigError, match=message):
        parse_space([line], config)


def test_values_that_do_not_go_together(config):
    with pytest.raises(ConfigError, match=r"embedding_dim 64 is not a multiple of model.heads 3"):
        parse_space(["model.blocks=1,2", "model.embedding_dim=96,64", "model.heads=4,3"], config)
    # The heads contradict the config's own 128, which they never meet.
    assert len(parse_space(["model.embedding_dim=96,60", "model.heads=3,6"], config)) == 2


def test_a_setting_is_given_once(config):
    with pytest.raises(ConfigError, match=r"--over model\.blocks is given twice"):
        parse_space(["model.blocks=1,2", "model.dropout=0..0.5", "model.blocks=3,4"], config)


def settle(config):
    """As for a small catalogue."""
    if config.training.negatives is None:
        config.training.negatives = 0


@pytest.mark.parametrize(
    ("line", "left"),
    [
        ("training.negatives=0,null,5", (0, 5)),
        ("training.negatives=null,5", (None, 5)),  # auto is another value here
        ("model.terms=[meaning,behaviour],[behaviour,meaning],[meaning]", (["behaviour", "meaning"], ["meaning"])),
        ("model.blocks=1,2", (1, 2)),
    ],
)
def test_values_that_mean_the_same_are_one(config, line, left):
    for before in (config, ExperimentConfig(training={"negatives": 7})):
        both = distinct(parse_space([line, "model.dropout=0..0.5"], before), before, settle)
        assert both == (Choice(line.partition("=")[0], left), Range("model.dropout", 0.0, 0.5))


def test_a_setting_with_one_meaning_is_refused(config):
    with pytest.raises(ConfigError, match=r"negatives=null, 0: expected two different values or more, found 0 alone"):
        distinct(parse_space(["training.negatives=null,0"], config), config, settle)


def test_the_usual_settings_hold_their_defaults_and_leave_out_what_is_set(config):
    space = default_space(config)
    assert [str(s).partition("=")[0] for s in space] == [line.partition("=")[0] for line in DEFAULT]
    own = {s.key: value_of(config, s.key) for s in space}
    auto = {"model.dropout": (0.2, 0.4), "model.id_dropout": (0.1, 0.3), "model.history_length": (50, 200)}
    assert {key for key, value in own.items() if value is None} == set(auto)
    assert all(value in s for s in space for value in auto.get(s.key, [own[s.key]]))
    asked = ExperimentConfig(model=ModelConfig(dropout=0.4), training=TrainingConfig(learning_rate=0.01))
    left = {s.key for s in default_space(asked)}
    assert {s.key for s in space} - left == {"model.dropout", "training.learning_rate"}


def test_nothing_left_to_search(config):
    with pytest.raises(ConfigError, match="sets everything that is usually searched"):
        default_space(ExperimentConfig.model_validate(config.model_dump()))
    with pytest.raises(ConfigError, match="trains nothing that the usual settings could change"):
        default_space(ExperimentConfig(model=ModelConfig(terms=["behaviour"])))


def test_settings_are_put_into_a_copy(config):
    changed = with_settings(config, {"model.blocks": 1, "training.learning_rate": 0.5, "model.terms": ["meaning"]})
    assert (changed.model.blocks, changed.training.learning_rate, changed.model.terms) == (1, 0.5, ["meaning"])
    assert config == ExperimentConfig()
    with pytest.raises(ConfigError, match=r"model\.blocks: expected .* got -1"):
        with_settings(config, {"model.blocks": -1})


def test_what_is_in_a_range():
    assert all(value in Range("model.blocks", 1, 3) for value in (1, 2, 3))
    assert not any(value in Range("model.blocks", 1, 3) for value in (0, 4, None))


@pytest.mark.parametrize(
    "line",
    ["model.dropout=0.1..0.5", "training.learning_rate=1e-4..1e-2:log", "model.blocks=1..3", "model.heads=1,2,4"],
)
def test_what_is_drawn_is_in_it(config, line):
    optuna = pytest.importorskip("optuna", reason="needs the extra 'tune'")
    (setting,) = parse_space([line], config)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [setting.draw(study.ask()) for _ in range(40)]
    assert all(value in setting for value in drawn)
    assert {type(value) for value in drawn} == {type(setting.ends()[0])}
    if getattr(setting, "log", False):
        # As many below the geometric mean of the ends as above it: 20 +- 3 standard deviations of sqrt(40 / 4).
        assert abs(sum(value < 1e-3 for value in drawn) - 20) < 10


def test_a_list_is_drawn_as_a_list(config):
    optuna = pytest.importorskip("optuna", reason="needs the extra 'tune'")
    (setting,) = parse_space(["model.terms=[meaning],[behaviour]"], config)
    trial = optuna.create_study().ask({})
    assert setting.draw(trial) in (["meaning"], ["behaviour"])
    assert trial.params["model.terms"] in ('["meaning"]', '["behaviour"]')


def test_without_optuna_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"needs optuna .*pip install 'tfllmrec\[tune\]'"):
        require_optuna()


def test_a_space_is_read_without_tensorflow_and_optuna():
    script = """
import sys
from tfllmrec.config import ExperimentConfig
from tfllmrec.runs.search_space import default_space
default_space(ExperimentConfig())
print([name for name in ("tensorflow", "optuna") if name in sys.modules])
"""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=env)
    assert done.stdout == "[]\n"
