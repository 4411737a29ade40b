"""Values as JSON has them."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from fractions import Fraction
from typing import Any


def as_json(obj: Any, name: str) -> str:
    r"""The text that `write_json` writes; ValueError as there.

    Parameters
    ----------
    obj
        The value.
    name
        Name of the file, for errors.

    Returns
    -------
    str
        JSON, indented by 2, with a final line break.

    Examples
    --------
    >>> from atent.runs import as_json
    >>> as_json({"n": 3}, "a.json")
    '{\n  "n": 3\n}\n'
    """
    return json.dumps(jsonable(obj, name), indent=2, allow_nan=False) + "\n"


def plain(obj: Any) -> Any:
    """A value in JSON's own types, as `write_json` writes it; ValueError as there.

    Parameters
    ----------
    obj
        The value.

    Returns
    -------
    object
        Dictionaries, lists, strings, numbers, booleans and None.

    Examples
    --------
    >>> from pathlib import Path
    >>> import numpy as np
    >>> from atent.runs import plain
    >>> plain({"path": Path("runs"), "values": np.float32([0.1, 2])})
    {'path': 'runs', 'values': [0.1, 2.0]}
    """
    return jsonable(obj, "value")


def dumps(obj: Any) -> str:
    """A value as one line of JSON with sorted keys, so that equal settings have equal text; ValueError as `write_json`.

    Parameters
    ----------
    obj
        The value.

    Returns
    -------
    str
        One line.

    Examples
    --------
    >>> from atent.runs import dumps
    >>> dumps({"b": 1, "a": (2,)})
    '{"a": [2], "b": 1}'
    """
    return json.dumps(jsonable(obj, "value"), sort_keys=True, allow_nan=False)


def jsonable(obj: Any, name: str) -> Any:
    """The value in JSON's own types; ``name`` is the file's, for errors."""
    return _plain(obj, "", name)


def _plain(obj: Any, where: str, name: str) -> Any:
    if obj is None or isinstance(obj, bool | str):
        return str(obj) if isinstance(obj, str) else obj
    if isinstance(obj, int):
        return int(obj)
    # numpy's float64 is a float, and is exact as it is
    if isinstance(obj, float):
        if not math.isfinite(obj):
            raise ValueError(f"{name}: {where or 'the value'} is {float(obj)}, which JSON cannot hold")
        return float(obj)
    if isinstance(obj, os.PathLike | Fraction):
        return str(obj)
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        obj = {field.name: getattr(obj, field.name) for field in dataclasses.fields(obj)}
    if isinstance(obj, dict):
        return _plain_dict(obj, where, name)
    if isinstance(obj, list | tuple):
        return [_plain(item, f"{where}[{i}]", name) for i, item in enumerate(obj)]
    if hasattr(obj, "tolist"):
        return _plain(_shortest(obj), where, name)
    raise ValueError(f"{name}: {where or 'the value'} is a {type(obj).__name__}, which JSON cannot hold")


def _plain_dict(obj: dict[Any, Any], where: str, name: str) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in obj.items():
        # an int key is common (a class, an epoch); any other would come back as something else
        if not isinstance(key, str) and (not isinstance(key, int) or isinstance(key, bool)):
            raise ValueError(f"{name}: {where or 'the value'} has the key {key!r}, not a string or integer")
        text = str(key)
        if text in result:
            raise ValueError(f"{name}: {where or 'the value'} has the key {text!r} twice")
        result[text] = _plain(value, f"{where}.{text}" if where else text, name)
    return result


def _shortest(array: Any) -> Any:
    """Numbers of an array or scalar as Python's; float32 0.1 as 0.1, not as 0.10000000149011612."""
    values = array.tolist()
    if not str(array.dtype).endswith("float32"):
        return values
    import numpy

    def short(value: Any) -> Any:
        if isinstance(value, list):
            return [short(item) for item in value]
        return float(str(numpy.float32(value)))

    return short(values)
