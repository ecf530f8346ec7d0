import numpy as np
import pytest

from fedsim.data.dataset import Card, Dataset, Split
from fedsim.data.local_tests import add_local_tests
from fedsim.data.partition import Assignment, Manifest, build_manifest
from fedsim.errors import InputError
from fedsim.rng import numpy_generator


def dataset(train: list[int], test: list[int], domains: bool = False) -> Dataset:
    def split(labels: list[int]) -> Split:
        y = np.array(labels, np.int64)
        extra = {"domain": y % 2} if domains else {}
        return Split(np.zeros((len(y), 1, 1, 1), np.uint8), y, extra)

    card = Card(
        "t", "s", "l", ("a", "b", "c", "d"), (1, 1, 1), (0.5,), (0.5,), "d",
        domains=("even", "odd") if domains else (),
    )  # fmt: skip
    return Dataset("tiny", split(train), split(test), card)


def manifest(*clients: list[int], validation: float = 0.0) -> Manifest:
    rows = np.array([row for client in clients for row in client], np.int32)
    pointers = np.cumsum([0, *map(len, clients)])
    own = Assignment(rows, pointers)
    return build_manifest(own, validation, 0, numpy_generator(0, "holdout"))


def labels_tested(manifest: Manifest, data: Dataset, client: int) -> list[int]:
    found = manifest.client(client)
    assert found.on_test_split
    return data.test.y[found.test].tolist()


def test_matched_tests_follow_the_training_histogram() -> None:
    # Of 10 training samples client 0 has 4 of class 0 and 1 of class 1, client 1 has 5 of class 1.
    data = dataset([0] * 4 + [1] * 6, [0] * 8 + [1] * 12)
    own = manifest([0, 1, 2, 3, 4], [5, 6, 7, 8, 9])
    found = add_local_tests(own, data, "matched", numpy_generator(0, "local-tests"))
    # floor(4/10 * 20) = 8 and floor(1/10 * 20) = 2; floor(5/10 * 20) = 10
    assert sorted(labels_tested(found, data, 0)) == [0] * 8 + [1] * 2
    assert sorted(labels_tested(found, data, 1)) == [1] * 10
    for client in (0, 1):  # without replacement
        rows = found.client(client).test.tolist()
        assert len(set(rows)) == len(rows)
    assert found.digest() != own.digest()


def test_matched_tests_go_round_where_a_class_is_scarce() -> None:
    data = dataset([0] * 10, [0] * 3 + [1] * 9)
    found = add_local_tests(manifest(list(range(10))), data, "matched", numpy_generator(0, "x"))
    rows = found.client(0).test  # 12 wanted, 3 there
    assert np.bincount(rows, minlength=12).tolist() == [4, 4, 4] + [0] * 9


def test_domain_and_class_tests_are_all_there_is() -> None:
    data = dataset([0, 1, 2, 3], [0, 1, 2, 3, 3], domains=True)
    own = manifest([0, 2], [1], [3])
    by_domain = add_local_tests(own, data, "domain", numpy_generator(0, "x"))
    assert [labels_tested(by_domain, data, i) for i in range(3)] == [[0, 2], [1, 3, 3], [1, 3, 3]]
    by_class = add_local_tests(own, data, "classes", numpy_generator(0, "x"))
    assert [sorted(labels_tested(by_class, data, i)) for i in range(3)] == [[0, 2], [1], [3, 3]]


def test_nothing_is_lost_on_disk(tmp_path) -> None:  # type: ignore[no-untyped-def]
    data = dataset([0, 1, 2, 3], [0, 1, 2, 3])
    found = add_local_tests(manifest([0, 2], [1, 3]), data, "classes", numpy_generator(0, "x"))
    found.save(tmp_path / "m.npz")
    again = Manifest.load(tmp_path / "m.npz")
    assert again.digest() == found.digest()
    assert again.client(1).test.tolist() == [1, 3]
    assert again.client(1).on_test_split


def test_what_can_not_be_tested_is_refused() -> None:
    data = dataset([0, 1], [0, 0])
    with pytest.raises(InputError, match=r"'domain', but tiny has no domains"):
        add_local_tests(manifest([0], [1]), data, "domain", numpy_generator(0, "x"))
    with pytest.raises(InputError, match="nothing of the labels of client 1"):
        add_local_tests(manifest([0], [1]), data, "classes", numpy_generator(0, "x"))
