import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest

from fedsim.data.partition import Assignment, Manifest, build_manifest
from fedsim.errors import InputError
from fedsim.rng import numpy_generator


def ints(*values: int) -> np.ndarray:
    return np.array(values)


def assignment(*sizes: int) -> Assignment:
    """Clients of the given sizes that own 0, 1, 2, ... in order."""
    return Assignment(np.arange(sum(sizes)), np.cumsum([0, *sizes]))


@pytest.fixture
def manifest() -> Manifest:
    # Client 0: train 9 8 7, validation 6, test 5. Client 1: train 0. Client 2: train 3, test 2 1.
    return Manifest(ints(9, 8, 7, 6, 5, 0, 3, 2, 1), ints(0, 5, 6, 9), ints(1, 0, 0), ints(1, 0, 2))


def test_arrays_get_the_dtypes_of_the_format() -> None:
    own = assignment(2, 3)
    assert (own.indices.dtype, own.pointers.dtype) == (np.int32, np.int64)
    assert own.num_clients == 2
    assert own.sizes.tolist() == [2, 3]


@pytest.mark.parametrize(
    ("indices", "pointers", "message"),
    [
        (ints(0, 1), ints(0), "at least 1 client, got 0"),
        (ints(0, 1), ints(1, 2), "start at 0, got 1"),
        (ints(0, 1), ints(0, 3), "end at the number of indices, 2, got 3"),
        (ints(0, 1), ints(0, 3, 1, 2), "must not fall"),
        (ints(0, -4), ints(0, 2), ">= 0, got -4"),
        (np.array([0.5]), ints(0, 1), "indices must be a 1-d integer array"),
        (ints(1 << 31), ints(0, 1), "indices must fit int32, got"),
    ],
)
def test_assignment_refuses(indices: np.ndarray, pointers: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Assignment(indices, pointers)


def test_client_slices(manifest: Manifest) -> None:
    slices = [[part.tolist() for part in manifest.client(i)[:3]] for i in range(3)]
    assert slices == [[[9, 8, 7], [6], [5]], [[0], [], []], [[3], [], [2, 1]]]
    assert manifest.num_clients == 3
    assert manifest.num_train.tolist() == [3, 1, 1]
    assert np.shares_memory(manifest.client(0).train, manifest.indices)


@pytest.mark.parametrize("client", [-1, 3])
def test_client_outside_the_population(manifest: Manifest, client: int) -> None:
    with pytest.raises(IndexError, match=rf"0\.\.2, got {client}"):
        manifest.client(client)


@pytest.mark.parametrize(
    ("validation", "test", "message"),
    [
        (ints(0), ints(0, 0), "num_validation must have 2 values, got 1"),
        (ints(0, 0), ints(0, -1), "num_test must be >= 0, got -1"),
        (ints(1, 1), ints(0, 1), "at least 1 training sample, got 0"),
    ],
)
def test_manifest_refuses(validation: np.ndarray, test: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Manifest(ints(0, 1, 2, 3), ints(0, 2, 4), validation, test)


def test_digest_hashes_the_arrays_as_little_endian(manifest: Manifest) -> None:
    data = b"fedsim manifest 3"
    data += b"/indices/9/" + struct.pack("<9i", 9, 8, 7, 6, 5, 0, 3, 2, 1)
    data += b"/pointers/4/" + struct.pack("<4q", 0, 5, 6, 9)
    data += b"/server/0//public/0//labelled/0//modality/0/"
    data += b"/num_validation/3/" + struct.pack("<3i", 1, 0, 0)
    data += b"/num_test/3/" + struct.pack("<3i", 1, 0, 2)
    data += b"/test_indices/0//test_pointers/0/"
    assert manifest.digest() == hashlib.sha256(data).hexdigest()


def test_manifest_of_a_seed_never_changes() -> None:
    build = lambda seed: build_manifest(  # noqa: E731
        assignment(5, 10, 3), 0.1, 0.2, numpy_generator(seed, "holdout")
    )
    assert build(0).digest() == "047a222e92a0d70db789eedf9131e773c0ea5b4ac6e5b7d3f493ca639464bcca"
    assert build(0).digest() == build(0).digest() != build(1).digest()


def test_saved_manifest_comes_back(manifest: Manifest, tmp_path: Path) -> None:
    path = tmp_path / "partition.npz"
    path.write_bytes(b"older")
    manifest.save(path)
    loaded = Manifest.load(path)
    assert loaded.digest() == manifest.digest()
    assert loaded.indices.dtype == np.int32
    assert [p.name for p in tmp_path.iterdir()] == ["partition.npz"]


def test_failed_save_keeps_the_old_file(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disk_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "partition.npz"
    manifest.save(path)
    monkeypatch.setattr("os.fsync", disk_full)
    with pytest.raises(OSError, match="No space left"):
        manifest.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["partition.npz"]
    assert Manifest.load(path).digest() == manifest.digest()


def test_load_refuses_what_is_no_manifest(manifest: Manifest, tmp_path: Path) -> None:
    path = tmp_path / "partition.npz"
    with pytest.raises(InputError, match=r"there is no partition manifest .*partition\.npz"):
        Manifest.load(path)
    manifest.save(path)
    whole = path.read_bytes()
    for data in (whole[: len(whole) // 2], b"", b"text"):
        path.write_bytes(data)
        with pytest.raises(InputError, match="is not a whole partition manifest"):
            Manifest.load(path)
    np.savez(path, indices=np.arange(3))
    with pytest.raises(InputError, match="is not a whole partition manifest"):
        Manifest.load(path)
    np.save(tmp_path / "array.npy", np.arange(3))
    with pytest.raises(InputError, match="is not a whole partition manifest"):
        Manifest.load(tmp_path / "array.npy")


@pytest.mark.parametrize(
    ("validation", "test", "expected"),
    [
        # (train, validation, test) of clients with 1, 4 and 10 samples; halves are rounded up.
        (0.1, 0.1, [(1, 0, 0), (4, 0, 0), (8, 1, 1)]),
        (0.2, 0.3, [(1, 0, 0), (2, 1, 1), (5, 2, 3)]),
        (0.15, 0.25, [(1, 0, 0), (2, 1, 1), (5, 2, 3)]),
        # One sample stays: of 4 samples 2 + 2 are asked for and the test gives way ...
        (0.45, 0.5, [(1, 0, 0), (1, 2, 1), (1, 5, 4)]),
        # ... and of 1 sample both are rounded to 1 and both give way.
        (0.0, 0.9, [(1, 0, 0), (1, 0, 3), (1, 0, 9)]),
        (0.9, 0.0, [(1, 0, 0), (1, 3, 0), (1, 9, 0)]),
    ],
)
def test_holdout_counts_by_hand(
    validation: float, test: float, expected: list[tuple[int, int, int]]
) -> None:
    own = assignment(1, 4, 10)
    manifest = build_manifest(own, validation, test, numpy_generator(0, "holdout"))
    assert [tuple(map(len, manifest.client(i)[:3])) for i in range(3)] == expected
    for i, (start, stop) in enumerate([(0, 1), (1, 5), (5, 15)]):
        together = np.concatenate(manifest.client(i)[:3])
        assert sorted(together.tolist()) == list(range(start, stop))


def test_a_half_is_rounded_up_though_its_product_lies_below() -> None:
    assert 0.145 * 100 < 14.5
    manifest = build_manifest(assignment(100), 0, 0.145, numpy_generator(0, "holdout"))
    assert manifest.num_test.tolist() == [15]


def test_without_holdout_nothing_is_drawn_or_moved() -> None:
    rng = numpy_generator(0, "holdout")
    own = assignment(3, 4)
    manifest = build_manifest(own, 0, 0, rng)
    assert manifest.indices is own.indices
    assert rng.integers(1 << 40) == numpy_generator(0, "holdout").integers(1 << 40)


def test_shuffle_is_uniform_within_a_client() -> None:
    # 3,000 clients of 4: each of the 24 orders 125 times in the mean, standard deviation 10.9.
    manifest = build_manifest(assignment(*[4] * 3000), 0, 0.25, numpy_generator(0, "holdout"))
    orders = manifest.indices.reshape(3000, 4) - 4 * np.arange(3000)[:, None]
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 24
    assert counts.min() > 125 - 4 * 10.9
    assert counts.max() < 125 + 4 * 10.9


@pytest.mark.parametrize(
    ("validation", "test", "message"),
    [
        (-0.1, 0, r"partition\.validation must be in \[0, 1\), got -0\.1"),
        (0, 1.0, r"partition\.test must be in \[0, 1\), got 1\.0"),
        (0, float("nan"), r"partition\.test must be in \[0, 1\), got nan"),
        (0.5, 0.5, r"partition\.validation \+ partition\.test must be < 1, got 1\.0"),
    ],
)
def test_bad_fractions(validation: float, test: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_manifest(assignment(3), validation, test, numpy_generator(0, "holdout"))


def test_empty_clients_are_named() -> None:
    with pytest.raises(InputError, match=r"2 of 4 have none \(clients 1, 3\)"):
        build_manifest(assignment(2, 0, 1, 0), 0, 0, numpy_generator(0, "holdout"))


def test_memory_of_100_000_clients() -> None:
    manifest = build_manifest(assignment(*[8] * 100_000), 0.1, 0.1, numpy_generator(0, "holdout"))
    assert manifest.indices.nbytes == 800_000 * 4
    assert manifest.pointers.nbytes == 100_001 * 8
    assert manifest.num_validation.nbytes == manifest.num_test.nbytes == 400_000
    assert manifest.num_train.tolist() == [6] * 100_000


def test_roles_reach_the_clients(tmp_path: Path) -> None:
    own = Assignment(
        np.arange(4), np.array([0, 2, 4]), server=np.array([7, 5]),
        labelled=np.array([1, 0]), modality=np.array([0, 2]),
    )  # fmt: skip
    manifest = build_manifest(own, 0, 0.5, numpy_generator(0, "holdout"))
    manifest.save(tmp_path / "m.npz")
    for one in (manifest, Manifest.load(tmp_path / "m.npz")):
        assert [one.client(i)[3:] for i in (0, 1)] == [(False, True, 0), (False, False, 2)]
        assert one.server.tolist() == [7, 5]
    moved = own.on_rows(np.arange(10) * 10)
    assert moved.indices.tolist() == [0, 10, 20, 30]
    assert moved.server.tolist() == [70, 50]
    assert moved.labelled.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        ({"labelled": np.array([1])}, "labelled must have 2 values or none, got 1"),
        ({"labelled": np.array([1, 2])}, "labelled must be <= 1, got 2"),
        ({"modality": np.array([0, 3])}, "modality must be <= 2, got 3"),
        ({"server": np.array([3, -1])}, "server must be >= 0, got -1"),
    ],
)
def test_bad_roles_are_refused(roles: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Assignment(np.arange(4), np.array([0, 2, 4]), **roles)
