import json

import numpy as np
import pytest

from tfllmrec.errors import ModelError, WriteError
from tfllmrec.evaluation.protocol import Result
from tfllmrec.evaluation.result_files import load_result, save_result


@pytest.mark.parametrize("users", [None, np.array([0, 0, 1])])
def test_a_result_comes_back_without_intervals(tmp_path, users):
    values = {"ndcg@10": np.array([0.5, np.nan, 1.0])}
    result = Result(
        {"ndcg@10": 0.75, "gini@10": None}, {"ndcg@10": (0.5, 1.0)}, {"targets": 2}, values, ["odd"], {}, users
    )
    path = tmp_path / "new" / "result.npz"
    save_result(path, result)
    again = load_result(path)
    assert (again.metrics, again.counts, again.alarms, again.intervals) == (
        result.metrics, result.counts, result.alarms, {},
    )  # fmt: skip
    np.testing.assert_array_equal(again.per_query["ndcg@10"], values["ndcg@10"])
    assert (again.users is None) if users is None else (again.users == users).all()
    np.savez(path, known=np.array(json.dumps({"metrics": {}, "of_another_version": 1})))
    with pytest.raises(ModelError, match=r"of_another_version.*delete it, to measure again"):
        load_result(path)
    path.write_bytes(b"PK nothing")
    with pytest.raises(ModelError, match="delete it, to measure again"):
        load_result(path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="cannot be written"):
        save_result(tmp_path / "file" / "result.npz", Result({}, {}, {}, {}, []))
