"""The space of a hyperparameter search: settings of the model and its training, each with its possible values.

The space is written with one line for each setting, as for ``tfllmrec tune --over``::

    model.dropout=0.1..0.5                      any value in between, both ends included
    training.learning_rate=1e-4..1e-2:log       the same, on a logarithmic scale: each power of ten is equally likely
    model.blocks=1,2,3                          one of these values
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from types import ModuleType
from typing import TYPE_CHECKING, Any, get_args

import yaml

from tfllmrec.config import ExperimentConfig, ItemWeightSettings, ModelConfig, Section, TrainingConfig, parse_config
from tfllmrec.errors import ConfigError, not_installed

if TYPE_CHECKING:
    import optuna

#: The sections whose settings may differ between trials. Data, split, text and measure must be the same, so that trials
#: are comparable.
SECTIONS: dict[str, type[Section]] = {
    "model": ModelConfig,
    "item_weights": ItemWeightSettings,
    "training": TrainingConfig,
}
#: The space that is searched by default. Each setting includes its default value, whatever the data.
DEFAULT = (
    "training.learning_rate=3e-4..1e-2:log",
    "training.weight_decay=1e-3..0.3:log",
    "model.dropout=0.1..0.6",
    "model.id_dropout=0..0.7",
    "model.temperature=0.02..0.2:log",
    "model.embedding_dim=64,128,256",
    "model.blocks=1,2,3",
    "model.history_length=10..400:log",
)
#: The approximate number of values of a range of whole numbers that are checked before the first trial.
CHECKED = 1000


def require_optuna() -> ModuleType:
    """Returns the module of the search library, optuna.

    Raises:
      ConfigError: Optuna is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise not_installed("'tfllmrec tune' needs optuna", error, "tune") from error
    return optuna


@dataclass(frozen=True)
class Range:
    """All numbers from ``low`` to ``high``, or all whole ones if both are ``int``.

    With ``log`` they are evenly distributed on a logarithmic scale.
    """

    key: str
    low: float
    high: float
    log: bool = False

    def __str__(self) -> str:
        return f"{self.key}={self.low!r}..{self.high!r}{':log' if self.log else ''}"

    def __contains__(self, value: Any) -> bool:
        return isinstance(value, int | float) and self.low <= value <= self.high

    def ends(self) -> Sequence[float]:
        return self.low, self.high

    def checked(self) -> Sequence[float]:
        """Returns the values that are tried on the config before the first trial."""
        if isinstance(self.low, int) and isinstance(self.high, int):
            return [*range(self.low, self.high, -(-(self.high - self.low) // CHECKED)), self.high]
        return self.ends()

    def draw(self, trial: optuna.Trial) -> float:
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(self.key, self.low, self.high, log=self.log)
        return trial.suggest_float(self.key, self.low, self.high, log=self.log)


@dataclass(frozen=True)
class Choice:
    """A choice among ``values``."""

    key: str
    values: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.key}={json.dumps(list(self.values))[1:-1]}"

    def __contains__(self, value: Any) -> bool:
        return value in self.values

    def ends(self) -> Sequence[Any]:
        return self.values

    checked = ends

    def draw(self, trial: optuna.Trial) -> Any:
        labels = [label(value) for value in self.values]
        return self.values[labels.index(trial.suggest_categorical(self.key, labels))]


Setting = Range | Choice


def label(value: Any) -> bool | int | float | str | None:
    """Returns a value as optuna and TensorBoard store it: lists as text."""
    return json.dumps(value) if isinstance(value, list) else value


def default_space(config: ExperimentConfig) -> tuple[Setting, ...]:
    """Returns the usual search space, without the settings that ``config`` sets explicitly.

    Raises:
      ConfigError: No setting is left, or the settings that are left have no effect.
    """
    if config.model.terms == ["behaviour"]:
        raise ConfigError(
            "model.terms ['behaviour'] trains nothing that the usual settings could change: name what to search, such "
            "as --over item_weights.l2=10..1000:log."
        )
    lines = []
    for line in DEFAULT:
        section, _, name = line.partition("=")[0].partition(".")
        if name not in getattr(config, section).model_fields_set:
            lines.append(line)
    if not lines:
        raise ConfigError(
            "The config sets everything that is usually searched, and what it sets is kept: name what to "
            f"search, such as --over {DEFAULT[0]}."
        )
    return parse_space(lines, config)


def parse_space(lines: Sequence[str], config: ExperimentConfig) -> tuple[Setting, ...]:
    """Reads lines such as ``model.dropout=0.1..0.5``, and tries their values on ``config``.

    Raises:
      ConfigError: A setting does not exist, occurs twice, or may not be changed by a search; a line cannot be read; or
        a setting does not accept a value, alone or in combination with another setting of the space. The message names
        it.
    """
    space = tuple(_setting(line) for line in lines)
    keys = [setting.key for setting in space]
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise ConfigError(f"--over {twice[0]} is given twice: write all its values in one.")
    first = {setting.key: setting.ends()[0] for setting in space}
    read: list[Setting] = []
    for setting in space:
        taken = [_try(config, first | {setting.key: value}, setting) for value in setting.checked()]
        # Values as the config stores them: 1 becomes 1.0 if the setting is a float.
        values = tuple(value_of(each, setting.key) for each in taken)
        if isinstance(setting, Choice):
            distinct = {label(value): value for value in values}
            if len(distinct) < 2:
                raise ConfigError(f"--over {setting}: the same value twice; a single one goes with --set.")
            setting = Choice(setting.key, tuple(distinct.values()))
        read.append(setting)
    for a, b in combinations(space, 2):
        for x, y in product(a.ends(), b.ends()):
            _try(config, first | {a.key: x, b.key: y}, a, b)
    return tuple(read)


def distinct(
    space: Sequence[Setting], config: ExperimentConfig, settle: Callable[[ExperimentConfig], object]
) -> tuple[Setting, ...]:
    """Returns the space without values that mean the same as another value of their setting, so that trials differ.

    Such values are *auto*, if it stands for another value, and the terms of a score in another order.

    Args:
      space: The search space.
      config: The config that the trials vary.
      settle: Fills in the *auto* settings of a config, in place.

    Raises:
      ConfigError: A setting has only one value left.
    """
    first = {setting.key: setting.ends()[0] for setting in space}
    kept: list[Setting] = []
    for setting in space:
        if isinstance(setting, Choice):
            values: dict[Any, Any] = {}
            for value in setting.values:
                settled = with_settings(config, first | {setting.key: value})
                settle(settled)
                meant = value_of(settled, setting.key)
                name = label(sorted(set(meant)) if isinstance(meant, list) else meant)
                if name not in values or values[name] != meant:
                    values[name] = value
            if len(values) < 2:
                raise ConfigError(
                    f"--over {setting}: expected two different values or more, found {next(iter(values))} alone, which "
                    "all of them stand for with this data. Leave the setting out, or name other values."
                )
            setting = Choice(setting.key, tuple(value for value in setting.values if value in values.values()))
        kept.append(setting)
    return tuple(kept)


def value_of(config: ExperimentConfig, key: str) -> Any:
    """Returns the value of ``config`` at ``section.name``."""
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), name)


def with_settings(config: ExperimentConfig, settings: dict[str, Any]) -> ExperimentConfig:
    """Returns a config with other values, given by ``section.name``.

    Raises:
      ConfigError: The config does not accept the values.
    """
    tree = config.model_dump(mode="json")
    for key, value in settings.items():
        section, _, name = key.partition(".")
        tree[section][name] = value
    return parse_config(tree, origin="--over")


def _setting(line: str) -> Setting:
    key, equals, text = (part.strip() for part in line.partition("="))
    expected = "expected SECTION.KEY=LOW..HIGH, LOW..HIGH:log or A,B,C"
    if not equals or not key or not text:
        raise ConfigError(f"--over {line}: {expected}, such as {DEFAULT[0]}.")
    numbers = _numbers(key)
    if ".." not in text:
        try:
            values = yaml.safe_load(f"[{text}]")
        except yaml.YAMLError:
            values = []
        distinct = {json.dumps(value, default=str): value for value in values}
        if len(distinct) < 2:
            raise ConfigError(f"--over {line}: {expected}, of two values or more; a single one goes with --set.")
        return Choice(key, tuple(distinct.values()))
    if not numbers:
        raise ConfigError(f"--over {line}: {key} is not a number, so it has no range; list its values: {key}=A,B,C.")
    bounds, colon, scale = text.partition(":")
    number = int if int in numbers else float
    try:
        low, high = (number(end) for end in bounds.split(".."))
    except ValueError:
        what = "two whole numbers" if number is int else "two numbers"
        raise ConfigError(f"--over {line}: expected {what} as in {key}=LOW..HIGH.") from None
    if (colon and scale.strip() != "log") or not low < high or (colon and low <= 0):
        raise ConfigError(f"--over {line}: {expected}, LOW below HIGH, and LOW above 0 where the scale is log.")
    return Range(key, low, high, bool(colon))


def _numbers(key: str) -> set[type]:
    """Returns the number types that a setting accepts, ``int`` and ``float``.

    Raises:
      ConfigError: There is no such setting, or a search may not change it.
    """
    section, _, name = key.partition(".")
    if section not in SECTIONS and section in ExperimentConfig.model_fields:
        raise ConfigError(
            f"--over {key}: only settings of {', '.join(SECTIONS)} are searched. All trials share data, split, "
            "text, measure and seed, or their figures could not be compared."
        )
    field = SECTIONS[section].model_fields.get(name) if section in SECTIONS else None
    if field is None:
        tree: Any = None
        for part in reversed(key.split(".")):
            tree = {part: tree}
        parse_config(tree, origin="--over")  # raises an error that names the nearest key
        raise ConfigError(f"--over {key} is not a setting.")
    kinds = set(get_args(field.annotation)) or {field.annotation}
    return {kind for kind in (int, float) if kind in kinds}


def _try(config: ExperimentConfig, settings: dict[str, Any], *tried: Setting) -> ExperimentConfig:
    try:
        return with_settings(config, settings)
    except ConfigError as error:
        raise ConfigError(*error.args, f"(of {' and '.join(f'--over {setting}' for setting in tried)})") from None
