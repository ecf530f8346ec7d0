"""Messages as the grid handles them: Flower's own `Message` only where somebody looks at one.

A genuine message takes longer to make than all else that the grid does for a small client.
"""

from __future__ import annotations

from collections import UserList
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from flwr.app import ConfigRecord, Message, RecordDict


@dataclass(slots=True)
class Letter:
    """What a message says: `content` to a client, under Flower's message type `kind`."""

    client: int
    content: RecordDict
    kind: str
    original: Message | None = None

    def message(self) -> Message:
        """Return the genuine message."""
        if self.original is None:
            self.original = Message(self.content, self.client, self.kind)
        return self.original


class Letters(UserList[Message]):
    """A list of genuine messages, which are made when the list is first looked into."""

    def __init__(self, letters: Iterable[Letter]) -> None:
        self._letters = list(letters)

    @cached_property
    def data(self) -> list[Message]:  # type: ignore[override]
        return [letter.message() for letter in self._letters]

    def __len__(self) -> int:
        return len(self.data if "data" in self.__dict__ else self._letters)

    def letters(self) -> list[Letter]:
        """Return what the messages say, also where somebody has changed them."""
        return _read(self.data) if "data" in self.__dict__ else self._letters


def letters_of(messages: Iterable[Message]) -> list[Letter]:
    """Return what messages say, without making those that nobody has looked at."""
    return messages.letters() if isinstance(messages, Letters) else _read(messages)


def _read(messages: Iterable[Message]) -> list[Letter]:
    return [Letter(m.metadata.dst_node_id, m.content, m.metadata.message_type, m) for m in messages]


def by_payload(letters: list[Letter], whole: bool) -> list[list[Letter]]:
    """Group letters by the payload they share; order is kept inside and between groups.

    With `whole` they must share all of it: a foreign app is sent no part of its own.
    """
    groups: dict[tuple[int, ...], list[Letter]] = {}
    group: list[Letter] = []
    content: RecordDict | None = None
    for letter in letters:
        if letter.content is not content:  # a cohort usually shares one
            content = letter.content
            group = groups.setdefault(_payload_key(content, whole), [])
        group.append(letter)
    return list(groups.values())


def _payload_key(content: RecordDict, whole: bool) -> tuple[int, ...]:
    key = []
    for record in content.values():
        shared = None if whole else record.__dict__.get("shared")
        if isinstance(record, ConfigRecord):
            key.append(hash(tuple(sorted((k, str(v)) for k, v in record.items()))))
        else:
            key.append(id(record) if shared is None else id(shared))
    return tuple(key)


def round_of(letter: Letter) -> int:
    """Return the round that a message names, 0 if it names none."""
    for record in letter.content.config_records.values():
        if "server-round" in record:
            return int(record["server-round"])  # type: ignore[arg-type]
    return 0
