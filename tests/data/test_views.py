import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from fedsim.data.augment import Augmentation
from fedsim.data.dataset import Card, Split
from fedsim.data.partition import Manifest
from fedsim.data.views import ClientData, HiddenData, View
from fedsim.errors import InputError


def card(channels: int = 1, height: int = 2, width: int = 3, **changes: object) -> Card:
    fields: dict[str, object] = {
        "mean": (0.2,) * channels,
        "std": (0.5,) * channels,
        "input_shape": (channels, height, width),
    }
    return Card("t", "s", "l", ("a", "b"), description="d", **(fields | changes))  # type: ignore[arg-type]


def numbered(n: int) -> Split:
    """Sample i is a 2x3 image of the value i, with label 10 i."""
    x = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 2, 3, 1)).copy()
    return Split(x, np.arange(n, dtype=np.int64) * 10)


def value(x: torch.Tensor) -> list[int]:
    """Undo the normalisation of `card`: the sample's number."""
    return [round(v) for v in ((x[:, 0, 0, 0] * 0.5 + 0.2) * 255).tolist()]


def generator(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_inputs_are_normalised_by_hand() -> None:
    split = Split(np.array([0, 51, 102, 255], np.uint8).reshape(2, 1, 2, 1), np.zeros(2, np.int64))
    x = View(split, np.array([1, 0]), card(1, 1, 2)).inputs()
    # (102/255 - 0.2) / 0.5 = 0.4, (255/255 - 0.2) / 0.5 = 1.6, (0 - 0.2) / 0.5 = -0.4
    expected = torch.tensor([0.4, 1.6, -0.4, 0.0]).reshape(2, 1, 1, 2)
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-6)
    assert x.dtype == torch.float32


def test_each_channel_has_its_own_mean_and_std() -> None:
    pixels = np.array([[0, 51, 255], [255, 102, 0]], np.uint8).reshape(1, 1, 2, 3)
    own = card(3, 1, 2, mean=(0.0, 0.2, 0.5), std=(1.0, 0.5, 0.25))
    x = View(Split(pixels, np.zeros(1, np.int64)), np.array([0]), own).inputs()
    expected = torch.tensor([[[[0.0, 1.0]], [[0.0, 0.4]], [[2.0, -2.0]]]])
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_inputs_have_the_right_pixels_in_channels_last_memory(channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 6, channels), dtype=np.uint8)
    split = Split(pixels, np.arange(5))
    x = View(split, np.arange(5), card(channels, 4, 6)).inputs()
    assert x.shape == (5, channels, 4, 6)
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert x.stride() == (24 * channels, 1, 6 * channels, channels)
    expected = (pixels.transpose(0, 3, 1, 2) / 255 - 0.2) / 0.5
    np.testing.assert_allclose(x.numpy(), expected, rtol=0, atol=1e-6)


def test_order_selects_positions_of_the_view() -> None:
    view = View(numbered(10), np.array([9, 4, 7], np.int32), card())
    assert len(view) == 3
    assert view.indices.tolist() == [9, 4, 7]
    assert value(view.inputs()) == [9, 4, 7]
    assert value(view.inputs(torch.tensor([2, 0, 0]))) == [7, 9, 9]
    assert view.labels().tolist() == [90, 40, 70]
    assert view.labels(np.array([1])).tolist() == [40]
    assert view.labels().dtype == torch.int64


def test_what_is_returned_may_be_changed() -> None:
    split = numbered(3)
    view = View(split, np.arange(3), card())
    view.inputs().zero_()
    view.labels().zero_()
    assert value(view.inputs()) == [0, 1, 2]
    assert split.y.tolist() == [0, 10, 20]


def test_batches_without_generator_keep_the_order() -> None:
    view = View(numbered(10), np.array([5, 3, 8, 1, 0]), card())
    batches = [(value(x), y.tolist()) for x, y in view.batches(2, epochs=2)]
    epoch = [([5, 3], [50, 30]), ([8, 1], [80, 10]), ([0], [0])]
    assert batches == epoch + epoch


def test_batch_order_is_that_of_randperm() -> None:
    view = View(numbered(10), np.arange(10), card())
    drawn = [b for x, _ in view.batches(4, generator(), epochs=3) for b in value(x)]
    same = generator()
    expected = [i for _ in range(3) for i in torch.randperm(10, generator=same).tolist()]
    assert drawn == expected


def test_batches_repeat_for_the_same_generator() -> None:
    view = View(numbered(50), np.arange(50), card())
    first = [x for x, _ in view.batches(8, generator(), epochs=2)]
    second = [x for x, _ in view.batches(8, generator(), epochs=2)]
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("steps", range(9))
def test_steps_cycle_through_epochs(steps: int) -> None:
    # 5 samples in batches of 2: sizes 2, 2, 1, then the next epoch.
    view = View(numbered(5), np.arange(5), card())
    batches = list(view.batches(2, generator(), epochs=1, steps=steps))
    assert [len(y) for _, y in batches] == [2, 2, 1, 2, 2, 1, 2, 2, 1][:steps]
    same = generator()
    orders = [i for _ in range(3) for i in torch.randperm(5, generator=same).tolist()]
    assert [v for x, _ in batches for v in value(x)] == orders[: sum(len(y) for _, y in batches)]


@pytest.mark.parametrize("batch_size", [1, 30, 60, 700, 5000])
def test_batches_are_slices_of_all_inputs(batch_size: int) -> None:
    # 1,000 images of 784 values are gathered in several pieces; batches must not show where.
    pixels = np.random.default_rng(0).integers(0, 256, (1000, 28, 28, 1), dtype=np.uint8)
    view = View(Split(pixels, np.arange(1000)), np.arange(1000), card(1, 28, 28))
    order = torch.randperm(1000, generator=generator())
    batches = list(view.batches(batch_size, generator()))
    assert len(batches) == -(-1000 // batch_size)
    assert torch.equal(torch.cat([x for x, _ in batches]), view.inputs(order))
    assert torch.equal(torch.cat([y for _, y in batches]), order)
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x, _ in batches)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("channels", [1, 3])
def test_batches_on_a_gpu_are_those_of_the_cpu(channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (100, 8, 8, channels), dtype=np.uint8)
    split = Split(pixels, np.arange(100))
    own = card(channels, 8, 8, mean=(0.2, 0.3, 0.4)[:channels])
    host, device = (View(split, np.arange(100), own, d) for d in ("cpu", "cuda"))
    pairs = list(zip(host.batches(32, generator()), device.batches(32, generator()), strict=True))
    assert len(pairs) == 4
    for (x, y), (gpu_x, gpu_y) in pairs:
        assert gpu_x.device.type == gpu_y.device.type == "cuda"
        assert gpu_x.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(gpu_x.cpu(), x, rtol=0, atol=1e-6)
        assert torch.equal(gpu_y.cpu(), y)


def test_empty_view() -> None:
    view = View(numbered(3), np.array([], np.int32), card())
    assert len(view) == 0
    assert view.inputs().shape == (0, 1, 2, 3)
    assert view.labels().shape == (0,)
    assert list(view.batches(2, generator(), steps=4)) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be >= 1, got 0"),
        ({"batch_size": 1, "epochs": -1}, "epochs must be >= 0, got -1"),
        ({"batch_size": 1, "steps": -1}, "steps must be >= 0, got -1"),
    ],
)
def test_bad_batches_fail_when_asked_for(options: dict[str, int], message: str) -> None:
    view = View(numbered(3), np.arange(3), card())
    with pytest.raises(InputError, match=message):
        view.batches(**options)  # type: ignore[arg-type]


def test_rows_outside_the_split_fail() -> None:
    with pytest.raises(IndexError):
        View(numbered(3), np.array([3]), card()).inputs()


def test_read_only_memory_map_needs_no_warning_and_no_copy(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", numbered(6).x)
    split = Split(np.load(tmp_path / "x.npy", mmap_mode="r"), np.arange(6))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        view = View(split, np.array([5, 2]), card())
        other = View(split, np.array([1]), card())
    assert value(view.inputs()) == [5, 2]
    assert view._x.data_ptr() == other._x.data_ptr() == split.x.ctypes.data


def test_split_stays_picklable_after_it_was_viewed() -> None:
    split = numbered(4)
    View(split, np.arange(4), card()).inputs()
    assert pickle.loads(pickle.dumps(split)).y.tolist() == [0, 10, 20, 30]


def test_client_data_follows_the_manifest() -> None:
    manifest = Manifest(
        np.array([9, 8, 7, 6, 5, 0]), np.array([0, 5, 6]), np.array([2, 0]), np.array([1, 0])
    )
    first = ClientData(numbered(10), manifest.client(0), card())
    assert [v.indices.tolist() for v in (first.train, first.validation, first.test)] == [
        [9, 8],
        [7, 6],
        [5],
    ]
    second = ClientData(numbered(10), manifest.client(1), card())
    assert (len(second.train), len(second.validation), len(second.test)) == (1, 0, 0)
    assert value(second.train.inputs()) == [0]


def hidden(**changes: object) -> View:
    split = numbered(6)
    split.extra["boxes"] = np.zeros((6, 1, 4), np.float32)
    split.extra["tokens"] = np.arange(12, dtype=np.int32).reshape(6, 2)
    split.extra["text"] = np.array([b"a", b"b", b"c", b"d", b"e", b"f"])
    return View(split, np.array([4, 1]), card(), **changes)  # type: ignore[arg-type]


def test_hidden_labels_can_not_be_read_by_any_way() -> None:
    view = hidden(labelled=False)
    assert value(view.inputs()) == [4, 1]
    assert [value(x) for x in view.input_batches(1)] == [[4], [1]]
    for read in (view.labels, lambda: view.batches(2), lambda: view.column("boxes")):
        with pytest.raises(HiddenData, match="labels"):
            read()


def test_a_client_sees_its_modality_alone() -> None:
    text, image, both = hidden(modality="text"), hidden(modality="image"), hidden()
    for read in (
        text.inputs,
        lambda: text.batches(2),
        lambda: text.batches(2, reads="pairs"),
        lambda: text.input_batches(2),
    ):
        with pytest.raises(HiddenData, match="texts only"):
            read()
    for name in ("tokens", "text"):
        with pytest.raises(HiddenData, match=f"images only, not the column '{name}'"):
            image.column(name)
    for read in (
        image.tokens,
        lambda: image.batches(2, reads="texts"),
        lambda: image.batches(2, reads="pairs"),
        lambda: image.input_batches(2, reads="texts"),
    ):
        with pytest.raises(HiddenData, match="images only, not the column 'tokens'"):
            read()
    for view in (text, both):
        assert view.column("tokens").tolist() == view.tokens().tolist() == [[8, 9], [2, 3]]
        assert [x.tolist() for x in view.input_batches(1, reads="texts")] == [[[8, 9]], [[2, 3]]]
        assert view.column("text", [1]).tolist() == [b"b"]
    assert value(image.inputs()) == value(both.inputs()) == [4, 1]
    with pytest.raises(KeyError):
        both.column("depth")


def test_index_batches_go_through_the_same_samples_as_batches() -> None:
    view = View(numbered(10), np.arange(10)[::-1].copy(), card())
    for options in ({"epochs": 2}, {"steps": 7}):
        by_index = [
            view.labels(order).tolist() for order in view.index_batches(4, generator(), **options)
        ]
        assert by_index == [y.tolist() for _, y in view.batches(4, generator(), **options)]


def test_what_is_read_does_not_change_the_draws() -> None:
    """Images, tokens and labels of sample i are all known from i; augmentation draws between."""
    split = numbered(7)
    split.extra["tokens"] = np.arange(14, dtype=np.int32).reshape(7, 2)
    view = View(split, np.arange(7), card(), augment=Augmentation(flip=True))
    rngs = [generator() for _ in range(4)]
    inputs = list(view.batches(3, rngs[0], 2))
    pairs = list(view.batches(3, rngs[1], 2, reads="pairs"))
    numbers = list(view.batches(3, rngs[2], 2, targets=("tokens",)))
    texts = list(view.batches(3, rngs[3], 1, reads="texts"))
    for (x, y), ((images, tokens), labels), (same, (columns,)) in zip(
        inputs, pairs, numbers, strict=True
    ):
        assert value(x) == value(images) == value(same) == (y // 10).tolist()
        assert tokens.dtype == torch.int64
        assert tokens.tolist() == columns.tolist() == [[2 * i, 2 * i + 1] for i in value(x)]
        assert torch.equal(labels, y)
    assert rngs[0].get_state().equal(rngs[1].get_state())
    assert rngs[0].get_state().equal(rngs[2].get_state())
    order = torch.randperm(7, generator=generator()).tolist()  # texts are not augmented
    assert [i for tokens, _ in texts for i in (tokens[:, 0] // 2).tolist()] == order


def test_texts_are_tokens_and_not_normalised() -> None:
    split = Split(np.array([[3, 0], [5, 9]], np.int32), np.array([1, 0]))
    own = Card("t", "s", "l", ("a", "b"), (2, 10), (), (), "d", kind="text")
    view = View(split, np.array([1, 0]), own)
    assert torch.equal(view.inputs(), torch.tensor([[5, 9], [3, 0]]))
    assert [x.dtype for x, _ in view.batches(1)] == [torch.int64] * 2


def test_training_batches_are_augmented_and_others_are_not() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 4, 4, 3), dtype=np.uint8)
    own = card(3, 4, 4)
    plain = View(Split(pixels, np.arange(9)), np.arange(9), own)
    view = View(Split(pixels, np.arange(9)), np.arange(9), own, augment=Augmentation(crop=1))
    for x, expected in zip(view.batches(4), plain.batches(4), strict=True):
        assert torch.equal(x[0], expected[0])
    assert torch.equal(view.inputs(), plain.inputs())
    rng = generator()
    order = torch.randperm(9, generator=rng)
    for x, rows in zip(view.input_batches(4, generator()), order.split(4), strict=True):
        raw = torch.from_numpy(pixels)[rows].float()
        changed = Augmentation(crop=1).pixels(raw, rng) / 255
        torch.testing.assert_close(x, ((changed - 0.2) / 0.5).permute(0, 3, 1, 2))


def test_augmentation_does_not_depend_on_how_many_samples_are_gathered(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    pixels = np.random.default_rng(0).integers(0, 256, (50, 4, 4, 1), dtype=np.uint8)
    split, own = Split(pixels, np.arange(50)), Augmentation(crop=1, flip=True, cutout=2)
    view = View(split, np.arange(50), card(1, 4, 4), augment=own)
    first = torch.cat([x for x, _ in view.batches(8, generator())])
    monkeypatch.setattr("fedsim.data.views._CHUNK_CPU", 1)
    assert torch.equal(torch.cat([x for x, _ in view.batches(8, generator())]), first)


def boxed(n: int = 12) -> Split:
    """Black images of 32 pixels with one white rectangle each, and its box."""
    x = np.zeros((n, 32, 32, 3), np.uint8)
    boxes = np.zeros((n, 2, 4), np.float32)
    for i in range(n):
        boxes[i, 0] = (i, 8, i + 6, 18)
        x[i, 8:18, i : i + 6] = 255
    labels = np.tile(np.array([1, -1], np.int64), (n, 1))
    return Split(x, np.ones(n, np.int64), {"boxes": boxes, "box_labels": labels})


def test_batches_with_targets_are_index_batches_with_columns() -> None:
    view = View(boxed(), np.arange(12), card(3, 32, 32))
    orders = list(view.index_batches(5, generator(), epochs=2))
    found = list(view.batches(5, generator(), 2, targets=("box_labels", "boxes")))
    assert len(found) == len(orders) == 6
    for order, (x, (labels, boxes)) in zip(orders, found, strict=True):
        assert torch.equal(x, view.inputs(order))
        assert torch.equal(torch.as_tensor(view.column("boxes", order)), boxes)
        assert labels.tolist() == [[1, -1]] * len(order)


def test_boxes_among_targets_follow_the_augmented_images() -> None:
    own = Augmentation(flip=True, crop=3)
    view = View(boxed(), np.arange(12), card(3, 32, 32), augment=own)
    moved = 0
    for x, (boxes, labels) in view.batches(4, generator(), targets=("boxes", "box_labels")):
        white = x[:, 0] > 0
        for image, (x1, y1, x2, y2) in zip(white, boxes[:, 0].int().tolist(), strict=True):
            inside = torch.zeros(32, 32, dtype=torch.bool)
            inside[y1:y2, x1:x2] = True
            assert torch.equal(image, inside)
            moved += y1 != 8
        assert labels.tolist() == [[1, -1]] * len(x)
    assert moved
    plain = next(view.batches(12, targets=("boxes", "box_labels")))  # without a generator
    assert torch.equal(plain[1][0], torch.as_tensor(view.column("boxes")))


def test_changed_inputs_are_those_of_batches() -> None:
    own = Augmentation(crop=2, flip=True, jitter=0.3, cutout=4)
    view = View(boxed(), np.arange(12), card(3, 32, 32), augment=own)
    rng = generator()
    order = torch.randperm(12, generator=rng)
    x, place = view.changed(order, rng)
    assert torch.equal(x, next(iter(view.batches(12, generator())))[0])
    assert place.mirrored.any()
    plain, stayed = View(boxed(), np.arange(12), card(3, 32, 32)).changed(order, rng)
    assert torch.equal(plain, view.inputs(order))
    boxes, labels = (torch.as_tensor(view.column(c, order)) for c in ("boxes", "box_labels"))
    assert torch.equal(stayed.boxes(boxes, labels)[0], boxes)


def test_hidden_boxes_are_no_targets() -> None:
    view = View(boxed(), np.arange(12), card(3, 32, 32), labelled=False)
    with pytest.raises(HiddenData, match="hidden"):
        view.batches(4, targets=("boxes", "box_labels"))
    with pytest.raises(KeyError):
        view.batches(4, targets=("tokens",))
