"""The settings of a new project."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Literal

from proxlm.config.problems import Problems, required
from proxlm.config.setting import setting

_NAME = re.compile(r"\w[\w-]{0,63}")


@dataclass(frozen=True)
class NewConfig:
    """Make a project's folder: recipes, a reward with its test, sample data, and the commands to run."""

    name: str = setting(
        "",
        "the project's name, a new folder in the current one (also: proxlm new NAME): letters, digits, - and _",
    )
    kind: Literal["text", "chat", "chinese", "classification", "game"] = setting(
        "text",
        "text: a response to a prompt; chat: messages and a chat template; chinese: couplets, by form and rhyme;"
        " classification: a label behind a text; game: an environment of several turns",
    )

    positional: ClassVar[str] = "name"

    def problems(self) -> Problems:
        found = required(("name", self.name))
        if not found and not _NAME.fullmatch(self.name):
            reason = "letters, digits, - and _ alone, 64 at most, the first no -; it is a folder in the current one"
            found.append(("name", reason))
        return found
