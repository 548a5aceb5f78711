"""Recommendations from a served model, by REST or gRPC, without TensorFlow: see :class:`Client`."""

from .client.answers import Answer, Explanation, Interest, Ranked, Receipt, Recommendation, Refused, to_frame
from .client.client import Client
from .client.transports import ServingError
from .errors import ConfigError, DataError, ModelError, TfllmrecError
from .version import __version__

__all__ = [
    "Answer",
    "Client",
    "ConfigError",
    "DataError",
    "Explanation",
    "Interest",
    "ModelError",
    "Ranked",
    "Receipt",
    "Recommendation",
    "Refused",
    "ServingError",
    "TfllmrecError",
    "__version__",
    "to_frame",
]
