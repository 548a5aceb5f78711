"""Reads which models to serve, from a folder or from TF Serving's ``models.config``."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tfllmrec.errors import ConfigError, ModelError
from tfllmrec.serving.layout import LARGEST_VERSION, ignore, version_folders
from tfllmrec.serving.promotion import PROMOTIONS, read_promotions

#: Largest number of models of one server.
MAX_MODELS = 1000
#: Largest number of versions, and of labels, that a ``models.config`` may name for one model.
MAX_VERSIONS = 100
#: The name of a model or a label in a ``models.config``; it is part of URLs, metrics and log lines.
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


@dataclass(frozen=True)
class ModelSource:
    """One model: the folder of its versions, and the versions to serve.

    Attributes:
      name: The name of the model.
      base: The folder that contains the version folders ``1``, ``2``, ...
      policy: The versions to serve. ``latest``: the newest versions that can be loaded, as many as the attribute
        ``latest``; ``all``: all versions; ``specific``: those in ``versions``.
      latest: The number of versions for the policy ``latest``.
      versions: The versions for the policy ``specific``.
      labels: The version of each label, such as ``{"stable": 41, "canary": 42}``.
    """

    name: str
    base: Path
    policy: Literal["latest", "all", "specific"] = "latest"
    latest: int = 1
    versions: tuple[int, ...] = ()
    labels: dict[str, int] = field(default_factory=dict)


def read_sources(path: Path, known: Iterable[ModelSource] = ()) -> list[ModelSource]:
    """Returns the models of a ``models.config``, of a folder of models, or of one model's folder.

    If versions of a model in a folder were promoted, they are served, with their labels; otherwise, the newest version.

    Args:
      path: The file or the folder.
      known: The models that were read before. The folder of a known model stays a model while it has no versions, for
        example between ``rm`` and the next export, and stays as it was while its promotions are damaged. Another
        model with damaged promotions is ignored, with a warning.

    Raises:
      ConfigError: ``path`` does not exist or cannot be read, a file is invalid, or there are more than ``MAX_MODELS``
        models.
    """
    try:
        if path.is_file():
            return read_models_config(path)
        if not path.is_dir():
            raise ConfigError(
                f"{path} does not exist: expected a folder of models such as saved_models/, one model's folder, or a "
                "models.config."
            )
        if version_folders(path):
            return [_source_of(path.resolve().name, path)]
        before = {source.base: source for source in known}
        folders = sorted(folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from error
    sources = []
    for folder in folders:
        if folder in before or _has_versions(folder):
            try:
                sources.append(_source_of(folder.name, folder))
            except (ConfigError, OSError) as error:  # must not stop the other models
                ignore(folder / PROMOTIONS if folder in before else folder, str(error))
                sources += [before[folder]] if folder in before else []
    if len(sources) > MAX_MODELS:
        raise ConfigError(f"{path} has {len(sources)} models: expected at most {MAX_MODELS}. Serve a models.config.")
    return sources or ([ModelSource(path.resolve().name, path)] if path in before else [])


def _source_of(name: str, folder: Path) -> ModelSource:
    """Returns the model in a folder, with its promoted versions; with the newest version if none was promoted.

    Raises:
      ConfigError: The file with the promotions is damaged.
      OSError: The folder may not be entered.
    """
    try:
        state = read_promotions(folder)
    except ModelError as error:
        raise ConfigError(str(error)) from None
    if not state.served:
        return ModelSource(name, folder)
    return ModelSource(name, folder, "specific", versions=tuple(state.served), labels=state.labels)


def _has_versions(folder: Path) -> bool:
    try:
        return bool(version_folders(folder))
    except OSError as error:
        ignore(folder, f"it cannot be read: {error}")
        return False


def read_models_config(path: Path) -> list[ModelSource]:
    """Reads a file for TF Serving's ``--model_config_file``: a ``ModelServerConfig`` in protobuf's text format.

    A relative ``base_path``, which TF Serving refuses, starts from the file's folder.

    Raises:
      ConfigError: The file is invalid; the message names the file and the line, or the model and the field.
    """
    from google.protobuf import text_format
    from tensorflow_serving.config import model_server_config_pb2

    try:
        text = path.read_text(encoding="utf-8-sig")
        message = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from error
    except text_format.ParseError as error:
        raise ConfigError(f"{path}: expected a ModelServerConfig in protobuf text format: {error}") from None
    try:
        return sources_of(message, path.parent)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def sources_of(message: Any, relative_to: Path) -> list[ModelSource]:
    """Returns the models of a ``ModelServerConfig``.

    Args:
      message: The ``ModelServerConfig``.
      relative_to: The folder from which a relative ``base_path`` starts.

    Raises:
      ConfigError: The message has no list of models or too many of them, a model is listed twice, or a model cannot be
        served by this server.
    """
    if message.WhichOneof("config") != "model_config_list":
        raise ConfigError("expected a model_config_list { config { name: ... base_path: ... } }.")
    models = message.model_config_list.config
    if len(models) > MAX_MODELS:
        raise ConfigError(f"expected at most {MAX_MODELS} models, found {len(models)}.")
    sources: dict[str, ModelSource] = {}
    for model in models:
        try:
            source = _source(model, relative_to)
        except ConfigError as error:
            raise ConfigError(f"model {_shown(model.name)}: {error}") from None
        if source.name in sources:
            raise ConfigError(f"model {source.name!r} is listed twice.")
        sources[source.name] = source
    return list(sources.values())


def require_below(sources: Iterable[ModelSource], folders: Sequence[Path]) -> None:
    """Checks that the folder of each model is one of ``folders`` or inside one; symbolic links are resolved first.

    Raises:
      ConfigError: A model is elsewhere.
    """
    roots = [Path(os.path.realpath(folder)) for folder in folders]
    for source in sources:
        base = Path(os.path.realpath(source.base))
        if not any(base.is_relative_to(root) for root in roots):
            raise ConfigError(
                f"model {source.name!r}: base_path {_shown(str(source.base))} is outside of the folder that is served: "
                f"expected a folder below {' or '.join(map(str, roots))}."
            )


def _source(model: Any, relative_to: Path) -> ModelSource:
    if not NAME.fullmatch(model.name):
        raise ConfigError(
            "expected a name of up to 128 letters, digits, '_', '.' and '-' (ASCII) that begins with a letter, a digit "
            "or '_'."
        )
    _require_tensorflow(model)
    if _logs_requests(model.logging_config):
        raise ConfigError("logging_config asks for a log of requests, which is not written here: remove it.")
    base = _base(model.base_path, relative_to)
    labels = dict(model.version_labels)
    if len(labels) > MAX_VERSIONS:
        raise ConfigError(f"expected at most {MAX_VERSIONS} version_labels, found {len(labels)}.")
    for label in labels:
        if not NAME.fullmatch(label):
            raise ConfigError(f"label {_shown(label)}: expected letters, digits, '_', '.' and '-'.")
    policy = model.model_version_policy
    versions = tuple(dict.fromkeys(policy.specific.versions))
    if len(versions) > MAX_VERSIONS:
        raise ConfigError(f"expected at most {MAX_VERSIONS} specific versions, found {len(versions)}.")
    if any(number < 0 for number in (*versions, *labels.values())):
        raise ConfigError(f"expected version numbers from 0 to {LARGEST_VERSION}, found a negative one.")
    match policy.WhichOneof("policy_choice"):
        case "all":
            return ModelSource(model.name, base, "all", labels=labels)
        case "specific":
            if not versions:
                raise ConfigError("specific { versions: ... } names no version.")
            return ModelSource(model.name, base, "specific", versions=versions, labels=labels)
        case _:
            return ModelSource(model.name, base, "latest", max(policy.latest.num_versions, 1), labels=labels)


def _require_tensorflow(model: Any) -> None:
    """Checks that the platform is TensorFlow, given by ``model_platform`` or the older ``model_type``, but not by both.

    TF Serving has the same rule.
    """
    older = model.DESCRIPTOR.fields_by_name["model_type"].enum_type.values_by_number.get(model.model_type)
    if not model.model_type:
        if model.model_platform != "tensorflow":
            raise ConfigError(f"expected model_platform: 'tensorflow', found {_shown(model.model_platform)}.")
    elif model.model_platform:
        raise ConfigError("expected model_platform or the older model_type, found both: remove model_type.")
    elif older is None or older.name != "TENSORFLOW":
        raise ConfigError(f"expected model_type: TENSORFLOW, found {older.name if older else model.model_type}.")


def _logs_requests(logging: Any) -> bool:
    """Returns whether a ``LoggingConfig`` makes TF Serving log requests, which it does not do by default."""
    sampling = logging.sampling_config
    return bool(
        sampling.sampling_rate or sampling.per_task_sampling_configs or logging.HasField("custom_logging_config")
    )


def _base(path: str, relative_to: Path) -> Path:
    if not path:
        raise ConfigError("expected a base_path.")
    local = path.removeprefix("file://") if path.startswith("file:///") else path
    if "://" in local or "\0" in local:
        raise ConfigError(f"base_path {_shown(path)} is not a folder on this machine.")
    return relative_to / local


def _shown(text: str) -> str:
    """Quotes and shortens a text for a message."""
    return repr(text if len(text) <= 200 else f"{text[:200]}...")
