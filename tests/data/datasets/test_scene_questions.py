from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pytest

from fedsim.data.dataset import Dataset, Split
from fedsim.data.datasets.scene_questions import scene_questions
from fedsim.data.synthetic.colours import COLOURS, colour_names
from fedsim.errors import InputError
from tests.support.emoji_stand_in import emoji, use_stand_in

KINDS = ("count", "presence", "left", "largest", "colour")


@pytest.fixture(autouse=True)
def surroundings(no_files: None, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("skimage")
    use_stand_in(monkeypatch)


def tiny(**options: Any) -> Dataset:
    return scene_questions(**{"train": 60, "test": 20, **options})


def look(dataset: Dataset, split: Split, i: int) -> str:
    """Answer question i by looking at the boxes and the pixels."""
    names, labels = dataset.card.classes, split.extra["box_labels"][i]
    boxes = split.extra["boxes"][i][labels >= 0]
    shown = [names[label] for label in labels[labels >= 0]]
    words = split.extra["text"][i].decode().replace("?", "").replace(",", "").split()
    match words:
        case ["how", "many", "pictures", "of", group, "are", "there"]:
            return str(shown.count(group))
        case ["is", "there", "a", "picture", "of", group]:
            return "yes" if group in shown else "no"
        case ["which", "picture", "is", "further", "left", a, "or", b]:
            assert (shown.count(a), shown.count(b)) == (1, 1)
            centres = (boxes[:, 0] + boxes[:, 2]) / 2
            x_a, x_b = centres[shown.index(a)], centres[shown.index(b)]
            assert abs(x_a - x_b) > 8
            return a if x_a < x_b else b
        case ["what", "does", "the", "largest", "picture", "show"]:
            areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
            first, second = np.sort(areas)[::-1][:2]
            assert first > 1.5 * second
            return shown[int(areas.argmax())]
        case ["what", "colour", "is", "the", "picture", "of", group]:
            assert shown.count(group) == 1
            x1, y1, x2, y2 = boxes[shown.index(group)].astype(int)
            pixel = split.x[i, (y1 + y2) // 2, (x1 + x2) // 2]
            return COLOURS[int(colour_names(pixel))]
    raise AssertionError(words)


@pytest.mark.parametrize("groups", [None, ["food", "travel"], ["smileys", "people", "animals"]])
def test_every_answer_is_right(groups: list[str] | None) -> None:
    dataset = tiny(train=250, test=100, groups=groups)
    for split in (dataset.train, dataset.test):
        found = [look(dataset, split, i) for i in range(len(split))]
        assert found == [dataset.card.classes[y] for y in split.y]
        assert set(split.extra["question"].tolist()) == {0, 1, 2, 3, 4}


def test_objects_never_overlap_and_are_all_shown() -> None:
    split = tiny().train
    for boxes, labels in zip(split.extra["boxes"], split.extra["box_labels"], strict=True):
        own = boxes[labels >= 0]
        assert 1 <= len(own) <= 4
        quarters = {(int(box[0]) // 64, int(box[1]) // 64) for box in own}
        assert len(quarters) == len(own)
        assert {((int(box[2]) - 1) // 64, (int(box[3]) - 1) // 64) for box in own} == quarters


def test_the_question_alone_does_not_give_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The most frequent training answer to each question does hardly better than guessing."""
    from fedsim.data.synthetic import emoji_pool, questions, scenes

    pool = emoji_pool.emoji_pool(emoji_pool.GROUPS, None)
    asker = questions.Questions(pool, KINDS, 128)

    def ask(part: Any, n: int) -> questions.QuestionBatch:
        return asker.ask(part, scenes.Draws(0, part).uniform(n, asker.draws))

    train, test = ask("train", 20000), ask("test", 5000)
    seen: dict[str, Counter[int]] = defaultdict(Counter)
    for text, right in zip(train.texts, train.answer.tolist(), strict=True):
        seen[text][right] += 1
    right = np.mean([seen[t].most_common(1)[0][0] for t in test.texts] == test.answer)
    chance = np.mean([1 / len(seen[text]) for text in test.texts])
    assert 0.3 < chance < 0.4
    assert right < chance + 0.03
    # Each answer to a question is as frequent, within five standard deviations of a share.
    for text, counts in seen.items():
        n, share = counts.total(), 1 / len(counts)
        for count in counts.values():
            assert abs(count / n - share) < 5 * (share * (1 - share) / n) ** 0.5, text
    # Nor does how many objects there are tell whether something is among them.
    presence = train.kind == 1
    shown = (train.objects.picture >= 0).sum(1)
    there = train.answer == asker.answers.index("yes")
    means = [shown[presence & (there == wanted)].mean() for wanted in (False, True)]
    assert abs(means[0] - means[1]) < 0.15
    assert max(np.bincount(train.kind)) < 1.1 * min(np.bincount(train.kind))


def test_columns_vocabulary_and_card() -> None:
    dataset = tiny(domains=["clear", "rain"])
    split, card = dataset.train, dataset.card
    assert split.x.shape == (120, 128, 128, 3)
    assert card.kind == "image-text"
    assert card.classes[:4] == ("smileys", "animals", "food", "travel")
    assert card.classes[4:] == ("0", "1", "2", "3", "no", "yes", "red", "green", "blue")
    assert card.domains == ("clear", "rain")
    assert split.extra["domain"].tolist() == [0] * 60 + [1] * 60
    assert "generated" in card.source
    assert "not a published benchmark" in card.source
    # "which picture is further left , food or animals ?" is the longest: ten words and signs.
    assert card.text_shape == (10, len(dataset.vocabulary))
    tokens = split.extra["tokens"]
    assert (tokens != 1).all()
    for row, text in zip(tokens[:20], split.extra["text"][:20], strict=True):
        words = [dataset.vocabulary[token] for token in row if token]
        assert words == text.decode().replace("?", " ?").replace(",", " ,").split()


def test_kinds_can_be_chosen() -> None:
    dataset = tiny(questions=["largest", "presence"])
    assert dataset.card.classes == ("smileys", "animals", "food", "travel", "no", "yes")
    texts = {text.decode() for text in dataset.train.extra["text"]}
    assert texts <= {
        "what does the largest picture show?",
        *(f"is there a picture of {name}?" for name in dataset.card.classes[:4]),
    }
    assert set(dataset.train.extra["question"].tolist()) == {0, 1}


def test_a_group_of_one_colour_is_not_asked_for_its_colour(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = emoji()
    animals = made["group"] == 2
    made["rgba"][animals, :, :, :3] = (200, 0, 0)
    monkeypatch.setattr("fedsim.data.synthetic.emoji_pool.load_rgba", lambda: made)
    dataset = tiny(questions=["colour"], train=100)
    texts = {text.decode().removesuffix("?").split()[-1] for text in dataset.train.extra["text"]}
    assert texts == {"smileys", "food", "travel"}
    made["rgba"][..., :3] = (200, 0, 0)
    with pytest.raises(InputError, match=r"must be without colour: none of the groups smileys"):
        tiny(seed=3)
    assert tiny(questions=["left", "count"], seed=3).num_classes == 8


def test_questions_stay_the_same_when_more_are_asked_for() -> None:
    few, many = tiny(), tiny(train=70, domains=["clear", "fog"])
    assert (few.train.x == many.train.x[:60]).all()
    assert (few.train.extra["text"] == many.train.extra["text"][:60]).all()
    assert (few.train.y == many.train.y[:60]).all()
    assert not (tiny(seed=1).train.x == few.train.x).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": 0}, r"dataset\.train must be >= 1"),
        ({"test": 0}, r"dataset\.test must be >= 1"),
        ({"size": 65}, r"dataset\.size must be a multiple of 8"),
        ({"questions": ["colors"]}, r"of count, presence.*Did you mean 'colour'\?, got 'colors'"),
        ({"questions": []}, r"dataset\.questions must name at least one"),
        ({"groups": ["food"]}, r"dataset\.groups must name at least 2 groups, got \['food'\]"),
        ({"strength": 2}, r"dataset\.strength must be in \[0, 1\], got 2"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tiny(**options)
