"""Files of VQA v2 with questions that a test chooses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

Asked = list[tuple[int, int, str, str]]
"""Questions: (image, question, text, answer)."""


def write(root: Path, part: str, asked: Asked, change: Callable[[Any], None] | None = None) -> Path:
    """Write the questions and annotations of VQA v2 and the images of COCO 2014."""
    questions = {
        "info": {},
        "task_type": "Open-Ended",
        "data_type": "mscoco",
        "questions": [
            {"image_id": i, "question": text, "question_id": n} for i, n, text, _ in asked
        ],
    }
    annotations = {
        "annotations": [
            {
                "question_type": "is it",
                "multiple_choice_answer": answer,
                "answers": [
                    {"answer": answer, "answer_confidence": "yes", "answer_id": a + 1}
                    for a in range(10)
                ],
                "image_id": i,
                "answer_type": "other",
                "question_id": n,
            }
            for i, n, _, answer in reversed(asked)
        ],
    }
    if change is not None:
        change({**questions, **annotations})
    root.mkdir(parents=True, exist_ok=True)
    named = root / f"v2_OpenEnded_mscoco_{part}_questions.json"
    named.write_text(json.dumps(questions))
    (root / f"v2_mscoco_{part}_annotations.json").write_text(json.dumps(annotations))
    (root / part).mkdir(exist_ok=True)
    for image in {i for i, *_ in asked}:
        path = root / part / f"COCO_{part}_{image:012}.jpg"
        Image.new("RGB", (6, 4), (0, 10 * image, 0)).save(path, "PNG")
    return named
