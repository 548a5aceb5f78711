"""Which models to serve: a folder, or TF Serving's ``models.config``."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tfllmrec.errors import ConfigError
from tfllmrec.serving.layout import version_folders

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelSource:
    """One model: where its version folders are, and which of them to serve.

    Attributes:
      base: the folder with ``1``, ``2``, ...
      policy: ``latest``: the newest ``latest`` that can be loaded; ``all``; ``specific``: those in ``versions``.
      labels: such as ``{"stable": 41, "canary": 42}``.
    """

    name: str
    base: Path
    policy: Literal["latest", "all", "specific"] = "latest"
    latest: int = 1
    versions: tuple[int, ...] = ()
    labels: dict[str, int] = field(default_factory=dict)


def read_sources(path: Path, known: Iterable[ModelSource] = ()) -> list[ModelSource]:
    """What a path means: a ``models.config``, one model's folder, or a folder of models.

    Args:
      known: what it meant before: such a folder stays a model while it has no versions, as between ``rm`` and export.

    Raises:
      ConfigError: nothing is there, or the file is wrong.
      OSError: the folder cannot be read.
    """
    if path.is_file():
        return read_models_config(path)
    if not path.is_dir():
        raise ConfigError(
            f"{path} is not there: expected a folder of models such as saved_models/, one model's folder, or a "
            "models.config."
        )
    if version_folders(path):
        return [ModelSource(path.resolve().name, path)]
    bases = {source.base for source in known}
    folders = sorted(folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    sources = [ModelSource(folder.name, folder) for folder in folders if folder in bases or _has_versions(folder)]
    return sources or ([ModelSource(path.resolve().name, path)] if path in bases else [])


def _has_versions(folder: Path) -> bool:
    try:
        return bool(version_folders(folder))
    except OSError as error:
        _pass_over(folder, str(error))
        return False


@functools.cache  # said once, not with each look
def _pass_over(folder: Path, why: str) -> None:
    logger.warning("%s is passed over: it cannot be read: %s", folder, why)


def read_models_config(path: Path) -> list[ModelSource]:
    """TF Serving's ``--model_config_file``: a ``ModelServerConfig`` in protobuf's text format.

    A relative ``base_path``, which TF Serving refuses, starts from the file's folder.

    Raises:
      ConfigError: naming the file and line, or the model and field, that are wrong.
    """
    from google.protobuf import text_format
    from tensorflow_serving.config import model_server_config_pb2

    try:
        text = path.read_text(encoding="utf-8")
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
    """The models of a ``ModelServerConfig``.

    Raises:
      ConfigError: it has no list of models, or one of them cannot be served here.
    """
    if message.WhichOneof("config") != "model_config_list":
        raise ConfigError("expected a model_config_list { config { name: ... base_path: ... } }.")
    sources: list[ModelSource] = []
    for model in message.model_config_list.config:
        if not model.name or not model.base_path:
            raise ConfigError(f"model {model.name!r} with base_path {model.base_path!r}: expected both.")
        if "/" in model.name or ":" in model.name:
            raise ConfigError(f"model {model.name!r}: a name has no '/' or ':'.")
        if any(source.name == model.name for source in sources):
            raise ConfigError(f"model {model.name!r} is listed twice.")
        if model.model_platform != "tensorflow":
            raise ConfigError(
                f"model {model.name!r}: expected model_platform: 'tensorflow', got {model.model_platform!r}."
            )
        if "://" in model.base_path:
            raise ConfigError(f"model {model.name!r}: base_path {model.base_path!r} is no folder of this machine.")
        sources.append(_source(model, relative_to))
    return sources


def _source(model: Any, relative_to: Path) -> ModelSource:
    base, labels = relative_to / model.base_path, dict(model.version_labels)
    policy = model.model_version_policy
    match policy.WhichOneof("policy_choice"):
        case "all":
            return ModelSource(model.name, base, "all", labels=labels)
        case "specific":
            if not policy.specific.versions:
                raise ConfigError(f"model {model.name!r}: specific {{ versions: ... }} names no version.")
            return ModelSource(model.name, base, "specific", versions=tuple(policy.specific.versions), labels=labels)
        case _:
            return ModelSource(model.name, base, "latest", max(policy.latest.num_versions, 1), labels=labels)
