from pathlib import Path

import pytest

from tfllmrec.errors import ConfigError
from tfllmrec.serving.embedded.models_config import ModelSource, read_sources
from tfllmrec.serving.layout import version_folders

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
        ("model_config_list { config { name: 'a' } }", "model 'a' with base_path '': expected both"),
        ("model_config_list { config { name: 'a/b' base_path: '/x' } }", "model 'a/b': a name has no '/'"),
        (
            "model_config_list { config { name: 'a' base_path: '/x' } }",
            "model 'a': expected model_platform: 'tensorflow', got ''",
        ),
        (
            "model_config_list { config { name: 'a' base_path: 's3://x' model_platform: 'tensorflow' } }",
            "'s3://x' is no folder of this machine",
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


def test_a_folder_that_cannot_be_read_is_passed_over(tmp_path, monkeypatch, caplog):
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
    assert caplog.text.count("lost+found is passed over") == 1


def test_a_folder_of_models_or_one_model(tmp_path):
    for name in ("shop/1", "shop/22", "shop/.writing-3", "films/007", "empty", ".hidden/1", "shop/x9"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "films" / "8").write_text("a file")
    assert read_sources(tmp_path) == [
        ModelSource("films", tmp_path / "films"),
        ModelSource("shop", tmp_path / "shop"),
    ]
    assert read_sources(tmp_path / "shop") == [ModelSource("shop", tmp_path / "shop")]
    assert version_folders(tmp_path / "shop") == {1: tmp_path / "shop/1", 22: tmp_path / "shop/22"}
    assert version_folders(tmp_path / "films") == {7: tmp_path / "films/007"}
    assert read_sources(tmp_path / "empty") == []
    with pytest.raises(ConfigError, match="nowhere is not there: expected a folder of models"):
        read_sources(tmp_path / "nowhere")
