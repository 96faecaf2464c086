"""Every example in docs/rewards.md does what the page says."""

import doctest
import inspect
import re
import tomllib
from pathlib import Path

import pytest
from reward_helpers import own_folder

from proxlm.config.schema import RewardSettings, RewardTerm
from proxlm.rewards import build_reward
from proxlm.rewards.builtin import BUILTINS
from proxlm.types import Completion

PAGE = Path(__file__).parents[2] / "docs" / "rewards.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def page_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the page's files, as the current one."""
    own_folder(tmp_path, monkeypatch)
    for _, text in BLOCKS:
        if name := re.match(r"# (\w+\.py)\n", text):
            Path(name[1]).write_text(text, encoding="utf-8")
    return tmp_path


def test_the_sessions_print_what_the_page_shows(page_folder: Path) -> None:
    sessions = "\n".join(text for kind, text in BLOCKS if kind == "python" and text.startswith(">>>"))
    test = doctest.DocTestParser().get_doctest(sessions, {}, "rewards.md", str(page_folder), 0)
    assert len(test.examples) > 8
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    assert doctest.DocTestRunner(optionflags=flags).run(test).failed == 0


@pytest.mark.usefixtures("page_folder")
def test_the_settings_build_and_the_files_score() -> None:
    built = 0
    for kind, text in BLOCKS:
        if kind != "toml":
            continue
        section = tomllib.loads(text)["reward"]
        terms = {name: RewardTerm(**term) for name, term in section.pop("terms", {}).items()}
        config = RewardSettings(**section, terms=terms)
        reward = build_reward(config)
        if ".py:" in config.use:
            assert reward.score([Completion("", "please", (1, 2))]).failed == 0
        built += 1
    assert built == 7


def test_the_table_names_every_built_in_reward_and_argument() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \|(.*)\|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    for name, factory in BUILTINS.items():
        for argument in inspect.signature(factory).parameters:
            assert f"`{argument}`" in rows[name]
