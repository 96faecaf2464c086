"""Values that a table keeps as JSON: Arrow's type for objects whose fields differ from row to row.

Hugging Face's `datasets` stores messages and tools so when no struct fits all rows (its feature `Json`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from proxlm.data.json_list import DECODER, json_reason

Decode = Callable[[Any], Any]


def json_decoder(schema: Any) -> Decode | None:
    """A function that decodes the JSON in a row, a dict; None if no column has any.

    It raises ValueError for a text that is not JSON.
    """
    fields = {field.name: decode for field in schema if (decode := _decoder(field.type)) is not None}
    return _in_object(fields) if fields else None


def _decoder(kind: Any) -> Decode | None:
    """The function for values of an Arrow type, or None if there is no JSON in them."""
    import pyarrow as pa

    if isinstance(kind, pa.BaseExtensionType):
        return _decoded if kind.extension_name == "arrow.json" else None
    if pa.types.is_struct(kind):
        parts = [kind.field(i) for i in range(kind.num_fields)]
        fields = {part.name: decode for part in parts if (decode := _decoder(part.type)) is not None}
        return _in_object(fields) if fields else None
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if any(is_kind(kind) for is_kind in lists):
        decode = _decoder(kind.value_type)
        return None if decode is None else lambda items: [_if_given(decode, item) for item in items]
    return None


def _in_object(fields: dict[str, Decode]) -> Decode:
    return lambda row: {
        name: _if_given(fields[name], value) if name in fields else value for name, value in row.items()
    }


def _if_given(decode: Decode, value: Any) -> Any:
    return None if value is None else decode(value)


def _decoded(text: Any) -> Any:
    try:
        return DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not valid JSON: {json_reason(error)}") from error
