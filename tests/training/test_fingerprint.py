import numpy as np

from tfllmrec.data.queries import Queries
from tfllmrec.training.fingerprint import fingerprint, queries_fingerprint


def test_types_shapes_and_values_count(tmp_path):
    numbers = np.arange(6, dtype=np.float32)
    np.save(tmp_path / "numbers.npy", numbers)
    same = [numbers, numbers.copy(), np.repeat(numbers, 2)[::2], np.load(tmp_path / "numbers.npy", mmap_mode="r")]
    assert len({fingerprint(array) for array in same}) == 1
    others = [numbers, numbers.astype(np.float64), numbers.reshape(2, 3), -numbers, numbers[:0], numbers[:0] > 0]
    assert len({fingerprint(array) for array in others}) == len(others)
    assert fingerprint(numbers[:2], numbers[2:]) != fingerprint(numbers[:3], numbers[3:])
    assert fingerprint(np.array([np.nan, 1.0])) == fingerprint(np.array([np.nan, 1.0]))


def test_strings_count_by_their_characters():
    texts = np.array(["ab", "c", "é", "\ud800"], object)
    assert fingerprint(texts) == fingerprint(np.array(["a" + "b", "c", "é", "\ud800"], object))
    others = [texts, np.array(["a", "bc", "é", "\ud800"], object), texts[::-1], texts.reshape(2, 2), texts[:0]]
    assert len({fingerprint(array) for array in others}) == len(others)


def test_every_part_of_queries_counts():
    asked = {"histories": [[1, 2], [3]], "ratings": [[1, 2], [3]], "exclude": [[1], []], "targets": [[4], []]}
    found = {queries_fingerprint(Queries.from_histories(**asked))}
    for name, value in (
        ("histories", [[1], [2, 3]]), ("ratings", [[1, 2], [4]]), ("exclude", [[1], [1]]), ("targets", [[], [4]])
    ):  # fmt: skip
        changed = asked | {name: value}
        if name == "histories":
            changed["ratings"] = [[1], [2, 3]]
        found.add(queries_fingerprint(Queries.from_histories(**changed)))
    assert len(found) == 5
