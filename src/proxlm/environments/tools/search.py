"""Search over the text files of a folder by BM25 (Robertson and Zaragoza 2009), as bm25s computes it."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from proxlm.data.text import files_in
from proxlm.environments.tools.tool_error import ToolError
from proxlm.errors import ConfigError
from proxlm.files import read_regular
from proxlm.text import shown

# Bytes of one file and of all, characters of a passage and of a query.
_LARGEST_FILE, _LARGEST_FOLDER, _PASSAGE, _QUERY = 2**26, 2**29, 800, 500


def search_tool(folder: str, results: int) -> Callable[..., str]:
    """The tool: passages of the .txt and .md files in a folder, so many for a query. Raises ConfigError."""
    names, passages, index = _index(os.path.realpath(folder))

    def search(query: str) -> str:
        """Find passages of text. The result is the passages that fit best, each with the name of its file.

        Args:
            query: Words to look for.
        """
        import bm25s

        words = bm25s.tokenize(query[:_QUERY], stopwords="en", show_progress=False, return_ids=False)
        count = min(results, len(passages))
        if not words[0]:
            raise ToolError("the query has no words to look for")
        found, scores = index.retrieve(words, k=count, show_progress=False)
        best = [int(i) for i, score in zip(found[0], scores[0], strict=True) if score > 0]
        return "\n\n".join(f"[{names[i]}] {passages[i]}" for i in best) or "nothing was found"

    return search


@functools.lru_cache(maxsize=4)
def _index(folder: str) -> tuple[list[str], list[str], Any]:
    """File names and texts of the passages, and their index; made once for a folder. Raises ConfigError."""
    try:
        import bm25s
    except ImportError as error:
        raise ConfigError('the tool search needs bm25s: pip install "proxlm[tools]"') from error
    if not os.path.isdir(folder):
        raise ConfigError(
            f'environment.args.path = "{shown(folder)}": the tool search needs a folder of texts'
        )
    names, passages, size = [], [], 0
    for file in files_in(Path(folder), (".txt", ".md")):
        if not os.path.realpath(file).startswith(os.path.join(folder, "")):
            continue  # a link that leads out of it
        content = read_regular(file, _LARGEST_FILE)
        size += len(content)
        if size > _LARGEST_FOLDER:
            raise ConfigError(f"{shown(folder)}: has more than {_LARGEST_FOLDER >> 20} MiB of text to search")
        for passage in _passages(content.decode("utf-8", "replace")):
            names.append(file.relative_to(folder).as_posix())
            passages.append(passage)
    if not passages:
        raise ConfigError(f"{shown(folder)}: has no .txt or .md files to search")
    index = bm25s.BM25()
    index.index(bm25s.tokenize(passages, stopwords="en", show_progress=False), show_progress=False)
    return names, passages, index


def _passages(text: str) -> list[str]:
    """Paragraphs, short neighbours together and long ones cut."""
    found = [""]
    for paragraph in re.split(r"\n\s*\n", text):
        for start in range(0, len(paragraph), _PASSAGE):
            part = paragraph[start : start + _PASSAGE].strip()
            if found[-1] and len(found[-1]) + len(part) > _PASSAGE:
                found.append("")
            found[-1] = f"{found[-1]}\n{part}".strip()
    return [passage for passage in found if passage]
