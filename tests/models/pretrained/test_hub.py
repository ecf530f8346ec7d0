"""Ids of the hub: asked for once, and what was fetched before is enough."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

import httpx
import huggingface_hub.constants

from fedsim.errors import InputError
from fedsim.models.pretrained.transformers import locate, on_hub

WEIGHTS = "some/vit"


class Hub:
    """Answers as told, and counts how often it was asked."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.asked: list[str] = []

    def head(self, url: str, timeout: float) -> object:
        assert timeout <= 10
        self.asked.append(url)
        if self.error is not None:
            raise self.error
        return object()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def hub(monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> Hub:
    made = Hub(error)
    monkeypatch.setattr("huggingface_hub.utils.get_session", lambda: made)
    return made


def test_where_the_hub_answers_the_library_fetches(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = hub(monkeypatch).asked
    assert locate(WEIGHTS) == WEIGHTS
    assert [url.endswith("/some/vit/resolve/main/config.json") for url in asked] == [True]


ERRORS: list[Any] = [httpx.ConnectError("no such host"), ConnectionError("offline mode")]


@pytest.mark.parametrize("error", ERRORS)
def test_without_a_connection_one_attempt_is_made(
    error: Exception, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = hub(monkeypatch, error).asked
    text = f"cannot fetch the weights 'some/vit': https://.* cannot be reached .{error}., and they"
    with pytest.raises(InputError, match=text):
        on_hub(WEIGHTS)
    assert len(asked) == 1


def test_without_a_connection_what_was_fetched_is_used(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub(monkeypatch, ERRORS[0])
    stored = cache / "models--some--vit"
    folder = stored / "snapshots" / "abc"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (stored / "refs").mkdir()
    (stored / "refs" / "main").write_text("abc")
    assert on_hub(WEIGHTS) == folder
