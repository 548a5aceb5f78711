"""All settings of an experiment with their defaults; each class is a section of the YAML file.

The resolved config that a run writes is itself a valid input; if it records a function in ``tuning.paraphrase``, the
command line must name the function again. If the description of a setting mentions *auto*, ``null`` (``None``) means
that the value is chosen from the data when the run starts, printed, and written into the resolved config.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from tfllmrec.errors import ConfigError
from tfllmrec.wording import nearest_hint, shown

#: The bundled text encoders, see :data:`tfllmrec.text.bundled.BUNDLED`. Those that are BERTs have a mask token and
#: numbered layers with attention.
BERTS = ("minilm", "e5")
ENCODERS = (*BERTS, "use")


def encoder_names(encoder: str) -> list[str]:
    """Returns the encoders in ``text.encoder``: several are joined by '+', and at least one of them has a name.

    If none has a name, plus signs belong to the handle of a single encoder.
    """
    names = [name.strip() for name in encoder.split("+")]
    return names if {*ENCODERS, "auto"} & set(names) else [encoder]


#: Modes of tuning for encoders that are no BERTs, too.
_MODES_OF_ANY = ["adapter", "full"]


def _no_bert(encoder: str) -> bool:
    return encoder in ENCODERS and encoder not in BERTS


def _check(encoder: str, setting: str, value: Any, allowed: Sequence[Any]) -> None:
    """Raises an error if ``text.encoder`` does not allow the value of a setting."""
    if value not in allowed:
        raise ValueError(
            f"{setting}: expected {' or '.join(map(str, allowed))} with text.encoder={encoder}, found {value}. Change "
            f"it, or set text.encoder to one of {', '.join(BERTS)}"
        )


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False)

    def with_plain(self, **values: Any) -> Self:
        """Returns a copy in which ``values`` replace the settings that are *auto* (``None``)."""
        return self.model_copy(update={name: value for name, value in values.items() if getattr(self, name) is None})


class FieldConfig(Section):
    """The declaration of a column that is recognised wrongly; see :mod:`tfllmrec.data.schema`."""

    owner: Literal["event", "request"] | None = Field(
        None,
        description="When the values of a column of the events are known. request: before the event (device, "
        "weather), so requests may carry them. event: after the event (rating, dwell time). auto: "
        "request if the column has a usual name for context, else event.",
    )
    kind: Literal["id", "category", "number", "text", "vector", "time"] | None = Field(
        None, description="How values are encoded; auto: chosen from the values."
    )
    default: str | None = Field(
        None, description="The value if a request leaves the field out; auto: the value is then missing."
    )
    weights: dict[Annotated[str, BeforeValidator(str)], Annotated[float, Field(ge=-1, le=1)]] | None = Field(
        None,
        description="For a category of the events, such as their kind: how much an event with each value counts, "
        "from 0 to 1. Below 0: the user rejected the item. auto: kinds of events are weighted by "
        "name.",
    )
    weighs: bool = Field(
        False,
        description="Whether the number, such as a dwell time, weighs events: the further below the median, the "
        "less an event counts.",
    )
    components: int | None = Field(
        None,
        ge=1,
        description="For a vector of items: the number of its principal components that models read instead of it. "
        "auto: the whole vector is read.",
    )
    use: bool = Field(True, description="Whether models may read the column.")


class DataConfig(Section):
    """The sources of events and items, and how they are cleaned."""

    name: str | None = Field(default=None, description="Name in reports and folders; auto: from the source.")
    source: str | None = Field(
        default=None, description="A registered data set (movielens-100k) or a folder in a known format."
    )
    format: Literal["auto", "movielens", "recbole", "table", "tfllmrec"] = Field(
        default="auto", description="Format of source; auto: recognised from its files."
    )
    events: Path | None = Field(
        default=None,
        description="Instead of source: event file (CSV, TSV, JSONL, Parquet; may be compressed), folder of its "
        "parts, or event log.",
    )
    items: Path | None = Field(
        default=None, description="Catalogue file or folder; auto: found in source, otherwise the items of the events."
    )
    more_items: list[Path] = Field(default_factory=list, description="More files, joined to the items by item id.")
    vectors: dict[str, Path] = Field(
        default_factory=dict,
        description="Column name -> .npy file with vectors of the items (of images, of audio), [R, D]: a row for each "
        "row of the catalogue file, in the same order. A row of NaN is a missing vector.",
    )
    users: Path | None = Field(default=None, description="Users table; auto: found in source, or none.")
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="tfllmrec's column name -> name in the files, for columns that are not recognised.",
    )
    fields: dict[str, FieldConfig] = Field(
        default_factory=dict,
        description="By column name or OWNER.NAME: owner, kind and other properties, for columns that are recognised "
        "wrongly.",
    )
    encoding: str = Field(default="utf-8", description="Encoding of text files, by its name in Python.")
    time_format: str = Field(
        default="auto",
        description="How the times of events are written: a strptime pattern (%d/%m/%Y), a unit (epoch_s, epoch_ms, "
        "epoch_us, epoch_ns, epoch_d, excel, dotnet, filetime, webkit), or auto: recognised.",
    )
    inexact_ids: Literal["refuse", "accept"] = Field(
        default="refuse",
        description="What happens to ids that are floats beyond 2**53 or rounded (7.65612E+16): several ids may have "
        "become one when the file was written.",
    )
    unrated: list[float] | None = Field(
        default=None,
        description="Ratings that mean 'not rated'; auto: 0 or -1 outside of a scale such as 1 to 5; []: none.",
    )
    repeats: Literal["last", "first", "all"] = Field(
        default="last",
        description="Which event to keep if a user has several events with an item. The strongest kind of event "
        "has priority, by data.fields.kind.weights or else by its name: a purchase before a view. With 'last', a "
        "rejection (a weight of -0.5 or below) replaces all earlier events. If times are equal or unknown, 'last' "
        "keeps the event with the highest rating, and 'first' the one with the lowest.",
    )
    min_user_events: int = Field(default=1, ge=1, description="Users with fewer events are dropped, and counted.")
    max_bad_rows: float = Field(
        default=0.01, ge=0, le=1, description="Largest share of unreadable rows that is tolerated."
    )
    max_bytes: int = Field(
        default=4_000_000_000,
        ge=1,
        description="Largest size of a table after decompression; a larger table is refused.",
    )
    max_rows: int = Field(
        default=50_000_000,
        ge=1,
        description="Maximum number of rows (of a text file: lines) of a table; a longer table is refused.",
    )
    max_columns: int = Field(
        default=10_000, ge=1, description="Maximum number of columns of a table; a wider table is refused."
    )
    max_depth: int = Field(
        default=32,
        ge=1,
        description="Maximum depth of nested values in a row of JSON or Parquet; deeper values are refused.",
    )


class SplitConfig(Section):
    """The division of events into train, validation and test."""

    kind: Literal[
        "auto",
        "leave_last_out",
        "leave_random_out",
        "global_time",
        "cold_items",
        "cold_users",
        "cold_domain",
        "random",
        "fixed",
    ] = Field(
        default="auto",
        description="How held-out events are chosen. leave_last_out: each user's last two events. leave_random_out: "
        "two random events of each user. global_time: the latest events of the whole data set. cold_items: all events "
        "of some items. cold_users: the last event of some users, who are left out of training. cold_domain: events of "
        "some users in one domain of joined data, while their events in other domains are known. random: random shares "
        "of each user's events. fixed: the events given by test_events. auto: leave_last_out where the data has an "
        "order, else leave_random_out.",
    )
    validation_share: float = Field(
        default=0.1,
        gt=0,
        lt=1,
        description="Share held out for validation: of all events (global_time), of each user's events (random), of "
        "each user's non-test events (fixed), of items (cold_items), of users (cold_users) or of the users who have "
        "events in another domain and more than known_events in split.domain (cold_domain).",
    )
    test_share: float = Field(
        default=0.1,
        gt=0,
        lt=1,
        description="Share held out for the test, counted as in validation_share; fixed ignores it.",
    )
    test_events: str | None = Field(
        default=None,
        description="The test events of a fixed split: rows of the events file, such as 0:20000 for its first 20,000 "
        "(the header does not count), or a file of events with the same columns.",
    )

    domain: str | None = Field(
        default=None,
        description="Target domain of a cold_domain, leave_last_out or leave_random_out split of joined data, such as "
        "toys. Only its items are candidates.",
    )
    known_events: int = Field(
        default=0,
        ge=0,
        description="In a cold_domain split: how many of a held-out user's first events in that domain are part "
        "of the history. 0: none.",
    )

    @field_validator("test_events", mode="before")
    @classmethod
    def _rows_without_an_end(cls, value: Any) -> Any:
        """Restores a range such as ``80000:``, which YAML reads as a mapping."""
        return f"{next(iter(value))}:" if isinstance(value, dict) and list(value.values()) == [None] else value

    @property
    def named_events(self) -> str | None:
        """``test_events`` if the kind of split reads them, else ``None``."""
        return self.test_events if self.kind == "fixed" else None


class TextConfig(Section):
    """The encoding of item texts as vectors."""

    encoder: str = Field(
        "minilm",
        description="'minilm' (English), 'e5' (about 100 languages), 'use' (16 languages, fast), 'auto' (minilm "
        "if it can read the items and they seem to be English, else e5), or a TF Hub handle of a BERT encoder (URL, or "
        "folder with a slash, such as ./bert). Joined by +, as in 'minilm+e5': the vectors of several encoders, "
        "concatenated.",
    )
    preprocessor: str | None = Field(
        None, description="TF Hub handle of the encoder's preprocessor; bundled encoders have their own."
    )
    template: str | None = Field(
        None,
        description="How columns become one text, such as '{title} ({categories})'; auto: chosen from the "
        "existing columns.",
    )
    max_tokens: int = Field(
        64, ge=8, le=512, description="Most tokens of a text, including special tokens; longer texts are cut."
    )
    pooling: Literal["mean", "cls", "pooled"] = Field(
        "mean",
        description="Which output of the encoder is the vector of a text: the mean of the token vectors, the "
        "vector of [CLS], or the encoder's own 'pooled_output'.",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="Precision of matrix products; bfloat16 works only with 'minilm' and 'e5'."
    )
    batch_size: int = Field(
        64,
        ge=1,
        description="Number of texts with max_tokens tokens in a step; a step has more texts if they are shorter.",
    )
    mode: Literal["frozen", "adapter", "lora", "adalora", "prefix", "top_layers", "full", "joint"] = Field(
        "frozen",
        description="Which weights of the encoder are tuned on pairs of items read together, before it encodes the "
        "catalogue; joint: the weights that tuning.joint names are trained together with the hybrid.",
    )
    pretrain_epochs: int = Field(
        0,
        ge=0,
        description="Epochs of masked-language-model training on the texts of the catalogue, before any other "
        "training.",
    )
    query_encoder: Literal["same", "hashed_ngrams", "layers", "static"] = Field(
        "same",
        description="The encoder of queries in an exported model. same: the items' encoder. The others are small "
        "encoders distilled from it. hashed_ngrams: a bag of hashed n-grams. static: the weighted "
        "mean of fixed token vectors. layers: some of its layers (only 'minilm', 'e5' and encoders "
        "made by save_encoder).",
    )

    @field_validator("encoder")
    @classmethod
    def _names_and_handles(cls, value: str) -> str:
        known, names = (*ENCODERS, "auto"), encoder_names(value)
        for name in names:
            if name not in known and "/" not in name:
                raise ValueError(
                    f"expected {', '.join(ENCODERS)} or auto, or the handle of a TF Hub encoder (a URL, or a folder "
                    f"with a slash, such as ./bert), found {name!r}{nearest_hint(name.lower(), known)}"
                )
        if "auto" in names and len(names) > 1:
            raise ValueError(f"expected the names of all encoders, because auto stands for a single one, found {value}")
        return "+".join(names)

    @model_validator(mode="after")
    def _settings_fit_the_encoder(self) -> Self:
        names = encoder_names(self.encoder)
        handles = [name for name in names if name not in ENCODERS]
        if len(names) > 1 and (len(handles) > 1 or len(set(names)) < len(names)):
            raise ValueError(
                f"text.encoder: expected different names of bundled encoders ({', '.join(ENCODERS)}) and at most one "
                f"TF Hub handle, joined by '+', found {self.encoder!r}"
            )
        if not set(names) <= {*BERTS, "auto"}:
            _check(self.encoder, "text.precision", self.precision, ["float32"])
        if len(names) > 1 or _no_bert(self.encoder):
            trained = [] if len(names) > 1 else ["joint", *_MODES_OF_ANY]
            _check(self.encoder, "text.mode", self.mode, ["frozen", *trained])
            _check(self.encoder, "text.pretrain_epochs", self.pretrain_epochs, [0])
            small = ["hashed_ngrams"] if len(names) > 1 else ["hashed_ngrams", "static"]
            _check(self.encoder, "text.query_encoder", self.query_encoder, ["same", *small])
        return self


class TuningConfig(Section):
    """The tuning of the text tower, used unless ``text.mode`` is ``frozen``."""

    epochs: int = Field(
        3,
        ge=1,
        description="Number of epochs. In each, the text of every item is read once and paired with another text.",
    )
    joint: Literal["adapter", "lora", "adalora", "prefix", "top_layers", "full"] = Field(
        "lora", description="Which weights of the encoder text.mode=joint trains."
    )
    batch_size: int = Field(
        64,
        ge=2,
        description="Pairs of texts in a step; the other pairs are the negatives. For joint: the most items that "
        "a step encodes again.",
    )
    accumulate: int = Field(
        1,
        ge=1,
        description="Steps whose gradients are averaged before the weights are updated; at the end of an epoch there "
        "may be fewer.",
    )
    learning_rate: float | None = Field(
        None, gt=0, description="Learning rate; auto: chosen by text.mode, or for joint by tuning.joint."
    )
    warmup_share: float = Field(0.1, ge=0, lt=1, description="Share of the steps in which the learning rate rises.")
    weight_decay: float = Field(0.01, ge=0, description="Weight decay; not applied to biases and layer norms.")
    temperature: float = Field(0.05, gt=0, description="Divides the cosines of pairs in the contrastive loss.")
    patience: int = Field(2, ge=1, description="Epochs without gain on validation before tuning stops.")
    window: int = Field(3, ge=1, description="Largest distance in a history of two items that count as read together.")
    tail_power: float = Field(0.5, ge=0, description="Exponent by which pairs of frequent items are drawn less often.")
    itself: float = Field(0.5, ge=0, le=1, description="Share of pairs that are two wordings of one item.")
    word_dropout: float = Field(0.1, ge=0, lt=1, description="Share of words that a second wording leaves out.")
    synonyms: Path | None = Field(None, description="File with words and their synonyms, for second wordings.")
    paraphrase: str | None = Field(
        None,
        pattern=r"^\w+(\.\w+)*:\w+(,\w+(\.\w+)*:\w+)*$",
        description="module:function that takes a list of strings and returns one string for each; or several, joined "
        "by commas and called one after the other, such as a translation into another language and one back. Half of "
        "the time, the paraphrase of an item is read instead of its text. Accepted from --set and Python, not "
        "from a config file.",
    )
    paraphrase_similarity: float = Field(
        0.5,
        ge=-1,
        le=1,
        description="A paraphrase is dropped if the cosine between its vector and that of its text is below this; the "
        "mean vector of all texts is subtracted from both first.",
    )
    rank: int = Field(
        8,
        ge=1,
        description="Rank of lora's matrices; for adalora, a kernel's average rank in the second half of training.",
    )
    alpha: float = Field(
        16.0, gt=0, description="For lora and adalora: the weight changes are multiplied by alpha / rank."
    )
    targets: list[str] = Field(
        ["attention", "feed_forward"],
        min_length=1,
        description="For lora and adalora: the kernels to change, by parts of their names.",
    )
    layers: int = Field(2, ge=1, description="For top_layers: how many layers are trained.")
    width: int = Field(64, ge=1, description="For adapter: width of the bottleneck.")
    length: int = Field(16, ge=1, description="For prefix: number of trained keys and values in each layer.")


class DistillationConfig(Section):
    """The distillation of the small query tower, used unless ``text.query_encoder`` is ``same``."""

    epochs: int | None = Field(
        None, ge=1, description="Epochs of distillation; auto: 20 for hashed_ngrams, 5 for static, 2 for layers."
    )
    batch_size: int | None = Field(None, ge=1, description="Texts in a step; auto: 256, or 64 for layers.")
    learning_rate: float | None = Field(
        None, gt=0, description="Learning rate; auto: 2e-3 for hashed_ngrams, 1e-3 for static, 3e-4 for layers."
    )
    items: int = Field(
        20_000, ge=2, description="Most items whose texts are used; if there are more, a sample is drawn."
    )
    per_item: int = Field(
        4, ge=0, description="Short queries that are cut from each item's text, and also learned from."
    )
    held_out: float = Field(
        0.1, gt=0, le=0.5, description="Share of the items' texts on which agreement with the encoder is measured."
    )
    layers: int = Field(2, ge=1, description="For layers: how many layers are kept.")
    buckets: int = Field(
        32_768,
        ge=1,
        description="For hashed_ngrams: rows of each of its two tables. For static: it knows this many of the first "
        "tokens of the vocabulary, and all tokens of the items' texts.",
    )
    width: int = Field(128, ge=1, description="For hashed_ngrams and static: columns of their tables.")
    hidden: int = Field(512, ge=1, description="For hashed_ngrams: units of the hidden layer.")


class ModelConfig(Section):
    """The sizes and terms of the hybrid model."""

    embedding_dim: int = Field(128, ge=4, description="Width D of the vectors of items (e_i) and of users (q_u).")
    blocks: int = Field(2, ge=0, description="Self-attention blocks of the history encoder.")
    heads: int = Field(4, ge=1, description="Attention heads of each block; embedding_dim must be a multiple.")
    dropout: float | None = Field(None, ge=0, lt=1, description="Dropout; auto: lower if items have many events.")
    id_dropout: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Share of item ids that are hidden in a step, so that the model learns to read the text. 1: "
        "no ids. auto: chosen from the data.",
    )
    history_length: int | None = Field(
        None, ge=1, description="Number of newest events that the history encoder reads; auto: chosen from the data."
    )
    temperature: float = Field(0.05, gt=0, description="Divides the dense scores in the retrieval loss.")
    fields: bool = Field(
        True,
        description="Whether the meaning term reads the fields of requests (device, weather, time), of users (age) and "
        "of the events of a history; exclude single fields with data.fields (use: false).",
    )
    user_text: bool | None = Field(
        None,
        description="Whether these fields include texts that users write (reviews, queries, descriptions of "
        "themselves), read by the encoder of queries. auto: if there are any, and no more than 100,000 different ones. "
        "Texts that do not help on validation are ignored.",
    )
    scene: str | None = Field(
        "scene",
        description="Field of requests that holds the scene (home page, search, mail); its kind must be category. One "
        "model serves all scenes, with separate gates for each. The default has no effect if there is no such "
        "field; any other name must exist. null: no scenes.",
    )
    scene_experts: int = Field(4, ge=1, description="Number of expert networks that all scenes share.")
    item_fields: Literal["vectors", "all", "none"] = Field(
        "vectors",
        description="Fields of items that are read in addition to text and id. vectors: vectors of images or "
        "audio. all: also categories, numbers and times. Exclude single fields with data.fields (use: "
        "false).",
    )
    propagation: Literal["none", "lightgcn", "relations"] = Field(
        "none",
        description="Whether item vectors are mixed with those of their neighbours in the graph (see the section "
        "graph); items with few events or none lean on them the most. lightgcn: all relations count the same. "
        "relations: attention weighs the relations. The relation use is not read. It is left out if it does not help "
        "on validation.",
    )
    terms: list[Literal["meaning", "feedback", "behaviour"]] = Field(
        ["meaning", "feedback", "behaviour"],
        min_length=1,
        description="The terms of a score. Without behaviour, or with it alone, there are no gates to weigh the terms, "
        "nor their popularity discount and lift of cold items.",
    )

    def reads_item_field(self, kind: str) -> bool:
        """Returns whether item vectors include item fields of a kind, such as *vector*, that has an encoder."""
        dense = {"meaning", "feedback"} & set(self.terms)
        return bool(dense) and (self.item_fields == "all" or (self.item_fields == "vectors" and kind == "vector"))

    def settled(self) -> Self:
        """Returns a copy in which *auto* settings of the model's structure have values that suit sparse data."""
        return self.with_plain(dropout=0.4, id_dropout=0.3, history_length=50)

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Self:
        if self.embedding_dim % self.heads:
            raise ValueError(f"model.embedding_dim {self.embedding_dim} is not a multiple of model.heads {self.heads}")
        return self


class ItemWeightSettings(Section):
    """The item-item weights of the behaviour term: the weight of each view of the data, and how they are solved.

    :mod:`tfllmrec.models.item_weights` contains the formula.
    """

    decay: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Factor by which each event counts less than the next newer one, in solving and in scoring; "
        "auto: searched on validation if events have an order, otherwise 1.",
    )
    l2: float | None = Field(None, gt=0, description="Lambda of the ridge regression; auto: searched on validation.")
    co_occurrence: float | None = Field(
        None, ge=0, description="Beta, the weight of co-occurrence in any order; auto: searched on validation."
    )
    text: float | None = Field(
        None,
        ge=0,
        description="Alpha, the weight of similar texts. 0 leaves the text out. auto: searched on validation.",
    )
    graph: float | None = Field(
        None,
        ge=0,
        description="Gamma, the weight of the item graph (see the section graph); auto: searched on validation, 0 "
        "without a graph.",
    )
    next_item: float | None = Field(
        None, ge=0, description="Nu, the weight of the next item; auto: 0 if events have no order."
    )
    popularity: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Exponent by which the weights of popular candidates are scaled down; 0: not at all. auto: "
        "searched on validation.",
    )
    itself: float | None = Field(
        None,
        ge=0,
        description="Weight of an item for its own repeated use; auto: 0, or searched on validation if "
        "data.repeats is all.",
    )
    kinds: bool | dict[str, Annotated[float, Field(ge=0)]] | None = Field(
        None,
        description="Whether events of the history are weighted by their kind and dwell time (data.fields). Factors by "
        "kind, such as {view: 0.5}, change the weights of kinds in histories, but not what is a target. auto: factors "
        "chosen on validation, 1 unless another one helps.",
    )
    context: dict[str, Annotated[float, Field(ge=0, le=5)]] | None = Field(
        None,
        description="By field of requests, such as weekday: a strength x. An event of the history counts exp(x) "
        "times as much if it has the same value of the field as the request. auto: chosen on "
        "validation.",
    )
    source: float | None = Field(
        None,
        ge=0,
        description="Weight of the events of transfer.sources, relative to those of the data; auto: chosen on "
        "validation, 0 unless they help.",
    )
    domains: dict[str, Annotated[float, Field(ge=0)]] | None = Field(
        None,
        description="In joined data, by FROM>TO: a factor for the weights from items of the domain FROM to items "
        "of the domain TO; auto: chosen on validation, 1 unless another factor helps.",
    )
    map: bool = Field(
        False,
        description="In joined data: whether the weights between items of two domains come from a linear map of users' "
        "vectors, fitted on users of both domains, instead of from the ridge regression. For items of the other "
        "domain, the order of events then has no effect.",
    )
    rank: Annotated[int, Field(ge=1)] | Literal["all"] | None = Field(
        None,
        description="Rank of the matrix of events: a low one leaves out what may be noise. all: nothing is left out, "
        "up to 30,000 items. auto: searched on validation.",
    )
    neighbours: int = Field(512, ge=1, description="How many of its strongest neighbours are kept for each item.")

    @field_validator("domains")
    @classmethod
    def _pairs_of_domains(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        for key in value or {}:
            names = key.split(">")
            if len(names) != 2 or not all(names) or names[0] == names[1]:
                raise ValueError(f"expected FROM>TO with two different domains, such as books>films, found {key!r}")
        return value

    def settled(self) -> Self:
        """Returns a copy in which *auto* settings have values that suit sparse data."""
        plain = {"decay": 1.0, "l2": 100.0, "co_occurrence": 0.1, "text": 50.0, "next_item": 1.0, "popularity": 0.0}
        return self.with_plain(**plain, rank=384, graph=0.0, itself=0.0, kinds=True, context={}, source=0.0, domains={})

    @property
    def factors_of_kinds(self) -> dict[str, float]:
        """The factors in ``kinds``; empty if all are 1."""
        return self.kinds if isinstance(self.kinds, dict) else {}


class GraphConfig(Section):
    """The item graph: its relations, and its number of neighbours."""

    relations: list[Literal["text", "use", "values"]] = Field(
        [],
        description="text: mutual nearest neighbours by text. use: items of the same users. values: items that share a "
        "category, an author or another value of the catalogue. Empty, and without edges: no graph.",
    )
    edges: Path | None = Field(
        None,
        description="File of further edges: head, relation, tail and optionally weight. A row with two items is an "
        "edge; a row with an item and a value joins all items that share the value.",
    )
    neighbours: int = Field(
        20, ge=1, le=1000, description="How many of the strongest edges of an item each relation keeps."
    )
    support: int = Field(
        2, ge=1, description="Minimum number of users that two items must share for an edge of the relation 'use'."
    )

    @property
    def wanted(self) -> bool:
        """Whether to build a graph."""
        return bool(self.relations) or self.edges is not None

    @property
    def says_more_than_events(self) -> bool:
        """Whether the graph has relations other than *use*; models read only these."""
        return bool(set(self.relations) - {"use"}) or self.edges is not None


class TransferConfig(Section):
    """The transfer from complete runs of other domains, described in :mod:`tfllmrec.training.transfer`."""

    sources: list[Path] = Field(
        [],
        description="Folders of complete runs. The text encoder, the schema and the trained layers come from the "
        "first one. The events of all of them count in the item-item weights. Empty: nothing is "
        "transferred.",
    )
    method: Literal["auto", "zero_shot", "align", "fine_tune", "distil", "joint", "map"] = Field(
        "auto",
        description="zero_shot: the first source's model with the target's catalogue, without training. align: the "
        "same, with the target's text vectors made similar to the source's. fine_tune: a fit on the target's events "
        "that starts from the source. distil: a fit on the target's events with the source as a teacher. joint: one "
        "model over all catalogues. map: the same, with item_weights.map. auto: joint with same_users, else the "
        "better of zero_shot and fine_tune on validation.",
    )
    alignment: Literal["coral", "adversarial"] = Field(
        "coral",
        description="How align changes the target's text vectors. coral: they get the mean and covariance of the "
        "source's. adversarial: a linear layer is trained until a classifier confuses the domains (gradient reversal).",
    )
    distil: float = Field(0.3, gt=0, description="Weight of the teacher's soft targets in the loss of distil.")
    same_items: Literal["id", "title", "none"] = Field(
        "id",
        description="Which items of two catalogues are the same: those with the same id, or with the same title "
        "and year. none: all items are different.",
    )
    same_users: bool = Field(False, description="Whether equal user ids mean the same user; used by joint and map.")


class TrainingConfig(Section):
    """The training of the hybrid."""

    epochs: int | None = Field(
        None, ge=1, description="Most epochs; the best on validation is kept. auto: chosen from the data."
    )
    batch_size: int | None = Field(None, ge=1, description="Users in a step; auto: chosen from the data.")
    learning_rate: float = Field(2e-3, gt=0, description="Peak learning rate of AdamW.")
    weight_decay: float = Field(0.05, ge=0, description="Weight decay of AdamW.")
    warmup_share: float = Field(0.05, ge=0, lt=1, description="Share of the steps in which the learning rate rises.")
    negatives: int | None = Field(
        None, ge=0, description="Number of sampled negatives; 0: the whole catalogue. auto: 0 if it fits into memory."
    )
    log_q: float = Field(1.0, ge=0, le=1, description="Strength of the log-q correction when negatives are sampled.")
    gate_holdout: float = Field(
        0.2, gt=0, lt=1, description="Share of users whose last events are used only to fit the gates."
    )
    patience: int = Field(5, ge=1, description="Evaluations without a gain before training stops.")
    precision: Literal["float32", "mixed_bfloat16"] = Field(
        "float32", description="Precision of training; the hybrid is measured and exported in float32."
    )


class UpdateConfig(Section):
    """How ``tfllmrec update`` continues from a run, and when the result may replace the model in use."""

    epochs: int = Field(
        1,
        ge=1,
        description="Maximum number of epochs of the hybrid and of the ranking model, starting from the run's weights.",
    )
    learning_rate_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Peak learning rates, as a share of training.learning_rate and ranking.learning_rate.",
    )
    replay: float = Field(
        1.0,
        ge=0,
        description="How many users without new events are trained on again, for each user with new events, so "
        "that the model does not forget them.",
    )
    tolerance: float = Field(
        0.02, ge=0, lt=1, description="By which share ndcg@10 may be lower than that of the version in use."
    )


class BoardConfig(Section):
    """What a fit writes for TensorBoard, and which other trackers receive its figures."""

    details: bool = Field(
        True,
        description="Whether to write more than curves: recommendations in words, histograms, the graph, a "
        "profile, images, item vectors.",
    )
    trackers: list[Literal["wandb", "mlflow"]] = Field(
        [],
        description="Experiment trackers that also receive the figures of each epoch; install their packages yourself.",
    )


class RankingConfig(Section):
    """The ranking model, which sorts the hybrid's candidates and is trained on the validation queries after the hybrid.

    It has two heads, for the order and for ratings; a head that does not help held-out users is left out. Catalogues of
    more than 200,000 items (``models.rating_factors.ITEMS``) use biases instead of factors for ratings.
    """

    epochs: int | None = Field(
        None,
        ge=0,
        description="Most epochs; the best number is chosen on held-out users. 0: no ranking model. auto: 6; fewer "
        "with many validation queries, but at least 3; 0 with too few.",
    )
    candidates: int = Field(100, ge=2, description="How many of the hybrid's best items are ranked.")
    history_length: int = Field(50, ge=1, description="Number of newest events that each candidate is compared with.")
    keys: int = Field(16, ge=1, description="Width of the vectors by which candidates and events are compared.")
    hidden: int = Field(16, ge=1, description="Hidden units of the attention and of each head.")
    crosses: int = Field(2, ge=0, description="Number of feature-cross layers.")
    batch_size: int = Field(16, ge=1, description="Lists of candidates in a step.")
    learning_rate: float = Field(2e-3, gt=0, description="Peak learning rate of AdamW.")
    weight_decay: float = Field(0.05, ge=0, description="Weight decay of AdamW.")
    focal_gamma: float = Field(
        0.0,
        ge=0,
        description="Gamma of the click head's focal loss: larger values give easy targets less weight. "
        "0: cross-entropy.",
    )
    folds: int = Field(
        3, ge=2, description="Folds of the cross-validation over users, which decides whether the two heads are kept."
    )


BaselineName = Literal[
    "popularity",
    "recent_popularity",
    "popularity_by_segment",
    "markov",
    "item_knn",
    "ials",
    "ease",
    "text",
    "ease_text",
    "star",
    "emcdr",
    "domain_map",
    "two_tower",
]


class InterestConfig(Section):
    """The prediction of the labels of a user's next items."""

    learned: bool = Field(
        True,
        description="Whether labels are learned. They are used only if they are better than labels counted in the "
        "history.",
    )


class EvaluationConfig(Section):
    """The metrics, baselines and groups of the evaluation."""

    ks: list[Annotated[int, Field(ge=1)]] = Field(
        [5, 10, 20], min_length=1, description="List lengths k for which metrics are measured."
    )
    metrics: list[Literal["precision", "f1", "map", "accuracy", "auc"]] = Field(
        default_factory=list, description="Metrics in addition to recall, ndcg and mrr."
    )
    baselines: list[BaselineName] = Field(
        list(get_args(BaselineName)),
        description="Baselines that are fitted and measured on the same queries as the hybrid.",
    )
    head_share: float = Field(
        0.2, gt=0, lt=1, description="Share of the items that are head items: those with the most training events."
    )
    by: list[str] = Field(
        default_factory=list,
        description="Category fields of requests or users, such as request.device or user.gender. Metrics are also "
        "reported for each of their values, and always for each scene (model.scene).",
    )
    bootstrap: int = Field(1000, ge=0, description="Number of bootstrap resamples for the intervals; 0: no intervals.")
    batch_size: int = Field(512, ge=1, description="Queries scored at once.")


class ExperimentConfig(Section):
    """The settings of one experiment, from raw files to figures."""

    data: DataConfig = Field(default_factory=DataConfig)
    split: SplitConfig = Field(default_factory=SplitConfig)
    text: TextConfig = Field(default_factory=TextConfig)
    tuning: TuningConfig = Field(default_factory=TuningConfig)
    distillation: DistillationConfig = Field(default_factory=DistillationConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    item_weights: ItemWeightSettings = Field(default_factory=ItemWeightSettings)
    ranking: RankingConfig = Field(default_factory=RankingConfig)
    update: UpdateConfig = Field(default_factory=UpdateConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    graph: GraphConfig = Field(default_factory=GraphConfig)
    interests: InterestConfig = Field(default_factory=InterestConfig)
    transfer: TransferConfig = Field(default_factory=TransferConfig)
    board: BoardConfig = Field(default_factory=BoardConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    seed: int = Field(42, description="Random seed.")

    @model_validator(mode="after")
    def _layers_have_nothing_above_them(self) -> Self:
        mode = self.tuning.joint if self.text.mode == "joint" else self.text.mode
        if self.text.query_encoder == "layers" and mode in ("adapter", "prefix"):
            where = "tuning.joint" if self.text.mode == "joint" else "text.mode"
            raise ValueError(
                f"text.query_encoder=layers: expected an encoder without an adapter or a prefix, found {where}={mode}. "
                "Use text.query_encoder=hashed_ngrams, or another mode"
            )
        return self

    @model_validator(mode="after")
    def _joint_mode_fits_the_encoder(self) -> Self:
        if self.text.mode == "joint" and _no_bert(self.text.encoder):
            _check(self.text.encoder, "tuning.joint", self.tuning.joint, _MODES_OF_ANY)
        return self


#: Settings of ``split``, other than its shares, that a kind of split reads; and the shares that a kind does not read.
_OF_KIND = {
    "fixed": frozenset(["test_events"]),
    "cold_domain": frozenset(["domain", "known_events"]),
    **dict.fromkeys(["auto", "leave_last_out", "leave_random_out"], frozenset(["domain"])),
}
_SHARES_NOT_OF_KIND = {
    **dict.fromkeys(["auto", "leave_last_out", "leave_random_out"], frozenset(["validation_share", "test_share"])),
    "fixed": frozenset(["test_share"]),
}
#: Settings of ``tuning`` that only some modes of the text tower read: those for tuning on pairs, and those of each
#: mode.
_OF_PAIRS = frozenset(
    ["temperature", "window", "tail_power", "itself", "word_dropout", "synonyms", "paraphrase", "paraphrase_similarity"]
)
_OF_MODE = {
    "lora": frozenset(["rank", "alpha", "targets"]),
    "adalora": frozenset(["rank", "alpha", "targets"]),
    "prefix": frozenset(["length"]),
    "adapter": frozenset(["width"]),
    "top_layers": frozenset(["layers"]),
    "full": frozenset(),
}
#: Settings of ``distillation`` that only some small towers read.
_OF_TOWER = {
    "hashed_ngrams": frozenset(["buckets", "width", "hidden"]),
    "static": frozenset(["buckets", "width"]),
    "layers": frozenset(["layers"]),
}
#: Settings, other than *auto* sizes, that only the terms meaning and feedback read, by section; those of ``model`` that
#: only meaning reads; and the methods of ``transfer`` that read a setting.
_OF_DENSE_TERMS = {
    "model": frozenset(["embedding_dim", "temperature", "item_fields", "propagation"]),
    "training": frozenset(
        ["learning_rate", "weight_decay", "warmup_share", "log_q", "gate_holdout", "patience", "precision"]
    ),
}
_OF_MEANING = frozenset(["blocks", "heads", "fields", "scene", "scene_experts"])
_OF_METHODS = {"alignment": ["align"], "distil": ["distil"], "same_users": ["joint", "map", "auto"]}


def transfer_without_effect(transfer: TransferConfig) -> list[str]:
    """Returns a line for each setting of ``transfer`` that its method does not read."""
    changed = _changed(transfer, [name for name, methods in _OF_METHODS.items() if transfer.method not in methods])
    return [
        f"transfer.{name} has no effect without transfer.method={' or '.join(_OF_METHODS[name])}" for name in changed
    ]


def settings_without_effect(config: ExperimentConfig, joined: bool = True, scenes: bool = True) -> list[str]:
    """Returns a line for each setting that differs from its default but has no effect with the other settings.

    The *auto* sizes of the hybrid and of its training are not checked, because the config of a run has values for them
    even if they have no effect.

    Args:
      config: The config to check.
      joined: Whether the data has domains.
      scenes: Whether requests have the category that ``model.scene`` names.
    """
    lines: list[str] = []

    def unread(section: str, names: Iterable[str], why: str) -> None:
        lines.extend(f"{section}.{name} has no effect {why}" for name in _changed(getattr(config, section), names))

    split, text, tuning, graph, transfer = config.split, config.text, config.tuning, config.graph, config.transfer
    model, weights, tower = config.model, config.item_weights, config.text.query_encoder
    others = frozenset[str]().union(*_OF_KIND.values()) - _OF_KIND.get(split.kind, frozenset())
    unread("split", others | _SHARES_NOT_OF_KIND.get(split.kind, frozenset()), f"with split.kind={split.kind}")
    if text.mode == "frozen":
        unread("tuning", TuningConfig.model_fields, "with text.mode=frozen")
    else:
        joint = text.mode == "joint"
        others = frozenset[str]().union(*_OF_MODE.values()) - _OF_MODE[tuning.joint if joint else text.mode]
        others |= _OF_PAIRS if joint else {"joint"}
        unread("tuning", others, f"with text.mode={text.mode}" + (f" and tuning.joint={tuning.joint}" if joint else ""))
        if not joint and tuning.paraphrase is None:
            unread("tuning", ["paraphrase_similarity"], "without tuning.paraphrase")
    if model.terms == ["behaviour"]:
        for section, names in _OF_DENSE_TERMS.items():
            unread(section, names, "without meaning or feedback among model.terms")
    if "meaning" not in model.terms:
        unread("model", _OF_MEANING, "without meaning among model.terms")
    elif not model.fields:
        unread("model", ["scene", "scene_experts"], "without model.fields=true")
    elif model.scene is None or not scenes:
        unread("model", ["scene_experts"], "without a category of requests that model.scene names")
    if model.user_text and not (model.fields and "meaning" in model.terms):
        lines.append("model.user_text has no effect without model.fields=true and meaning among model.terms")
    if config.training.negatives == 0:
        unread("training", ["log_q"], "with training.negatives=0")
    if config.ranking.epochs == 0:
        unread("ranking", RankingConfig.model_fields.keys() - {"epochs"}, "with ranking.epochs=0")
    if not graph.wanted:
        unread("graph", ["neighbours", "support"], "without graph.relations or graph.edges")
    elif "use" not in graph.relations:
        unread("graph", ["support"], "without use among graph.relations")
    if not graph.says_more_than_events:
        why = "without graph.edges, or text or values among graph.relations"
        unread("model", ["propagation"], why)
        if graph.wanted and weights.graph:  # without any graph, the fit ends with an error
            lines.append(f"item_weights.graph has no effect {why}")
    if not transfer.sources:
        unread("transfer", TransferConfig.model_fields.keys() - {"sources"}, "without transfer.sources")
        if weights.source:
            lines.append("item_weights.source has no effect without transfer.sources")
    else:
        lines += transfer_without_effect(transfer)
        if transfer.method in ("zero_shot", "align") and graph.wanted and model.propagation == "none":
            why = f"transfer.method={transfer.method} and a source without model.propagation"
            lines.append(f"graph has no effect on the model with {why}; it serves related items and the report")
    if "behaviour" not in model.terms:
        settled = ItemWeightSettings().settled()  # the values in the config of an update
        given = [name for name, value in weights if value != getattr(settled, name)]
        unread("item_weights", given, "without behaviour among model.terms")
    if weights.domains and not joined:
        lines.append("item_weights.domains has no effect on data that is not joined")
    if tower == "same":
        unread("distillation", DistillationConfig.model_fields, "with text.query_encoder=same")
    else:
        others = frozenset[str]().union(*_OF_TOWER.values()) - _OF_TOWER[tower]
        unread("distillation", others, f"with text.query_encoder={tower}")
    return lines


def _changed(section: Section, names: Iterable[str]) -> list[str]:
    """Returns the settings in ``names`` that differ from their default, in the order of the section."""
    among, fields = frozenset(names), type(section).model_fields
    return [name for name in fields if name in among and getattr(section, name) != fields[name].get_default()]


# --- Files ------------------------------------------------------------------------------------------------------------


#: Limits of a config file. A config has a few kilobytes; larger or deeper input is another file, or made to exhaust
#: memory or time.
MAX_BYTES, MAX_VALUES, MAX_DEPTH = 1_000_000, 20_000, 16
#: The largest number of characters in a number. PyYAML takes quadratic time for a long number in base 60
#: (``!!int 1:30:00``).
MAX_DIGITS = 1_000
#: The setting that names a user's function.
PARAPHRASE = "tuning.paraphrase"


@dataclass(frozen=True)
class LoadedConfig:
    """A config, and the folder that its relative data paths refer to, which is the folder of its file."""

    config: ExperimentConfig
    base: Path


def load_config(path: Path | str, overrides: Sequence[str] = (), *, of_run: bool = False) -> LoadedConfig:
    """Reads a YAML file and applies overrides to it.

    Args:
      path: The file. If it or a section is empty, the defaults are used.
      overrides: Items of the form ``a.b=c``, with ``c`` read as YAML (``model.terms=[meaning]``,
        ``training.epochs=null``). They are treated as if written in the file: their paths also refer to its folder.
      of_run: Whether the file is the config of a run folder. Such a file records ``tuning.paraphrase``, which other
        files may not set, because the function is code; :class:`tfllmrec.runs.run.Run` calls it only if its caller
        names it too. Settings that had other names when the run was made are renamed.

    Raises:
      ConfigError: The file cannot be read, is not valid YAML, is too large or nested too deeply; a key is unknown or
        occurs twice; a value is not allowed; or the file names a function to call. For wrong settings the message lists
        every wrong key, with the expected and the found value, and the nearest existing key.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        text = content.decode()
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder; expected a YAML file (a run folder has one: config.yaml).") from None
    except FileNotFoundError:
        there = sorted(p.as_posix() for p in path.parent.glob("*.y*ml"))
        raise ConfigError(f"{path} does not exist{nearest_hint(path.as_posix(), there)}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from error
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{path} is not a config: expected at most {MAX_BYTES:,} bytes of YAML, and it has more.")
    raw = _parse_yaml(text, str(path))
    config = parse_config(_renamed(raw) if of_run else raw, overrides, origin=str(path))
    if not of_run:
        _refuse_code(config, overrides, path)
    return LoadedConfig(config, path.parent)


def _renamed(raw: Any) -> Any:
    """Converts the values of an earlier run's config to the current names of settings.

    ``model.item_weights*`` moves to ``item_weights``. In configs without ``split.test_events``, which are older than
    the present split ``random``, ``random`` means ``leave_random_out``. Runs from before ``model.fields`` and
    ``model.item_fields`` read no such fields; those from before ``model.scene`` and ``item_weights.kinds`` have neither
    scenes nor weights of kinds. ``item_weights.form`` was a separate setting: *exact* is now the rank *all*.
    ``ranking.held_out`` and ``ranking.patience`` are dropped, because they do not affect finished models.
    """
    if not isinstance(raw, dict):
        return raw
    split = raw.get("split")
    if isinstance(split, dict) and split.get("kind") == "random" and "test_events" not in split:
        raw = raw | {"split": split | {"kind": "leave_random_out"}}
    if isinstance(ranking := raw.get("ranking"), dict):
        raw = raw | {"ranking": {key: ranking[key] for key in ranking if key not in ("held_out", "patience")}}
    model = raw.get("model")
    if not isinstance(model, dict):
        return raw
    old = {key for key in model if str(key).startswith("item_weights")}
    moved = {key.removeprefix("item_weights_"): model[key] for key in old - {"item_weights"}}
    moved |= raw.get("item_weights") or {}
    lacking = {"fields": False, "item_fields": "none", "scene": None}
    kept = lacking | {key: value for key, value in model.items() if key not in old}
    if moved.pop("form", None) == "exact":
        moved["rank"] = "all"
    return raw | {"model": kept, "item_weights": {"kinds": False} | moved}


def _refuse_code(config: ExperimentConfig, overrides: Sequence[str], path: Path) -> None:
    """Raises an error if ``tuning.paraphrase`` comes from the file and not from the overrides."""
    function = config.tuning.paraphrase  # validated, so a message may show it in a command
    overridden = {override.partition("=")[0].strip() for override in overrides}
    if function is not None and not overridden & {PARAPHRASE, PARAPHRASE.partition(".")[0]}:
        raise ConfigError(
            f"{path} sets {PARAPHRASE} to {function}, a function that would be called. A file may not do that: remove "
            f"the line, or allow the call with{paraphrase_option(function)}."
        )


def paraphrase_option(function: str | None) -> str:
    """Returns the end of a command that allows a call of ``function``, with a leading space; empty for ``None``."""
    return "" if function is None else f" --set {PARAPHRASE}={function}"


def parse_config(raw: Any, overrides: Sequence[str] = (), origin: str = "config") -> ExperimentConfig:
    """Checks plain values (``{"data": {"source": ...}, ...}``) and overrides.

    Args:
      raw: The values by section.
      overrides: As in :func:`load_config`.
      origin: Name of the values in error messages.

    Raises:
      ConfigError: As in :func:`load_config`.
    """
    if not isinstance(raw, dict | None):
        raise ConfigError(f"{origin}: expected sections such as 'data:', got {shown(raw)}.")
    # A section in which every line is commented out is read as null.
    tree = {key: {} if value is None and key in _sections() else value for key, value in (raw or {}).items()}
    for override in overrides:
        _override(tree, override)
    try:
        return ExperimentConfig.model_validate(tree)
    except ValidationError as error:
        keys = [override.partition("=")[0].strip() for override in overrides]
        lines = []
        for key, problem in _problems(error):
            given = any(key == k or key.startswith(f"{k}.") or k.startswith(f"{key}.") for k in keys)
            lines.append(f"{'--set' if given else origin}: {_explain(key, problem)}")
        raise ConfigError(*lines) from None


def dump_config(config: ExperimentConfig) -> str:
    """Returns the config as YAML with every setting; :func:`load_config` with ``of_run=True`` restores the config."""
    # Write ASCII: PyYAML cannot read back some characters (U+0085) that are not escaped.
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def contradictions(
    asked: ExperimentConfig, resolved: ExperimentConfig, source: dict[str, Any] | None = None
) -> list[str]:
    """Returns a line for each setting that ``asked`` sets and that has another value in the config of a run.

    Settings that were left out or are *auto* contradict nothing.

    Args:
      asked: The config that a file or the command line sets.
      resolved: The config of the run, whose data section names the run's own copy of the data.
      source: The data section that the run was started with, from its ``source.json``; ``None`` if it is unknown: then
        the data section is not compared.
    """
    there = dict(_leaves(resolved.model_dump(mode="json")))
    data = parse_config({"data": source or {}}, origin="source.json").data
    begun = there | settings_of(data=data)
    left_out = {"data"} if source is None else set()
    given = asked.model_dump(mode="json", exclude_unset=True, exclude=left_out)
    wanted = dict(_leaves(asked.model_dump(mode="json")))  # complete, because a nested value may state a default
    return [
        f"{key}: asked for {shown(wanted[key])}, there is {shown(begun[key])}"
        for key, _ in _leaves(given)
        if wanted[key] not in (None, "auto", there[key], begun[key])
    ]


_TOO_DEEP = f"expected at most {MAX_DEPTH} levels of values; a setting has two or three"
_TOO_MANY = f"expected at most {MAX_VALUES:,} values, each alias counted in full; write only the settings you change"
_TOO_LONG = f"expected a number of at most {MAX_DIGITS:,} characters; put a text that looks like a number in quotes"


#: Patterns of the numbers of YAML 1.1, without base 60.
_NOT_BASE_60 = {
    "tag:yaml.org,2002:int": re.compile(r"[-+]?(?:0b[01_]+|0x[0-9a-fA-F_]+|0[0-7_]*|[1-9][0-9_]*)$"),
    "tag:yaml.org,2002:float": re.compile(
        r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+][0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?|\.(?:inf|Inf|INF))$"
        r"|\.(?:nan|NaN|NAN)$"
    ),
}


class _Refused(yaml.MarkedYAMLError):
    """Valid YAML that no config needs."""


class _Loader(yaml.SafeLoader):
    """A safe loader that rejects duplicate keys in a section, very many values, deep nesting and long numbers.

    A few lines with aliases can stand for billions of values, so each alias counts as all values that it stands for.
    Numbers in base 60, as in YAML 1.1, are read as texts: ``1:30`` means rows of ``split.test_events``, and not 90.
    """

    too_many = _TOO_MANY

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = 0
        self.values: dict[int, int] = {}  # the number of values in each finished node, by its id

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        mark: Any = event.start_mark  # has another type in compiled PyYAML
        if isinstance(event, yaml.AliasEvent):
            meant = self.anchors.get(event.anchor)
            if meant is not None and id(meant) not in self.values:
                raise _Refused(problem=f"*{event.anchor} contains itself", problem_mark=mark)
        if self.depth > MAX_DEPTH:
            raise _Refused(problem=_TOO_DEEP, problem_mark=mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        if node is not None and id(node) not in self.values:
            children = [] if isinstance(node, yaml.ScalarNode) else node.value
            is_number = node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
            if is_number and not children and len(node.value) > MAX_DIGITS:
                raise _Refused(problem=_TOO_LONG, problem_mark=mark)
            inner = [n for child in children for n in (child if isinstance(child, tuple) else (child,))]
            self.values[id(node)] = 1 + sum(self.values[id(n)] for n in inner)
            if max(self.values[id(node)], len(self.values)) > MAX_VALUES:
                raise _Refused(problem=self.too_many, problem_mark=mark)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(key_node.value)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} stands here twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, _NOT_BASE_60.get(tag, pattern)) for tag, pattern in resolvers]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _TextLoader(_Loader):
    """A :class:`_Loader` that reads every value as text: ``007`` is not a number."""

    too_many = f"expected at most {MAX_VALUES:,} values, each alias counted in full; put long lists into a table"


_TextLoader.yaml_implicit_resolvers = {}

#: The line, counted from 1, of each place in a YAML document, such as ``("block", 0, "items")``.
Lines = dict[tuple[str | int, ...], int]


def parse_texts(text: str, origin: str) -> tuple[Any, Lines]:
    """Reads YAML or JSON with all values as texts, and the line of each value.

    Args:
      text: The document.
      origin: Name of the document in error messages.

    Raises:
      ConfigError: The document is not valid YAML, is nested too deeply, or has more than :data:`MAX_VALUES` values.
    """
    with _named(origin):
        loader = _TextLoader(text)
        try:
            node = loader.get_single_node()
            value = None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    lines: Lines = {}

    def walk(node: yaml.Node, place: tuple[str | int, ...]) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, inner in node.value:
                lines[(*place, key.value)] = key.start_mark.line + 1
                walk(inner, (*place, key.value))
        elif isinstance(node, yaml.SequenceNode):
            for number, inner in enumerate(node.value):
                lines[(*place, number)] = inner.start_mark.line + 1
                walk(inner, (*place, number))

    if node is not None:
        walk(node, ())
    return value, lines


def _parse_yaml(text: str, origin: str) -> Any:
    with _named(origin):
        return yaml.load(text, Loader=_Loader)


@contextlib.contextmanager
def _named(origin: str) -> Iterator[None]:
    """Converts YAML errors into a ConfigError with the origin, the line and the column."""
    try:
        yield
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        said = error.problem or error.context
        raise ConfigError(
            f"{origin}{where}: {'' if isinstance(error, _Refused) else 'this is not valid YAML: '}{said}."
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{origin}: this is not valid YAML: {error}.") from None


def _override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"--set {override}: expected SECTION.KEY=VALUE, such as training.epochs=10.")
    value = _parse_yaml(text, f"--set {override}")
    if parts[:2] == ["data", "fields"] and len(parts) > 3:  # names of fields may contain dots: event.image
        parts[2:-1] = [".".join(parts[2:-1])]
    place = tree
    for depth, part in enumerate(parts[:-1]):
        place = place.setdefault(part, {})
        if not isinstance(place, dict):
            raise ConfigError(
                f"--set {key.strip()}: {'.'.join(parts[: depth + 1])} is a single value ({shown(place)}) and has no "
                f"keys{nearest_hint(key.strip(), _keys())}."
            )
    place[parts[-1]] = value


def _problems(error: ValidationError) -> Iterator[tuple[str, Any]]:
    """Yields pydantic's errors with the key of the setting.

    ``item_weights.rank`` and ``item_weights.kinds`` have two types; only the error of one is returned.
    """
    for problem in error.errors():
        path = [str(part) for part in problem["loc"]]
        if path[:2] == ["item_weights", "kinds"]:
            if isinstance(problem["input"], dict) if path[2] == "bool" else problem["type"] == "dict_type":
                continue
            problem["msg"] = "true, false or factors by kind" if path[2] == "bool" else problem["msg"]
            path = path[:2] + path[3:]
        if path[:2] == ["item_weights", "rank"]:
            if path[2].startswith("literal"):
                continue
            path, problem["msg"] = path[:2], f"{problem['msg']}, or 'all'"
        yield ".".join(path), problem


def _explain(key: str, problem: Any) -> str:
    """Describes one of pydantic's errors in one line."""
    kind, came = problem["type"], problem["input"]
    parent, _, leaf = key.rpartition(".")
    if kind == "extra_forbidden":
        anywhere = {k.rpartition(".")[2]: k for k in _keys()}
        siblings = [k for k in _keys() if k.startswith(f"{parent}.")] if parent else list(ExperimentConfig.model_fields)
        here = {k.rpartition(".")[2]: k for k in siblings} or {k: k for k in FieldConfig.model_fields}  # data.fields.X
        # The same key in another section is more likely meant than a similar key in this section.
        first = {leaf: anywhere[leaf]} if leaf in anywhere else here
        hint = nearest_hint(leaf, first) or nearest_hint(leaf, anywhere)
        return f"{key} is not a setting{hint}; expected one of {', '.join(here)}."
    if kind == "value_error":  # from a validator; that of a section names the settings itself
        return f"{'' if key in ('', *_sections()) else f'{key}: '}{problem['ctx']['error']}."
    expected = re.sub(r"^Input should be |, unable to parse .*$", "", problem["msg"])
    if kind == "model_type":
        expected = "keys of its own, one a line below it"
    choices = re.findall(r"'([^']*)'", expected) if kind == "literal_error" and isinstance(came, str) else []
    return f"{key}: expected {expected}, got {shown(came)}{nearest_hint(came, choices) if choices else ''}."


def _sections() -> list[str]:
    return [name for name, default in ExperimentConfig() if isinstance(default, Section)]


def _keys() -> list[str]:
    """Returns every setting as ``section.key``, in order."""
    return [key for key, _ in _leaves(ExperimentConfig().model_dump())]


def settings_of(**sections: Section) -> dict[str, Any]:
    """Returns the settings of some sections by their names in the config, as JSON values."""
    return dict(_leaves({name: section.model_dump(mode="json") for name, section in sections.items()}))


def settings_by_key(config: ExperimentConfig) -> dict[str, Any]:
    """Returns every setting as ``section.key`` with its JSON value; the seed comes first."""
    return {"seed": config.seed, **dict(_leaves(config.model_dump(mode="json")))}


def _leaves(tree: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and not above:
            yield from _leaves(value, f"{key}.")
        else:
            yield f"{above}{key}", value
