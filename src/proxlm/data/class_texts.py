"""Texts with their classes, for classifiers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from proxlm.data.fields import field_at
from proxlm.data.formats import missing_field
from proxlm.data.labelled import class_name
from proxlm.data.records import Source, iter_records
from proxlm.data.skipped import Skipped
from proxlm.errors import BadRecordError, DataError
from proxlm.text import shown


@dataclass(frozen=True)
class ClassText:
    """A text with its class.

    Attributes:
        text: The text.
        label: The name of its class; "": it was not asked for.
        where: file:line of its record.
    """

    text: str
    label: str
    where: str


def read_class_texts(
    sources: Sequence[Source], text_field: str, label_field: str, skipped: Skipped
) -> list[ClassText]:
    """The texts of some files.

    Args:
        sources: The files.
        text_field: Of the text.
        label_field: Of the class; "": the texts need none.
        skipped: Receives records that cannot be used.

    Raises:
        DataError: With file and line: a record has no text or no class, and `skipped` does not take it; or there is
            no record at all.
    """
    found: list[ClassText] = []
    for source in sources:
        for record in iter_records(source, skipped):
            with skipped.judging(record):
                text = field_at(record.fields, text_field)
                if text is None:
                    raise missing_field(record, text_field, "data.text_field")
                if not isinstance(text, str) or not text.strip():
                    raise BadRecordError(
                        f'{record.where}: field "{shown(text_field, 40)}" must hold a text that is not empty',
                        "no text",
                    )
                if label_field and field_at(record.fields, label_field) is None:
                    raise missing_field(record, label_field, "data.label_field")
                label = class_name(record, label_field) if label_field else ""
                found.append(ClassText(text, label, record.where))
    if not found:
        raise DataError(
            f"{shown(', '.join(map(str, sources)), 80)}: no record can be used {skipped.first}".rstrip()
        )
    return found
