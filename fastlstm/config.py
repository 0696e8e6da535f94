"""Frozen dataclasses from TOML recipes and ``key=value`` overrides.

Precedence: defaults of the dataclass < recipe < overrides. An unknown key or a value of the wrong type is an
``InputError`` that names it.
"""

from __future__ import annotations

import dataclasses
import tomllib
import types
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from fastlstm.errors import InputError

C = TypeVar("C")


def load_config(cls: type[C], recipe: str | Path | None, overrides: Sequence[str] = ()) -> C:
    """Build ``cls`` from a recipe (one of this package by name, or a TOML file) and ``key=value`` overrides."""
    values = {} if recipe is None else _read_recipe(recipe)
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise InputError(f"override {override!r}: expected key=value, for example model.hidden_size=256")
        _set(values, key.strip().split("."), _parse_value(text.strip()))
    return config_from_dict(cls, values)


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("fastlstm") / "recipes"
    return sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".toml"))


def _read_recipe(recipe: str | Path) -> dict[str, Any]:
    path = Path(recipe)
    try:
        if path.suffix == ".toml":
            text = path.read_text(encoding="utf-8")
        elif str(recipe) in recipe_names():
            text = (resources.files("fastlstm") / "recipes" / f"{recipe}.toml").read_text(encoding="utf-8")
        else:
            raise InputError(f"recipe {str(recipe)!r}: expected a .toml file or one of {', '.join(recipe_names())}")
    except FileNotFoundError as error:
        raise InputError(f"recipe {path}: no such file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"recipe {path}: not UTF-8 at byte {error.start}") from error
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"recipe {recipe}: not valid TOML: {error}") from error


def _parse_value(text: str) -> Any:
    """A TOML value; anything else is a plain string, so that quotes are not needed on a command line."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _set(values: dict[str, Any], keys: list[str], value: Any) -> None:
    *groups, last = keys
    for key in groups:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise InputError(f"override {'.'.join(keys)}: {key} is a value, not a group")
    values[last] = value


def config_from_dict(cls: type[C], values: Mapping[str, Any], where: str = "") -> C:
    """Build the dataclass ``cls`` from nested dictionaries, checking every key and every type."""
    hints = get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise InputError(f"{where}{unknown[0]}: unknown key; known here: {', '.join(sorted(hints))}")
    arguments = {}
    for key, value in values.items():
        hint, name = hints[key], f"{where}{key}"
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, Mapping):
                raise InputError(f"{name}: expected a group of keys, got {value!r}")
            arguments[key] = config_from_dict(hint, value, f"{name}.")  # type: ignore[arg-type]
        else:
            arguments[key] = _checked(name, value, hint)
    return cls(**arguments)


def _checked(name: str, value: Any, hint: Any) -> Any:
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise InputError(f"{name}: expected one of {', '.join(map(str, get_args(hint)))}, got {value!r}")
        return value
    allowed = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if isinstance(value, str) and value == "none" and types.NoneType in allowed:
        return None  # TOML has no null
    if float in allowed and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    matching = [kind for kind in allowed if type(value) is kind]
    if not matching:
        expected = " or ".join("none" if kind is types.NoneType else kind.__name__ for kind in allowed)
        raise InputError(f"{name}: expected {expected}, got {value!r}")
    return value


def config_to_dict(config: Any) -> dict[str, Any]:
    """Nested dictionaries that ``config_from_dict`` reads back, without the keys that are None."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            values[field.name] = config_to_dict(value)
        elif value is not None:
            values[field.name] = value
    return values
