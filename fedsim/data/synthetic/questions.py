"""Questions about scenes, drawn together with their answers, and scenes composed to fit.

The answer is drawn first, all answers to a question equally often, so that the question alone does
not reveal it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import numpy as np

from fedsim.data.dataset import SPLITS, SplitName
from fedsim.data.synthetic.colours import COLOURS, main_colours
from fedsim.data.synthetic.emoji_pool import EmojiPool, sides
from fedsim.data.synthetic.scenes import Objects, choose
from fedsim.errors import InputError

QUESTIONS = {
    "count": "how many pictures of {a} are there?",
    "presence": "is there a picture of {a}?",
    "left": "which picture is further left, {a} or {b}?",
    "largest": "what does the largest picture show?",
    "colour": "what colour is the picture of {a}?",
}
MOST = 4
"""Maximum number of objects in a scene, each in another quarter."""

_ANSWERS = {"count": ("0", "1", "2", "3"), "presence": ("no", "yes")}
_CELLS = np.array(list(permutations(range(MOST))))  # which quarter each object gets
_LEFT_FIRST = _CELLS[(_CELLS[:, 0] % 2 == 0) & (_CELLS[:, 1] % 2 == 1)]
_RIGHT_FIRST = _CELLS[(_CELLS[:, 0] % 2 == 1) & (_CELLS[:, 1] % 2 == 0)]
_OF_A_COLOUR: dict[SplitName, int] = {"train": 8, "test": 3}  # emoji of a colour that a group needs


@dataclass(frozen=True, eq=False)
class QuestionBatch:
    """n questions: answers and kinds int64 (n,), texts, and scenes with labels int64 (n, 4)."""

    answer: np.ndarray
    kind: np.ndarray
    texts: list[str]
    labels: np.ndarray
    objects: Objects


@dataclass(eq=False)
class _Draft:
    """Questions of one kind under construction; rows as of `u`."""

    split: SplitName
    u: np.ndarray  # (n, 7)
    each: np.ndarray  # (n, 4, 5): of each object
    a: np.ndarray  # (n,) groups the question names
    b: np.ndarray
    labels: np.ndarray  # (n, 4): any group but a
    side: np.ndarray
    cells: np.ndarray
    total: np.ndarray  # (n,) objects in the scene
    answer: np.ndarray
    special: np.ndarray  # (n,) the row of the first object's picture, -1 for any of its group


class Questions:
    """Questions of the given kinds about the emoji of a pool, in scenes of `size` pixels.

    `answers` are the groups, in the order of the pool, then the other answers.

    Raises:
        InputError: colour questions, and no group has enough emoji of two colours.
    """

    draws = 7 + 5 * MOST
    """Uniform numbers that one question takes."""

    def __init__(self, pool: EmojiPool, kinds: tuple[str, ...], size: int) -> None:
        self.pool, self.kinds, self.size = pool, kinds, size
        self._main_colours = main_colours(pool.pictures)
        self._colours = self._colours_by_group() if "colour" in kinds else {}
        colours = sorted({colour for group in self._colours.values() for colour in group})
        answers = {**_ANSWERS, "colour": tuple(COLOURS[colour] for colour in colours)}
        names = [name for kind in kinds for name in answers.get(kind, ())]
        self.answers = (*pool.classes, *names)
        self._number = {name: i for i, name in enumerate(self.answers)}

    def texts(self) -> list[str]:
        """Return every possible question, sorted."""
        groups = self.pool.classes
        pairs = [(a, b) for a in groups for b in groups if a != b]
        return sorted({QUESTIONS[kind].format(a=a, b=b) for kind in self.kinds for a, b in pairs})

    def ask(self, split: SplitName, u: np.ndarray) -> QuestionBatch:
        """Return a question for each row of u (n, draws), uniform in [0, 1)."""
        n = len(u)
        kind = choose(u[:, 0], len(self.kinds))
        answer, labels = np.empty(n, np.int64), np.empty((n, MOST), np.int64)
        picture, side, x, y = (np.empty((n, MOST), np.int64) for _ in range(4))
        texts = [""] * n
        for number, name in enumerate(self.kinds):
            rows = np.flatnonzero(kind == number)
            draft = self._draft(split, u[rows])
            getattr(self, f"_{name}")(draft)
            answer[rows], labels[rows], side[rows] = draft.answer, draft.labels, draft.side
            picture[rows] = self._pictures(draft)
            x[rows], y[rows] = self._places(draft)
            for row, text in zip(rows, self._texts(name, draft), strict=True):
                texts[row] = text
        return QuestionBatch(answer, kind, texts, labels, Objects(picture, side, x, y))

    def _draft(self, split: SplitName, u: np.ndarray) -> _Draft:
        n, groups = len(u), len(self.pool.classes)
        each = u[:, 7:].reshape(n, MOST, 5)
        a = choose(u[:, 1], groups)
        return _Draft(
            split=split,
            u=u,
            each=each,
            a=a,
            b=_skip(choose(u[:, 2], groups - 1), a),
            labels=_skip(choose(each[..., 0], groups - 1), a[:, None]),
            side=sides(each[..., 2], self.size),
            cells=_CELLS[choose(u[:, 4], len(_CELLS))],
            total=np.empty(n, np.int64),
            answer=np.empty(n, np.int64),
            special=np.full(n, -1),
        )

    def _count(self, d: _Draft) -> None:
        count = choose(d.u[:, 3], len(_ANSWERS["count"]))
        d.labels = np.where(np.arange(MOST) < count[:, None], d.a[:, None], d.labels)
        least = np.maximum(count, 1)
        d.total = least + choose(d.u[:, 5], MOST + 1 - least)
        d.answer = self._number["0"] + count

    def _presence(self, d: _Draft) -> None:
        there = choose(d.u[:, 3], 2)
        d.labels[:, 0] = np.where(there == 1, d.a, d.labels[:, 0])
        d.total = 1 + choose(d.u[:, 5], MOST)
        d.answer = self._number["no"] + there

    def _left(self, d: _Draft) -> None:
        first = d.u[:, 3] < 0.5
        pick = choose(d.u[:, 4], len(_LEFT_FIRST))
        d.cells = np.where(first[:, None], _LEFT_FIRST[pick], _RIGHT_FIRST[pick])
        d.labels[:, 0], d.labels[:, 1] = d.a, d.b
        d.total = np.full(len(d.u), 2)
        groups = len(self.pool.classes)
        if groups > 2:  # further objects must be of neither group
            third = _skip(choose(d.each[:, 2:, 0], groups - 2), np.minimum(d.a, d.b)[:, None])
            d.labels[:, 2:] = _skip(third, np.maximum(d.a, d.b)[:, None])
            d.total += choose(d.u[:, 5], MOST - 1)
        d.answer = np.where(first, d.a, d.b)

    def _largest(self, d: _Draft) -> None:
        d.labels[:, 0] = d.answer = d.a
        d.total = 2 + choose(d.u[:, 5], MOST - 1)
        # The box of a full emoji of 42 pixels is larger than that of any of 26.
        d.side[:, 0] = sides(d.each[:, 0, 2], self.size, 42, 48)
        d.side[:, 1:] = sides(d.each[:, 1:, 2], self.size, 20, 26)
        full = self.pool.is_full
        for row, (label, u) in enumerate(zip(d.a, d.each[:, 0, 1], strict=True)):
            members = self.pool.rows[d.split][label]
            d.special[row] = _member(members[full[members]], u)

    def _colour(self, d: _Draft) -> None:
        groups = sorted(self._colours)
        d.a = np.array(groups)[choose(d.u[:, 1], len(groups))]
        d.labels = _skip(choose(d.each[..., 0], len(self.pool.classes) - 1), d.a[:, None])
        d.labels[:, 0] = d.a
        d.total = 1 + choose(d.u[:, 5], MOST)
        for row, label in enumerate(d.a.tolist()):
            colours = self._colours[label]
            colour = colours[int(d.u[row, 3] * len(colours))]
            members = self.pool.rows[d.split][label]
            members = members[self._main_colours[members] == colour]
            d.special[row] = _member(members, d.each[row, 0, 1])
            d.answer[row] = self._number[COLOURS[colour]]

    def _pictures(self, d: _Draft) -> np.ndarray:
        picture = self.pool.pick(d.split, d.labels, d.each[..., 1])
        picture[:, 0] = np.where(d.special >= 0, d.special, picture[:, 0])
        picture[np.arange(MOST) >= d.total[:, None]] = -1
        return picture

    def _places(self, d: _Draft) -> tuple[np.ndarray, np.ndarray]:
        cell = self.size // 2
        x, y = (choose(d.each[..., axis], cell + 1 - d.side) for axis in (3, 4))
        return d.cells % 2 * cell + x, d.cells // 2 * cell + y

    def _texts(self, kind: str, d: _Draft) -> list[str]:
        names = self.pool.classes
        swapped = d.u[:, 6] < 0.5  # the order of the two names reveals nothing
        first, second = np.where(swapped, d.b, d.a), np.where(swapped, d.a, d.b)
        if kind != "left":
            first = d.a
        return [
            QUESTIONS[kind].format(a=names[i], b=names[j])
            for i, j in zip(first, second, strict=True)
        ]

    def _colours_by_group(self) -> dict[int, list[int]]:
        """Return the colours to ask for, of each group that has at least two of them."""
        colours = {}
        for group in range(len(self.pool.classes)):
            enough = np.ones(len(COLOURS), bool)
            for split in SPLITS:
                present = self._main_colours[self.pool.rows[split][group]] + 1
                counts = np.bincount(present, minlength=len(COLOURS) + 1)[1:]
                enough &= counts >= _OF_A_COLOUR[split]
            if enough.sum() >= 2:
                colours[group] = np.flatnonzero(enough).tolist()
        if not colours:
            raise InputError(
                "dataset.questions must be without colour: none of the groups "
                f"{', '.join(self.pool.classes)} has {_OF_A_COLOUR['train']} training and "
                f"{_OF_A_COLOUR['test']} test emoji of each of two colours; name more groups"
            )
        return colours


def _skip(values: np.ndarray, left_out: np.ndarray) -> np.ndarray:
    """Return numbers 0..g-2 as numbers 0..g-1 without the one left out."""
    return values + (values >= left_out)


def _member(members: np.ndarray, u: float) -> int:
    return int(members[int(u * len(members))])
