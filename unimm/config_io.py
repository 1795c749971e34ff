"""Read a tree of frozen dataclasses from YAML and dotted overrides, strictly, and write it back.

Defaults give way to the file, the file to the overrides. pydantic validates: unknown keys, wrong
types and missing keys are errors that name the dotted path.
"""

import dataclasses
import difflib
import json
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from unimm.errors import ConfigError
from unimm.files import atomic_write

ConfigT = TypeVar("ConfigT")
Tree = dict[str, Any]


def load_config(
    cls: type[ConfigT], path: Path | None = None, overrides: Iterable[str] = ()
) -> ConfigT:
    """Return the configuration in the file ``path`` with ``a.b=value`` overrides applied.

    Override values are YAML: ``lr=1e-4``, ``betas=[0.9, 0.95]`` and ``resume=null`` mean what they
    mean in the file. Without a path the dataclass's own defaults are the base.

    Raises:
        ConfigError: The file cannot be read, a key is unknown or missing, or a type is wrong.
    """
    tree = {} if path is None else read_tree(path)
    for override in overrides:
        apply_override(tree, override)
    try:
        return from_dict(cls, tree)
    except ConfigError as error:
        if path is None:
            raise
        raise ConfigError(f"{path}: {error}") from None


def from_dict(cls: type[ConfigT], tree: Mapping[str, Any]) -> ConfigT:
    """Return the configuration that a tree of plain values (as in YAML or JSON) describes.

    Raises:
        ConfigError: A key is unknown or missing, or a type is wrong.
    """
    # Through JSON, where strict validation still turns lists into tuples and strings into paths.
    try:
        return TypeAdapter(cls).validate_json(json.dumps(tree), strict=True, extra="forbid")
    except ValidationError as error:
        raise ConfigError(_describe(cls, tree, error)) from None
    except TypeError as error:
        raise ConfigError(f"not a configuration: {error}") from None


def to_dict(config: object) -> Tree:
    """Return the configuration as plain values: mappings, lists, strings, numbers, None."""
    tree: Tree = TypeAdapter(type(config)).dump_python(config, mode="json")
    return tree


def dump_config(config: object, path: Path, *, header: str = "") -> None:
    """Write the configuration as YAML that ``load_config`` reads back to an equal value.

    Args:
        config: The configuration.
        path: Where.
        header: Lines of YAML to put first, such as a key that the reader takes out.
    """
    text = header + yaml.dump(to_dict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    with atomic_write(path) as file:
        file.write(text.encode())


def read_tree(path: Path) -> Tree:
    """Return the YAML mapping in a file, not yet checked against any configuration.

    Raises:
        ConfigError: The file cannot be read, is no YAML, or holds no mapping.
    """
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is no valid YAML: {_one_line(error)}") from None
    if not isinstance(tree, dict | None):
        raise ConfigError(f"{path} must hold a mapping of keys to values, got {tree!r:.60}")
    return tree or {}


def apply_override(tree: Tree, override: str) -> None:
    """Set ``a.b`` in the tree to the YAML value in ``a.b=value``.

    Raises:
        ConfigError: The override has no ``=``, an empty key, or goes through a plain value.
    """
    dotted, separator, text = override.partition("=")
    keys = [key.strip() for key in dotted.split(".")]
    if not separator or not all(keys):
        raise ConfigError(f"override {override!r} must look like section.key=value")
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r} has no valid YAML: {_one_line(error)}") from None
    for depth, key in enumerate(keys[:-1], start=1):
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            where = ".".join(keys[:depth])
            raise ConfigError(f"override {override!r}: {where} is {tree!r}, not a section")
    tree[keys[-1]] = value


def _describe(cls: type, tree: Mapping[str, Any], error: ValidationError) -> str:
    return "; ".join(dict.fromkeys(_describe_one(cls, tree, details) for details in error.errors()))


def _describe_one(cls: type, tree: Mapping[str, Any], details: Any) -> str:
    location = [str(part) for part in _present(details["loc"], tree)]
    where = ".".join(location)
    match details["type"]:
        case "unexpected_keyword_argument":
            return f"unknown key {where!r}; {_nearest(cls, location)}"
        case "missing":
            return f"{where} is missing"
        case "value_error":
            reason = str(details["ctx"]["error"])
            return f"{where}: {reason}" if where else reason
    message = details["msg"][:1].lower() + details["msg"][1:]
    return f"{where or 'configuration'}: {message}, got {details['input']!r:.80}"


def _present(location: tuple[int | str, ...], tree: object) -> Iterator[int | str]:
    """Yield the parts of pydantic's location that are keys, leaving out the names of union members.

    The last part stays: it may be a missing key.
    """
    for position, part in enumerate(location):
        if isinstance(tree, Mapping) and part in tree:
            tree = tree[part]
        elif isinstance(tree, list) and isinstance(part, int):
            tree = tree[part] if part < len(tree) else None
        elif position < len(location) - 1 or not isinstance(tree, Mapping):
            continue
        yield part


def _nearest(cls: type, location: list[str]) -> str:
    """Say which key is closest: beside the unknown one, or of the same name elsewhere."""
    *section, key = [part for part in location if not part.isdecimal()]
    paths = list(_dotted_paths(cls))
    siblings = sorted({path[-1] for path in paths if path[:-1] == tuple(section)})
    if close := difflib.get_close_matches(key, siblings, n=1):
        return f"did you mean {'.'.join([*location[:-1], close[0]])!r}?"
    if elsewhere := [path for path in paths if path[-1] == key]:
        return f"did you mean {'.'.join(elsewhere[0])!r}?"
    return f"known keys: {', '.join(siblings)}"


def _dotted_paths(expected: Any, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if prefix:
        yield prefix
    if isinstance(expected, type) and dataclasses.is_dataclass(expected):
        hints = get_type_hints(expected)
        for field in dataclasses.fields(expected):
            yield from _dotted_paths(hints[field.name], (*prefix, field.name))
        return
    for member in get_args(expected):
        yield from _dotted_paths(member, prefix)


def _one_line(error: yaml.YAMLError) -> str:
    return " ".join(str(error).split())


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's plain values; a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is given twice", key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes what ``_Loader`` would not read as text."""


# YAML 1.2: `1e-4` is a number, `no` and `on` are words. Underscores may group digits.
_DIGITS = r"(?:0|[1-9][0-9_]*)"
_FLOAT = rf"{_DIGITS}(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)?|\.[0-9]+(?:[eE][-+]?[0-9]+)?"
_PLAIN_VALUES = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", rf"[-+]?{_DIGITS}|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", rf"[-+]?(?:{_FLOAT}|\.inf)|\.nan", list("-+.0123456789")),
)
for _class in (_Loader, _Dumper):
    _class.yaml_implicit_resolvers = {}
    for _kind, _pattern, _first in _PLAIN_VALUES:
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_kind}", re.compile(rf"^(?:{_pattern})$"), _first
        )
