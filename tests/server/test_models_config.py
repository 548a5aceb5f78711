from pathlib import Path

import pytest

from tfllmrec.errors import ConfigError
from tfllmrec.server.models_config import (
    MAX_MODELS,
    ModelSource,
    read_sources,
    require_below,
    sources_of,
)
from tfllmrec.serving.promotion import PROMOTIONS, adopt

CONFIG = """
model_config_list {
  config {
    name: 'shop'
    base_path: '/models/shop'
    model_platform: 'tensorflow'
    model_version_policy { specific { versions: 41 versions: 42 } }
    version_labels { key: 'stable' value: 41 }
    version_labels { key: 'canary' value: 42 }
  }
  config { name: 'films' base_path: 'films' model_platform: 'tensorflow' }
  config {
    name: 'two' base_path: '/two' model_platform: 'tensorflow' model_version_policy { latest { num_versions: 2 } }
  }
  config { name: 'all' base_path: '/all' model_platform: 'tensorflow' model_version_policy { all {} } }
}
"""


def test_tf_servings_own_file(tmp_path):
    file = tmp_path / "models.config"
    file.write_text(CONFIG)
    shop, films, two, every = read_sources(file)
    assert shop == ModelSource(
        "shop", tmp_path / "/models/shop", "specific", versions=(41, 42), labels={"stable": 41, "canary": 42}
    )
    assert films == ModelSource("films", tmp_path / "films", "latest", 1)
    assert (two.policy, two.latest) == ("latest", 2)
    assert every.policy == "all"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("model_config_list {", 'expected a ModelServerConfig in protobuf text format: 1:19 : Expected "}"'),
        ("modelconfiglist {}", 'no field named "modelconfiglist"'),
        ("", "expected a model_config_list"),
        ("custom_model_config {}", "expected a model_config_list"),
        ("model_config_list { config { name: 'a' model_platform: 'tensorflow' } }", "model 'a': expected a base_path"),
        (
            "model_config_list { config { name: 'a' base_path: '/x' } }",
            "model 'a': expected model_platform: 'tensorflow', found ''",
        ),
        (
            "model_config_list { config { name: 'a' base_path: 's3://x' model_platform: 'tensorflow' } }",
            "'s3://x' is not a folder on this machine",
        ),
        (
            "model_config_list { config { name: 'a' base_path: '/x' model_platform: 'tensorflow' "
            "model_version_policy { specific {} } } }",
            "names no version",
        ),
        (
            "model_config_list {" + 2 * "config { name: 'a' base_path: '/x' model_platform: 'tensorflow' }" + "}",
            "'a' is listed twice",
        ),
    ],
)
def test_what_is_wrong_with_the_file_is_said(tmp_path, text, what):
    file = tmp_path / "models.config"
    file.write_text(text)
    with pytest.raises(ConfigError, match=f"models.config: .*{what}"):
        read_sources(file)


def config_of(*models):
    """A ``ModelServerConfig`` of models that have these fields beside what each needs."""
    from google.protobuf import text_format
    from tensorflow_serving.config import model_server_config_pb2

    needed = "name: 'shop' base_path: '/shop' "
    text = " ".join(f"config {{ {needed if 'name:' not in model else ''}{model} }}" for model in models)
    return text_format.Parse(f"model_config_list {{ {text} }}", model_server_config_pb2.ModelServerConfig())


@pytest.mark.parametrize(
    "fields",
    [
        "model_type: TENSORFLOW",  # the older field
        "model_platform: 'tensorflow' logging_config {}",
        "model_platform: 'tensorflow' logging_config { log_collector_config { type: 'x' filename_prefix: '/x' } }",
        "model_platform: 'tensorflow' logging_config { sampling_config { sampling_rate: 0 } }",
        "model_platform: 'tensorflow' model_version_policy {}",
        "model_platform: 'tensorflow' model_version_policy { latest {} }",
        "name: 'shop' base_path: 'file:///shop' model_platform: 'tensorflow'",
    ],
)
def test_other_ways_to_say_the_same(fields):
    assert sources_of(config_of(fields), Path("/")) == [ModelSource("shop", Path("/shop"))]


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path):
    file = tmp_path / "models.config"
    file.write_text("model_config_list { config { name: 'a' base_path: 'a' model_type: TENSORFLOW } }", "utf-8-sig")
    assert read_sources(file) == [ModelSource("a", tmp_path / "a")]


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ("model_type: OTHER", "expected model_type: TENSORFLOW, found OTHER"),
        ("model_type: TENSORFLOW model_platform: 'tensorflow'", "found both: remove model_type"),
        ("model_platform: 'tensorflow_model_server'", "found 'tensorflow_model_server'"),
        (
            "model_platform: 'tensorflow' logging_config { sampling_config { sampling_rate: 0.1 } }",
            "logging_config asks for a log of requests",
        ),
        (
            "model_type: TENSORFLOW model_version_policy { specific { versions: -1 } }",
            "expected version numbers from 0 to 9223372036854775807",
        ),
        ("model_type: TENSORFLOW version_labels { key: 'stable' value: -1 }", "found a negative one"),
        ("model_type: TENSORFLOW version_labels { key: 'a b' value: 1 }", "label 'a b': expected letters"),
        (
            "model_type: TENSORFLOW " + "".join(f"version_labels {{ key: 'l{n}' value: 1 }}" for n in range(101)),
            "expected at most 100 version_labels, found 101",
        ),
        (
            f"model_type: TENSORFLOW model_version_policy {{ specific {{ versions: {list(range(101))} }} }}",
            "expected at most 100 specific versions, found 101",
        ),
        (r"name: 'a' base_path: '/x\000y' model_type: TENSORFLOW", r"'/x\\x00y' is not a folder on this machine"),
        ("name: 'a' base_path: 'file://host/x' model_type: TENSORFLOW", "is not a folder on this machine"),
    ],
)
def test_fields_that_cannot_be_honoured_are_refused(fields, what):
    with pytest.raises(ConfigError, match=f"^model '(shop|a)': .*{what}"):
        sources_of(config_of(fields), Path("/"))


@pytest.mark.parametrize(
    "name",
    ["", "a/b", "a:b", "a b", "..", "-a", "a%2Fb", r"a\nb", r"a\n", "<b>", "naïve", "١", "x" * 129, "x" * 100_000],
)
def test_names_are_words(name):
    with pytest.raises(ConfigError, match="expected a name of up to 128 letters") as refused:
        sources_of(config_of(f"name: '{name}' base_path: '/x' model_type: TENSORFLOW"), Path("/"))
    assert len(str(refused.value)) < 600 and "\n" not in str(refused.value)


def test_the_same_version_twice_is_one():
    fields = f"model_type: TENSORFLOW model_version_policy {{ specific {{ versions: {[3, 1] * 1000} }} }}"
    (source,) = sources_of(config_of(fields), Path("/"))
    assert source.versions == (3, 1)


def test_the_number_of_models_is_limited(tmp_path, monkeypatch):
    model = "name: 'm{}' base_path: '/x' model_type: TENSORFLOW"
    many = config_of(*(model.format(n) for n in range(MAX_MODELS)))
    assert len(sources_of(many, Path("/"))) == MAX_MODELS
    monkeypatch.setattr("tfllmrec.server.models_config._source", lambda *_: pytest.fail("looked at a model"))
    many.model_config_list.config.add()
    with pytest.raises(ConfigError, match=f"expected at most {MAX_MODELS} models, found {MAX_MODELS + 1}"):
        sources_of(many, Path("/"))
    monkeypatch.setattr("tfllmrec.server.models_config.MAX_MODELS", 1)
    for name in ("shop/1", "films/1"):
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(ConfigError, match="has 2 models: expected at most 1"):
        read_sources(tmp_path)


def test_models_must_be_below_the_folder_that_is_served(tmp_path):
    root = tmp_path / "models"
    (root / "shop").mkdir(parents=True)
    (tmp_path / "models-elsewhere" / "shop").mkdir(parents=True)
    (tmp_path / "link").symlink_to(root)
    (root / "link").symlink_to(tmp_path / "models-elsewhere")
    (root / "loop").symlink_to(root / "loop")
    require_below([], [root])
    for inside in (root, root / "shop", root / "shop" / ".." / "shop", tmp_path / "link" / "shop", root / "not-yet"):
        require_below([ModelSource("a", inside)], [root])
        require_below([ModelSource("a", inside)], [tmp_path / "link"])
        require_below([ModelSource("a", inside)], [tmp_path / "models-elsewhere", root])
    for outside in ("..", "../models-elsewhere/shop", "link/shop", "shop/../../models-elsewhere", "/", "/etc"):
        with pytest.raises(ConfigError, match=r"model 'a': base_path .* is outside of the folder that is served"):
            require_below([ModelSource("ok", root / "shop"), ModelSource("a", root / outside)], [root])


def test_a_known_model_stays_while_its_folder_does(tmp_path):
    for name in ("shop/1", "films/1"):
        (tmp_path / name).mkdir(parents=True)
    for path, names in ((tmp_path, ["films", "shop"]), (tmp_path / "shop", ["shop"])):
        known = read_sources(path)
        assert [source.name for source in known] == names
        (tmp_path / "shop" / "1").rmdir()
        assert read_sources(path, known) == known
        (tmp_path / "shop" / "1").mkdir()
    both = read_sources(tmp_path)
    (tmp_path / "shop" / "1").rmdir()
    (tmp_path / "shop").rmdir()
    assert [source.name for source in read_sources(tmp_path, both)] == ["films"]


def test_a_folder_that_cannot_be_read_is_ignored(tmp_path, monkeypatch, caplog):
    for name in ("shop/1", "lost+found"):
        (tmp_path / name).mkdir(parents=True)
    listed = Path.iterdir

    def iterdir(folder):
        if folder.name == "lost+found":
            raise PermissionError(13, "Permission denied", str(folder))
        return listed(folder)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    for _ in range(2):
        assert [source.name for source in read_sources(tmp_path)] == ["shop"]
    assert caplog.text.count("lost+found is ignored") == 1


def test_a_folder_that_may_not_be_read_is_a_wrong_setting(tmp_path, monkeypatch):
    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    for name in ("iterdir", "is_file"):
        with (
            monkeypatch.context() as patched,
            pytest.raises(ConfigError, match=r"cannot be read: Permission denied\.$"),
        ):
            patched.setattr(Path, name, denied)
            read_sources(tmp_path)


def test_damaged_promotions_of_one_model_leave_the_others(tmp_path, caplog):
    for name in ("shop/1", "shop/2", "films/1"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "shop" / "2" / "saved_model.pb").touch()
    adopt(tmp_path / "shop")
    known = read_sources(tmp_path)
    assert known[1].labels == {"stable": 2}
    (tmp_path / "shop" / PROMOTIONS).write_text("{")
    for _ in range(2):
        assert read_sources(tmp_path, known) == known
    assert caplog.text.count("promotions.json is ignored") == 1
    assert read_sources(tmp_path) == known[:1] and f"{tmp_path / 'shop'} is ignored: " in caplog.text
    with pytest.raises(ConfigError, match="is damaged"):
        read_sources(tmp_path / "shop")


def test_a_folder_of_models_or_one_model(tmp_path):
    for name in ("shop/1", "shop/22", "shop/.writing-3", "films/007", "empty", ".hidden/1", "shop/x9"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "films" / "8").write_text("a file")
    assert read_sources(tmp_path) == [
        ModelSource("films", tmp_path / "films"),
        ModelSource("shop", tmp_path / "shop"),
    ]
    assert read_sources(tmp_path / "shop") == [ModelSource("shop", tmp_path / "shop")]
    assert read_sources(tmp_path / "empty") == []
    with pytest.raises(ConfigError, match="nowhere does not exist: expected a folder of models"):
        read_sources(tmp_path / "nowhere")
