"""Everything that reaches into Flower's private modules, so that one file follows its changes.

Flower has no public way to say who "the server" is outside its own processes, to give a message
an id, or to make the `Run` that a `Grid` reports.
"""

from __future__ import annotations

from flwr.app import Error, Message, RecordDict
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

RUN_ID = 1
SERVER_NODE = 2**62
"""The server's node id, out of the way of client ids, which are node ids here."""


def identify_server() -> None:
    """Let `Message(...)` be constructed in this process: messages come from the server."""
    TaskIdentity.run_id = RUN_ID
    TaskIdentity.node_id = SERVER_NODE
    TaskIdentity.task_id = 0


def empty_run() -> Run:
    """Return the `Run` that our grid reports."""
    return Run.create_empty(RUN_ID)


def set_message_id(message: Message, value: str) -> None:
    """Give a message the id its reply will refer to; Flower's SuperLink does it otherwise."""
    message.metadata.__dict__["_message_id"] = value


def reply_to(message: Message, content: RecordDict) -> Message:
    """Return a genuine reply to `message`."""
    return Message(content, reply_to=message)


def error_reply(message: Message, text: str) -> Message:
    """Return a genuine error reply to `message`; code 0 is Flower's 'unknown'."""
    return Message(Error(code=0, reason=text), reply_to=message)
