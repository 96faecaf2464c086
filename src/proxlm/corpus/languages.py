"""The language of a text, by py3langid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from functools import cache
from typing import Any

from proxlm.errors import ConfigError

UNKNOWN = "unknown"
_READ = 2000  # characters, from the beginning


def language_of(among: Sequence[str] = (), least_characters: int = 20) -> Callable[[str], tuple[str, float]]:
    """A function from a text to its language (ISO 639-1) and the probability of it; a short text is `UNKNOWN`, 0.

    Args:
        among: The languages that come into question; empty: all that py3langid knows.
        least_characters: Fewer are too short a text.

    Raises:
        ConfigError: The package is missing, or does not know a language.
    """
    identifier = _identifier()
    if unknown := [name for name in among if name not in identifier.labels]:
        raise ConfigError(
            f"language: py3langid knows no {unknown[0]!r}; it knows {' '.join(sorted(identifier.labels))}"
        )
    if among:
        identifier = copy(identifier)
        identifier.set_languages(list(among))

    def classify(text: str) -> tuple[str, float]:
        beginning = text[:_READ].strip()
        if len(beginning) < least_characters:
            return UNKNOWN, 0.0
        name, probability = identifier.classify(beginning)
        return str(name), float(probability)

    return classify


@cache
def _identifier() -> Any:
    """The model of all languages, which takes a second to read."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise ConfigError('step language needs py3langid: pip install "proxlm[corpus]"') from error
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
