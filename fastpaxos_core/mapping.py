"""Msgpack maps with strict limits: what hello and control frames and control entries of the log are made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgpack

from fastpaxos_core.errors import FrameError

__all__ = ["pack_mapping", "unpack_mapping"]

MAPPING_BYTES_MAX = 262_144  # encoded; the decoded objects may take 64 times as much memory
MAPPING_ITEMS_MAX = 4096  # of one list or map
MAPPING_DEPTH_MAX = 8


def pack_mapping(mapping: Mapping[str, Any]) -> bytes:
    """Return the map as msgpack. Raises ValueError or TypeError for a map that `unpack_mapping` would refuse."""
    data: bytes = msgpack.packb(mapping, use_bin_type=True)
    try:
        # Reading back what was made finds the caller's mistake here and not at the other end of a connection.
        unpack_mapping(data)
    except FrameError as error:
        raise ValueError(str(error)) from None
    return data


def unpack_mapping(data: bytes) -> dict[str, Any]:
    """Return the map that `data` holds.

    Keys are str (ints as well in maps inside the map), values None, bool, int, float, str, bytes, list or map. Raises
    FrameError for anything else, for trailing bytes, a key given twice, more than 256 KiB, more than 4096 items in one
    list or map, or more than 8 levels.
    """
    if len(data) > MAPPING_BYTES_MAX:
        raise FrameError(f"map has {len(data)} bytes, limit is {MAPPING_BYTES_MAX}")
    try:
        mapping = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=False,
            object_pairs_hook=_checked_pairs,
            max_str_len=MAPPING_BYTES_MAX,
            max_bin_len=MAPPING_BYTES_MAX,
            max_array_len=MAPPING_ITEMS_MAX,
            max_map_len=MAPPING_ITEMS_MAX,
            max_ext_len=0,
        )
    except (FrameError, MemoryError):
        raise
    except Exception as error:  # whatever msgpack makes of bytes from a stranger, it is a bad frame and no bug here
        raise FrameError(f"{len(data)} bytes are no msgpack map: {type(error).__name__}: {error}") from None
    if not isinstance(mapping, dict):
        raise FrameError(f"expected a msgpack map, got {type(mapping).__name__}")
    for key in mapping:
        if not isinstance(key, str):
            raise FrameError(f"map has the outer key {key!r:.80}, it must be str")
    _check_value(mapping, 1)
    return mapping


def _checked_pairs(pairs: list[tuple[object, object]]) -> dict[object, object]:
    # Keys are judged before they are hashed, so that no list or map becomes a key and none is given twice.
    result: dict[object, object] = {}
    for key, value in pairs:
        if type(key) is not str and type(key) is not int:
            raise FrameError(f"map has a key of type {type(key).__name__}, it must be str or int")
        if key in result:
            raise FrameError(f"map has the key {key!r:.80} twice")
        result[key] = value
    return result


def _check_value(value: object, depth: int) -> None:
    if depth > MAPPING_DEPTH_MAX:
        raise FrameError(f"map is nested deeper than {MAPPING_DEPTH_MAX} levels")
    if isinstance(value, dict):
        for item in value.values():
            _check_value(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check_value(item, depth + 1)
    elif value is not None and not isinstance(value, bool | int | float | str | bytes):
        raise FrameError(f"map has a value of type {type(value).__name__}")
