"""VQA v2: questions about photographs with the answers as classes, from the user's own files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedsim.data.arrays import dataset_of, names_of, pack_names
from fedsim.data.cache import Arrays, cached_arrays
from fedsim.data.dataset import Card, Dataset
from fedsim.data.images import Fit
from fedsim.data.loaders.image_texts import Pair, Pairs, Pictures, image_folder, image_text_arrays
from fedsim.data.loaders.json_files import entries, read_json
from fedsim.data.sources import data_folders, digest, find_files, fingerprint
from fedsim.errors import InputError, check

_CARD = Card(
    title="VQA v2",
    source="Goyal et al. 2017, arXiv:1612.00837; visualqa.org, over the images of COCO 2014",
    licence="CC-BY-4.0 (questions and answers); each photograph its own, of Flickr's",
    classes=("the most frequent answers",),
    input_shape=(3, 64, 64),
    description=(
        "443,757 training questions about 82,783 images; the 214,354 questions about the 40,504 "
        "validation images are the test split, as the answers of its own are not public."
    ),
    kind="image-text",
    text_shape=(24, 10_000),
)

SETS = {"vqa": _CARD}

_ADVICE = (
    "get the v2 questions and annotations of visualqa.org, the folders train2014 and val2014 of "
    "images of cocodataset.org, and put them"
)

_NAMES = {"train": "train2014", "test": "val2014"}


def vqa(
    *,
    root: str | None = None,
    answers: int = 3000,
    size: tuple[int, int] = (64, 64),
    fit: Fit = "squash",
    length: int = 24,
    vocabulary: int = 10_000,
    limit: int | None = None,
) -> Dataset:
    """VQA v2: questions about COCO images, the most frequent answers as classes.

    `root` is the folder of the four JSON files and the images; without it, the usual folders are
    searched. Classes are the `answers` most frequent in training, the most frequent first; y is the
    answer that most of the ten people gave. Questions with another answer are left out; the card
    says how many. Images are resized to `size` (H, W), `fit` by ``squash`` or ``crop``, and
    repeated for each of their questions (64 x 64 takes 12 kB a question). Questions are cut at
    `length` tokens of the `vocabulary` most frequent words. `limit` keeps the first so many
    questions of each split, by number of image.

    Columns: `tokens`, `text`, `group` (the image's number) and `question_id` int64.

    Raises:
        InputError: files or images that are missing, damaged or not of one distribution; a bad
            option.
    """
    check(answers >= 1, "dataset.answers must be >= 1", answers)
    check(limit is None or limit >= 1, "dataset.limit must be >= 1", limit)
    how = Pictures(size, fit, length, vocabulary)
    folders = data_folders("vqa", root)
    files = _find(folders)
    images = _image_folders(files)
    source = fingerprint([*files.values(), *images.values()])
    key = f"vqa-1-{digest(f'{answers}{how}{limit}{source}')}"
    arrays = cached_arrays(key, lambda: _build(files, images, answers, how, limit))
    train, test = arrays["dropped"].tolist()
    left_out = (
        f"{train} training and {test} test questions, whose answers are not among the classes, "
        "were left out."
    )
    description = f"{_CARD.description} {left_out}"
    card = replace(_CARD, classes=names_of(arrays["answers"]), description=description)
    return dataset_of("vqa", arrays, card)


def _find(folders: Sequence[Path]) -> dict[str, Path]:
    names = {}
    for split, name in _NAMES.items():
        names[f"{split}-questions"] = f"v2_OpenEnded_mscoco_{name}_questions.json"
        names[f"{split}-answers"] = f"v2_mscoco_{name}_annotations.json"
    paths = {key: (file, f"annotations/{file}") for key, file in names.items()}
    return find_files(_CARD.title, folders, paths, _ADVICE)


def _image_folders(files: Mapping[str, Path]) -> dict[str, Path]:
    at = files["train-questions"].parent
    base = at.parent if at.name == "annotations" else at
    return {
        split: image_folder([base / name, base / "images" / name], _ADVICE)
        for split, name in _NAMES.items()
    }


def _build(
    files: Mapping[str, Path],
    images: Mapping[str, Path],
    answers: int,
    how: Pictures,
    limit: int | None,
) -> Arrays:
    questions = {split: _questions(files, split) for split in _NAMES}
    counts = Counter(answer for *_, answer in questions["train"])
    classes = sorted(counts, key=lambda answer: (-counts[answer], answer))[:answers]
    numbers = {answer: i for i, answer in enumerate(classes)}
    splits, dropped = {}, []
    for split, rows in questions.items():
        kept = [row for row in rows if row[3] in numbers]
        dropped.append(len(rows) - len(kept))
        kept = kept[:limit]
        name = f"COCO_{_NAMES[split]}_%012d.jpg"
        splits[split] = Pairs(
            [Pair(images[split] / (name % i), text, i, numbers[a]) for i, _, text, a in kept],
            {"question_id": np.array([number for _, number, *_ in kept], np.int64)},
        )
    return {
        **image_text_arrays(splits, how, "vqa"),
        "answers": pack_names(classes),
        "dropped": np.array(dropped, np.int64),
    }


def _questions(files: Mapping[str, Path], split: str) -> list[tuple[int, int, str, str]]:
    """Return (image, question, text, answer) of each question, sorted by image and question."""
    path, answers = files[f"{split}-questions"], files[f"{split}-answers"]
    fields = {"question_id": int, "image_id": int, "multiple_choice_answer": str}
    answer_of = {}
    for entry in entries(read_json(answers), "annotations", fields, answers):
        answer = " ".join(entry["multiple_choice_answer"].split())
        answer_of[entry["question_id"]] = entry["image_id"], answer
    rows = []
    fields = {"question_id": int, "image_id": int, "question": str}
    for entry in entries(read_json(path), "questions", fields, path):
        number, image = entry["question_id"], entry["image_id"]
        if answer_of.get(number, (None, ""))[0] != image:
            raise InputError(
                f"the question {number} of {path} has no answer of the same image in {answers}; "
                "replace the files by those of one distribution"
            )
        text = " ".join(entry["question"].split())
        rows.append((image, number, text, answer_of[number][1]))
    return sorted(rows)
