"""A client for a model served by TF Serving or the embedded server, over REST or gRPC, without TensorFlow.

    with Client("grpc://localhost:8500", "movielens") as client:
        for item in client.recommend(["50", "172", "181"], ratings=[5, 5, 4], k=5, deadline_s=0.2):
            print(item.item_id, item.score)

REST needs urllib3; gRPC needs grpcio and protobuf. The distribution ``tfllmrec-client`` requires nothing else; it holds
these modules as the package ``tfllmrec_client``, so that ``from tfllmrec_client import Client`` works.
"""

from __future__ import annotations

import json
import math
import random
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from ..errors import ConfigError, DataError, ModelError
from .answers import (
    Answer,
    Explanation,
    Interest,
    Metadata,
    ModelVersion,
    Outputs,
    Ranked,
    Receipt,
    Recommendation,
    Signature,
    TensorSpec,
    ranked,
)
from .fields import Fields, context_inputs, event_field_inputs
from .filters import Allow, filter_inputs
from .inputs import MOST_REASONS, count_of, listed_strings, rule_inputs, searched_texts
from .ratings import rating_rows
from .transports import Grpc, Rest, Security, ServingError, Target, Transport, reading

T = TypeVar("T")

# Errors that another attempt may avoid: a busy server, a server that is being replaced, a lost connection. Retries are
# safe, because all calls only read, except that of events, which the log stores once.
RETRYABLE = {"UNAVAILABLE", "RESOURCE_EXHAUSTED"}
BACKOFF_S, LONGEST_BACKOFF_S = 0.05, 2.0

MAX_ANSWER_MB = 2047  # gRPC counts the bytes of a message in an int32

#: Inputs of the full signatures that hold numbers; all others hold strings.
NUMBERS = ("ratings", "diversity", "category_cap", "tail_share", "reasons")

PORTS = {"http": 8501, "https": 8501, "grpc": 8500, "grpcs": 8500}


class Client:
    """A client for one model. Safe to share between threads; reuse it, because it keeps its connections open.

    A call fails with :class:`ServingError` when its deadline has passed, at the latest. Until then, temporary errors
    (``UNAVAILABLE`` or 503, ``RESOURCE_EXHAUSTED`` or 429, a lost connection) are retried after a random part of a
    pause that doubles each time ("full jitter": M. Brooker, Exponential Backoff And Jitter, AWS Architecture Blog,
    2015), so that clients that failed together do not retry together. A server's ``Retry-After`` is added to the pause.

    Every call sends an id (``X-Request-Id``, in gRPC ``x-request-id``), the same one with each attempt. Answers and
    errors hold it as ``request_id``; if the server answers with another id, they hold that one.

    Every row that is sent begins with padding: an empty id, a NaN rating. The model skips padding at any position.
    TF Serving's batching needs it: with ``pad_variable_length_inputs``, it pads the shorter requests of a batch with
    *their own first value*, which would otherwise repeat the first item of the history.

    REST requires every input of a signature, but exports by different versions of tfllmrec differ in the inputs of
    ``explain``, ``rank``, ``score`` and the full signatures, such as ``recommend_full``. Therefore the first call of
    one of these signatures requests the metadata, and inputs that are not set are sent with default values. A call that
    sets an input which the model does not have raises a :class:`ModelError`.

    Args:
      address: ``http://HOST[:8501]``, ``https://``, ``grpc://HOST[:8500]`` or ``grpcs://`` (with TLS). Over HTTP a path
        is kept as a prefix. If a gRPC name resolves to several machines, calls are spread over them in turn.
      model: The model's name in the server's configuration.
      version: The number of the version to ask; without ``version`` and ``label``, the server
        chooses: the newest version, or with ``--canary-share`` the stable version or the canary.
      label: The label of the version to ask, instead of ``version``.
      deadline_s: The deadline of calls that do not set one.
      retries: The number of attempts after the first.
      connections: Over HTTP, the number of connections kept open and of concurrent calls; further calls wait. gRPC
        sends all calls through one connection to each machine.
      max_answer_mb: The largest accepted answer, above 0 and at most 2047.
      token: Sent as ``Authorization: Bearer``; without TLS anyone on the network path can read it.
      ca_file: PEM certificates to trust instead of the system's (gRPC: instead of those that come with grpcio).
      cert_file: The client's own PEM certificate, for servers that require one; set together with ``key_file``.
      key_file: The private key of ``cert_file``.

    Raises:
      ConfigError: The address is invalid, a file cannot be read, or the settings contradict each other.
    """

    def __init__(
        self,
        address: str,
        model: str,
        *,
        version: int | None = None,
        label: str | None = None,
        deadline_s: float = 5.0,
        retries: int = 3,
        connections: int = 8,
        max_answer_mb: float = 128.0,
        token: str | None = None,
        ca_file: Path | str | None = None,
        cert_file: Path | str | None = None,
        key_file: Path | str | None = None,
    ) -> None:
        if version is not None and label is not None:
            raise ConfigError(f"A version ({version}) and a label ({label!r}) were given: expected one, or neither.")
        if label == "":
            raise ConfigError("An empty label was given: expected the name of a label, or None.")
        if not model:
            raise ConfigError("No model: expected the name that the server's configuration gives it.")
        if deadline_s <= 0 or retries < 0 or connections < 1 or not 0 < max_answer_mb <= MAX_ANSWER_MB:
            raise ConfigError(
                f"deadline_s={deadline_s}, retries={retries}, connections={connections}, "
                f"max_answer_mb={max_answer_mb}: expected a deadline above 0, at least 0 retries, at least 1 "
                f"connection, and an answer of more than 0 and at most {MAX_ANSWER_MB} MB."
            )
        if (cert_file is None) != (key_file is None):
            raise ConfigError("cert_file and key_file belong together: expected both, or neither.")
        try:
            parts = urlsplit(address)
            scheme, host, port = parts.scheme, parts.hostname, parts.port
        except ValueError as error:
            raise ConfigError(f"The address {address!r} is not valid: {error}.") from error
        if scheme not in PORTS or not host or parts.query or parts.fragment or parts.username is not None:
            raise ConfigError(
                f"The address {address!r} is not valid: expected http://HOST:8501, https://HOST, grpc://HOST:8500 or "
                "grpcs://HOST."
            )
        tls = scheme in ("https", "grpcs")
        files = [None if file is None else Path(file) for file in (ca_file, cert_file, key_file)]
        if not tls and any(files):
            raise ConfigError(f"Certificates were given, but {address} is without TLS: expected {scheme}s://.")
        security = Security(tls, token, *files)
        target = Target(model, version, label)
        port = port or PORTS[scheme]
        max_answer_bytes = int(max_answer_mb * 2**20)
        self.address = address
        self.model = model
        self.deadline_s = deadline_s
        self.retries = retries
        self._closed = False
        self._known: dict[str, Signature] = {}
        self._transport: Transport
        if scheme.startswith("http"):
            self._transport = Rest(host, port, parts.path.rstrip("/"), target, security, connections, max_answer_bytes)
        else:
            if parts.path.strip("/"):
                raise ConfigError(f"The address {address!r} has a path, which gRPC has not: expected {scheme}://HOST.")
            self._transport = Grpc(host, port, target, security, max_answer_bytes)

    def recommend(
        self,
        history: Sequence[str],
        ratings: Sequence[float | None] | None = None,
        exclude: Sequence[str] = (),
        k: int = 10,
        *,
        allow: Allow = None,
        categories: Sequence[str] = (),
        context: Fields | None = None,
        event_fields: Sequence[Fields | None] | None = None,
        diversity: float = 0.0,
        pinned: Sequence[str] = (),
        category_cap: int = 0,
        tail_share: float = 0.0,
        skip: Sequence[str] = (),
        label_weights: Mapping[str, float] | None = None,
        titles: bool = False,
        reasons: bool = False,
        deadline_s: float | None = None,
    ) -> Answer[Recommendation]:
        """Returns the best ``k`` items for one user.

        Args:
          history: Item ids, oldest first.
          ratings: One for each item of the history; None or NaN if there is none.
          exclude: Items to exclude, in addition to the history. Items of the history may be recommended again in
            three cases: their events have a kind of weight 0, the data has ``data.repeats=all``, or ``skip`` has
            ``exclusion``.
          k: The number of items to return.
          allow: The only ids that may be returned; None allows all, an empty list none.
          categories: An item needs at least one of these to be returned, spelt as in the catalogue; an empty list
            allows all items. Entries ``domain=NAME`` are a separate filter: an item also needs one of these.
          context: Fields of the request and of the user by name, such as ``{"device": "phone", "age": 25}``.
          event_fields: Fields of each event of the history, such as ``[{"kind": "view"}, {"kind": "purchase"}]``.
          diversity: From 0 (the best items) to 1 (the most different ones).
          pinned: Items to list first, in this order; items that are excluded or filtered out are left out.
          category_cap: The maximum number of items from one category; 0: no cap.
          tail_share: The minimum share of tail items among the first n items, for every n, rounded down, as long as the
            best ``5 k`` items (50 to 500) contain any. The tail is all items except, by default, the 20 % with the most
            training events.
          skip: Stages to skip: with ``exclusion``, items of the history may come back; with ``ranking``, the lists keep
            the order of retrieval.
          label_weights: Weights from -1 to 1 by label, as returned by :meth:`interests`. A weight of 1 raises the
            scores of items with the label by two standard deviations of the request's scores; -1 lowers them by as
            much. Labels that the model does not have count in ``unread``.
          titles: Whether the answer holds the titles of the items, instead of their ids, as titles.
          reasons: Whether the first 100 items of the answer have reasons; the answer then has titles, too.
          deadline_s: The deadline of this call; None for the client's.
        """
        return self.recommend_many(
            [history],
            k,
            [exclude],
            None if ratings is None else [ratings],
            allow=[allow],
            categories=[categories],
            context=[context],
            event_fields=[event_fields],
            diversity=diversity,
            pinned=[pinned],
            category_cap=category_cap,
            tail_share=tail_share,
            skip=skip,
            label_weights=[label_weights or {}],
            titles=titles,
            reasons=reasons,
            deadline_s=deadline_s,
        )[0]

    def recommend_many(
        self,
        histories: Sequence[Sequence[str]],
        k: int = 10,
        exclude: Sequence[Sequence[str]] | None = None,
        ratings: Sequence[Sequence[float | None]] | None = None,
        *,
        allow: Sequence[Allow] | None = None,
        categories: Sequence[Sequence[str]] | None = None,
        context: Sequence[Fields | None] | None = None,
        event_fields: Sequence[Sequence[Fields | None] | None] | None = None,
        diversity: float | Sequence[float] = 0.0,
        pinned: Sequence[Sequence[str]] | None = None,
        category_cap: int | Sequence[int] = 0,
        tail_share: float | Sequence[float] = 0.0,
        skip: Sequence[str] = (),
        label_weights: Sequence[Mapping[str, float]] | None = None,
        titles: bool = False,
        reasons: bool = False,
        deadline_s: float | None = None,
    ) -> list[Answer[Recommendation]]:
        """Same as :meth:`recommend` for many users in one request; every list but ``skip`` has a row for each user."""
        if not histories:
            return []
        exclude = [()] * len(histories) if exclude is None else exclude
        if len(exclude) != len(histories):
            raise DataError(f"Expected one list to exclude for each of {len(histories)} users, got {len(exclude)}.")
        inputs = {
            "history": _ids("history", histories),
            "ratings": _ratings(histories, ratings),
            "exclude": _ids("exclude", exclude),
            "k": [count_of(k)] * len(histories),
        }
        fields = {
            **context_inputs(len(histories), context),
            **event_field_inputs(histories, event_fields),
            **rule_inputs(len(histories), diversity, pinned, category_cap, tail_share, skip, label_weights),
            **({"reasons": [MOST_REASONS] * len(histories)} if reasons else {}),
        }
        return self._list("recommend", inputs, allow, categories, fields, titles, deadline_s)

    def search(
        self,
        text: str,
        history: Sequence[str] = (),
        exclude: Sequence[str] = (),
        k: int = 10,
        *,
        ratings: Sequence[float | None] | None = None,
        allow: Allow = None,
        categories: Sequence[str] = (),
        context: Fields | None = None,
        event_fields: Sequence[Fields | None] | None = None,
        titles: bool = False,
        deadline_s: float | None = None,
    ) -> Answer[Recommendation]:
        """Returns items whose text matches the meaning of ``text``; a history ranks items that suit the user higher.

        For the other arguments see :meth:`recommend`.

        Raises:
          DataError: ``text`` is blank.
        """
        if not isinstance(text, str):
            raise DataError(f"Expected the text of a search as one str, got {text!r}.")
        inputs = {
            "text": searched_texts([text]),
            "history": _ids("history", [history]),
            "exclude": _ids("exclude", [exclude]),
            "k": [count_of(k)],
        }
        fields = context_inputs(1, [context]) | event_field_inputs([history], [event_fields])
        marks = {} if ratings is None else {"ratings": _ratings([history], [ratings])}
        return self._list("search", inputs, [allow], [categories], fields | marks, titles, deadline_s)[0]

    def related(self, item_id: str, k: int = 10, *, deadline_s: float | None = None) -> Answer[Recommendation]:
        """Returns the neighbours of an item in the graph; ``reason`` says what joins them, such as ``same author``.

        Raises:
          DataError: The item is not in the catalogue.
        """
        return self._of_item(
            item_id, lambda inputs: _answers(self.predict("related", inputs, deadline_s=deadline_s)), k
        )

    def similar(
        self,
        item_id: str,
        k: int = 10,
        *,
        allow: Allow = None,
        categories: Sequence[str] = (),
        titles: bool = False,
        deadline_s: float | None = None,
    ) -> Answer[Recommendation]:
        """Returns items similar to this one; for ``allow``, ``categories`` and ``titles`` see :meth:`recommend`.

        Raises:
          DataError: The item is not in the catalogue.
        """

        def listed(inputs: dict[str, Any]) -> list[Answer[Recommendation]]:
            return self._list("similar", inputs, [allow], [categories], {}, titles, deadline_s)

        return self._of_item(item_id, listed, k)

    def _of_item(
        self, item_id: str, ask: Callable[[dict[str, Any]], list[Answer[Recommendation]]], k: int
    ) -> Answer[Recommendation]:
        """Returns the answer of ``ask`` about one item, and raises a :class:`DataError` for an unknown item."""
        if not isinstance(item_id, str):
            raise DataError(f"Expected an item id as one str, got {item_id!r}.")
        answer = ask({"item_id": [item_id], "k": [count_of(k)]})[0]
        if answer.unknown:
            raise DataError(f"No item {item_id!r} in the catalogue of {self.model!r} at {self.address}.")
        return answer

    def explain(
        self,
        history: Sequence[str],
        items: Sequence[str],
        ratings: Sequence[float | None] | None = None,
        *,
        context: Fields | None = None,
        event_fields: Sequence[Fields | None] | None = None,
        deadline_s: float | None = None,
    ) -> Answer[Explanation]:
        """Returns the contribution of each term to the scores of ``items``, and the history item behind it.

        For the fields see :meth:`recommend`.
        """
        inputs = _person(history, ratings, context, event_fields) | {"items": _ids("items", [items])}
        out = self._predict_with_defaults("explain", inputs, deadline_s)
        terms = sorted(out.keys() - {"because", "unknown"})
        # The first column belongs to the padding.
        with reading(out.request_id):
            explanations = (
                Explanation(item, {term: out[term][0][column] for term in terms}, out["because"][0][column])
                for column, item in enumerate(items, start=1)
            )
            return Answer(explanations, out["unknown"][0], out.request_id)

    def interests(
        self,
        history: Sequence[str],
        ratings: Sequence[float | None] | None = None,
        k: int = 10,
        *,
        deadline_s: float | None = None,
    ) -> Answer[Interest]:
        """Returns a user's interests: at most ``k`` labels in the catalogue's own words, the most likely first."""
        inputs = _person(history, ratings) | {"k": [count_of(k)]}
        out = self.predict("interests", inputs, deadline_s=deadline_s)
        with reading(out.request_id):
            columns = [out[name][0] for name in ("labels", "weights", "because", "levels", "trends") if name in out]
            interests = (Interest(*row) for row in zip(*columns, strict=True) if row[0])
            return Answer(interests, out["unknown"][0], out.request_id)

    def rank(
        self,
        history: Sequence[str],
        items: Sequence[str],
        ratings: Sequence[float | None] | None = None,
        *,
        context: Fields | None = None,
        event_fields: Sequence[Fields | None] | None = None,
        deadline_s: float | None = None,
    ) -> Answer[Ranked]:
        """Sorts ``items`` by the probability that each is the user's next one; unknown ids come last, with 0.

        For the fields see :meth:`recommend`.
        """
        inputs = _person(history, ratings, context, event_fields) | {"items": _ids("items", [items])}
        out = self._predict_with_defaults("rank", inputs, deadline_s)
        # The first column belongs to the padding.
        with reading(out.request_id):
            marks = out["rating"][0][1:] if "rating" in out else None
            lines = ranked(items, items, out["click_probability"][0][1:], marks)
            return Answer(lines, out["unknown"][0], out.request_id)

    def score(
        self,
        history: Sequence[str],
        ratings: Sequence[float | None] | None = None,
        *,
        context: Fields | None = None,
        event_fields: Sequence[Fields | None] | None = None,
        deadline_s: float | None = None,
    ) -> Answer[float]:
        """Returns the scores of the whole catalogue in the order of the version's ``items.parquet``, without masking.

        The signature does not count unknown ids: ``unknown`` of the answer is 0. For the fields see :meth:`recommend`.
        """
        inputs = _person(history, ratings, context, event_fields)
        out = self._predict_with_defaults("score", inputs, deadline_s)
        with reading(out.request_id):
            (scores,) = out.values()
            return Answer(scores[0], request_id=out.request_id)

    def predict(self, signature: str, inputs: dict[str, Any], *, deadline_s: float | None = None) -> Outputs:
        """Calls any signature with its own inputs, and returns its outputs as nested lists.

        Args:
          signature: The name of the signature.
          inputs: Values by input name: nested lists of ``str``, ``float``, ``int`` (int32) or ``bool`` whose rows have
            the same length.
          deadline_s: The deadline of this call; None for the client's.

        Returns:
          The outputs by name. REST does not name the only output of a signature, so it is called ``outputs`` here.

        Raises:
          ServingError: The server answers with an error, or does not answer within ``deadline_s``.
          DataError: The inputs do not form a tensor.
        """
        return self._ask(
            lambda timeout, request_id: self._transport.predict(signature, inputs, timeout, request_id), deadline_s
        )

    def send_events(self, events: Sequence[Mapping[str, Any]], *, deadline_s: float | None = None) -> Receipt:
        """Sends events to the log of the embedded server, which is independent of the model.

        Accepted events are on the server's disk. Repeating an attempt, here or in a later call, is safe: the log stores
        an event once. Two events are the same if they have the same ``event_id``, or no ``event_id`` and the same
        content. An event with neither ``event_id`` nor ``timestamp_s`` gets an ``event_id`` for the attempts of this
        call.

        Args:
          events: Each has ``user_id`` and ``item_id``, and optionally ``timestamp_s`` (seconds since 1970; by default
            the time of receipt), ``rating``, ``kind``, ``event_id``, ``request_id`` (of the answer that showed the
            item), and fields of any other name, whose values are strings, numbers or booleans.
          deadline_s: The deadline of this call; None for the client's.

        Raises:
          ServingError: The server answers with an error, or does not answer within ``deadline_s``. Any of the events
            may be in the log; send them again. ``UNAVAILABLE``: its disk is full; ``UNIMPLEMENTED``: it has no log.
          DataError: An event cannot be written as JSON.
        """
        lines = [_event_line(event) for event in events]
        return self._ask(
            lambda timeout, request_id: self._transport.send_events(lines, timeout, request_id), deadline_s
        )

    def status(self, *, deadline_s: float | None = None) -> Answer[ModelVersion]:
        """Returns the versions that the server knows (or only the chosen one) and their states."""
        return self._ask(self._transport.status, deadline_s)

    def metadata(self, *, deadline_s: float | None = None) -> Metadata:
        """Returns the version that answers, and its signatures."""
        return self._ask(self._transport.metadata, deadline_s)

    def close(self) -> None:
        """Closes the connections; running calls fail."""
        self._closed = True
        self._transport.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _list(
        self,
        signature: str,
        inputs: dict[str, Any],
        allow: Sequence[Allow] | None,
        categories: Sequence[Sequence[str]] | None,
        fields: dict[str, Any],
        titles: bool,
        deadline_s: float | None,
    ) -> list[Answer[Recommendation]]:
        """Calls the signature, or its full version if there are filters, ``fields`` or ``titles``."""
        further = filter_inputs(len(inputs["k"]), allow, categories) | fields
        if further or titles:
            inputs |= {name: rows if name in NUMBERS else _ids(name, rows) for name, rows in further.items()}
            return _answers(self._predict_with_defaults(f"{signature}_full", inputs, deadline_s))
        return _answers(self.predict(signature, inputs, deadline_s=deadline_s))

    def _predict_with_defaults(self, signature: str, inputs: dict[str, Any], deadline_s: float | None) -> Outputs:
        """Calls a signature with the inputs that the served version has; inputs that are not set get their defaults."""
        ends = time.monotonic() + (self.deadline_s if deadline_s is None else deadline_s)

        def left() -> float:
            return max(ends - time.monotonic(), 0.001)

        def call() -> Outputs:
            """Calls the signature as it is known; the server rejects a signature that it does not have."""
            rows, known = len(next(iter(inputs.values()))), self._known.get(signature)
            if known is None:
                return self.predict(signature, inputs, deadline_s=left())
            if missing := sorted(inputs.keys() - known.inputs.keys()):
                raise ModelError(
                    f"{self.model!r} at {self.address} was exported by an earlier version, without "
                    f"{', '.join(missing)}: export it again."
                )
            defaults = {name: _default(spec, rows) for name, spec in known.inputs.items() if name not in inputs}
            return self.predict(signature, {**inputs, **defaults}, deadline_s=left())

        if signature not in self._known:
            self._known = self.metadata(deadline_s=left()).signatures
        known = self._known.get(signature)
        try:
            return call()
        except ModelError as error:
            # Another version may have taken over.
            if isinstance(error, ServingError) and error.code != "INVALID_ARGUMENT":
                raise
            self._known = self.metadata(deadline_s=left()).signatures
            if self._known.get(signature) == known:
                raise
            return call()

    def _ask(self, attempt: Callable[[float, str], T], deadline_s: float | None) -> T:
        deadline_s = self.deadline_s if deadline_s is None else deadline_s
        request_id = uuid.uuid4().hex
        ends = time.monotonic() + deadline_s
        tried = 0
        while True:
            if self._closed:
                raise ModelError(f"This client of {self.address} was closed: make another.")
            try:
                return attempt(max(ends - time.monotonic(), 0.001), request_id)
            except ServingError as error:
                pause = error.retry_after_s + random.uniform(0, min(LONGEST_BACKOFF_S, BACKOFF_S * 2**tried))
                tried += 1
                if error.code not in RETRYABLE or tried > self.retries or time.monotonic() + pause >= ends:
                    error.request_id = error.request_id or request_id
                    attempts = f"{tried} {'attempt' if tried == 1 else 'attempts'} within {deadline_s:g} s"
                    error.args = (
                        f"{self.model!r} at {self.address}: {error.code}: {error} "
                        f"({attempts}, request {error.request_id})",
                    )
                    raise
            time.sleep(pause)


def _ids(name: str, rows: Sequence[Sequence[str]]) -> list[list[str]]:
    checked = [listed_strings(name, row) for row in rows]
    width = max(map(len, checked))
    return [["", *row, *[""] * (width - len(row))] for row in checked]


def _event_line(event: Mapping[str, Any]) -> bytes:
    """Returns an event as JSON."""
    if event.get("event_id") is None and event.get("timestamp_s") is None:
        # The time comes first, so that new ids are appended at the end of the log's index.
        event = {**event, "event_id": f"{time.time_ns():016x}{uuid.uuid4().hex[:16]}"}
    try:
        return json.dumps(event, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:  # invalid Unicode text is a ValueError, too
        raise DataError(f"The event {event!r:.200} cannot be sent as JSON: {error}.") from error


def _default(spec: TensorSpec, rows: int) -> list[Any]:
    """Returns rows of an input without effect: no strings, no ratings, zeros."""
    if spec.shape is not None and len(spec.shape) > 1:
        return [[math.nan if spec.dtype == "DT_FLOAT" else ""]] * rows
    return [0.0 if spec.dtype == "DT_FLOAT" else 0] * rows


def _person(
    history: Sequence[str],
    ratings: Sequence[float | None] | None,
    context: Fields | None = None,
    event_fields: Sequence[Fields | None] | None = None,
) -> dict[str, Any]:
    """Returns the inputs of a signature that describe one user; field inputs only if they are set."""
    fields = context_inputs(1, [context]) | event_field_inputs([history], [event_fields])
    return {
        "history": _ids("history", [history]),
        "ratings": _ratings([history], None if ratings is None else [ratings]),
        **{name: _ids(name, rows) for name, rows in fields.items()},
    }


def _ratings(histories: Sequence[Sequence[str]], ratings: Sequence[Sequence[float | None]] | None) -> list[list[float]]:
    if ratings is None:
        return [[math.nan]] * len(histories)
    rows = rating_rows(histories, ratings)
    width = max(map(len, rows))
    return [[math.nan, *row, *[math.nan] * (width - len(row))] for row in rows]


def _answers(out: Outputs) -> list[Answer[Recommendation]]:
    with reading(out.request_id):
        titles, none = out.get("titles", out["item_ids"]), [0] * len(out["item_ids"])
        reasons = out.get("reasons") or [[""] * len(ids) for ids in out["item_ids"]]
        return [
            Answer(
                (Recommendation(*line) for line in zip(ids, names, scores, why, strict=True) if line[0]),
                unknown,
                out.request_id,
                unread,
            )
            for ids, names, scores, why, unknown, unread in zip(
                out["item_ids"], titles, out["scores"], reasons, out["unknown"], out.get("unread", none), strict=True
            )
        ]
