"""YAML for experiment files: scalars of YAML 1.2, and errors with line and column.

PyYAML follows YAML 1.1, where ``1e-3`` is a string, ``on`` a boolean, ``010`` eight and
``1:30`` ninety. Here numbers and booleans are those of YAML 1.2, digits may be grouped
(``1_000_000``), dates stay strings, and a key given twice is an error.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

from fedsim.errors import InputError

_FLOAT = re.compile(
    r"^[-+]?(?:(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?"
    r"|[0-9][0-9_]*[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$"
)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode):
                if key_node.value in seen:
                    raise yaml.constructor.ConstructorError(
                        problem=f"the key {key_node.value!r} is given twice",
                        problem_mark=key_node.start_mark,
                    )
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    inside = False

    def represent_mapping(
        self, tag: str, mapping: Any, flow_style: bool | None = None
    ) -> yaml.MappingNode:
        inside, self.inside = self.inside, True
        return super().represent_mapping(tag, mapping, flow_style=inside)

    def ignore_aliases(self, data: Any) -> bool:
        return True


_RESOLVERS = [
    ("null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("int", re.compile(r"^[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$"), list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
]
for _tag, _pattern, _first in _RESOLVERS:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, _first)
# Quote strings that read as numbers here, besides those that do in YAML 1.1.
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def parse_yaml(text: str, label: str) -> Any:
    """Parse the one document in `text`; None if it is empty.

    Raises:
        InputError: a syntax error or a repeated key, with `label`, line and column.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        what = error.problem or error.context or "not valid YAML"
        raise InputError(f"{label}{where}: {what}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        column = error.position - (text.rfind("\n", 0, error.position) + 1) + 1
        raise InputError(
            f"{label} line {line}, column {column}: the character {error.character:#x} is not "
            "allowed in YAML"
        ) from None
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{label} is not valid YAML: {error}") from None


def dump_yaml(data: Any) -> str:
    """Format the mapping `data` as YAML in its order, with a line for each top-level key."""
    for readable in (True, False):
        text = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=readable, width=100)
        # Unescaped, Unicode's own line breaks would be read back as spaces.
        if not any(c in text for c in "\x85\u2028\u2029"):
            break
    return text


def show(value: object) -> str:
    """Format `value` for a message: as in Python, but null, true and false as in YAML."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value)
