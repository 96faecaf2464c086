"""Text that is not ours, put through every command: a terminal and a browser show it, and obey none of it."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from html.parser import HTMLParser
from pathlib import Path

import pytest
from small_runs import PPO, SFT, tiny_place  # noqa: F401

from proxlm.__main__ import main

ESCAPES = "\x1b]0;owned\x07\x1b[2J\x1b[31m\x9b31m\x90\x08\x7f\r"
BIDI = "\u202egnp.\u2066x\u2069\u200f\u061c"
HIDDEN = "a\u200bb\u2060c\ufeffd\u00ade\U000e0041f\u200dg"
SEPARATORS = "\u2028\u2029\x85\x0b\x0c"
MARKUP = "</script><img src=x onerror=alert(1)>&amp;\"'[bold]"
HOSTILE = {
    "escapes": ESCAPES, "bidi": BIDI, "hidden": HIDDEN, "separators": SEPARATORS, "markup": MARKUP, "byte": "\udcff",
    "all": ESCAPES + BIDI + HIDDEN + SEPARATORS + MARKUP,
}  # fmt: skip
# Short enough for the prompts of a tiny model.
IN_DATA = {
    "terminal": "\x1b]0;o\x07\x9b1m\r\u202e\u200b\u2028",
    "markup": "</script><img src=x onerror=alert(1)>&lt;",
}
OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b\u200d-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff\U000e0000-\U000e0fff]"
)


def check(capfd, errors_only: bool = False) -> str:
    """Nothing that a terminal obeys was printed, and error lines are short; returns all of it."""
    out, err = capfd.readouterr()
    for text in (out, err):
        assert not (found := OBEYED.search(text)), (found, text[max(0, found.start() - 80) : found.end()])
    assert "Traceback" not in err, err
    for line in err.splitlines():
        if line.startswith("proxlm: "):
            assert len(line) <= 300, line
    return out + err


class Page(HTMLParser):
    """The elements of a page, outside its own scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def name_of(text: str) -> str:
    """A text as the name of a file."""
    return text.replace("/", "_").replace("\0", "")


REWARD = """
HOSTILE = {hostile!r}
def score(completions):
    print("called", HOSTILE)
    values = [sum(c in "aeiou" for c in x.text) / 20 for x in completions]
    return {{"plain": values, "of " + HOSTILE: values}}
def fails(completions):
    raise ValueError(HOSTILE * 50)
def {other}(completions):
    return [HOSTILE] * len(completions)
class Server:
    def reset(self, task):
        return "begin " + HOSTILE
    def step(self, reply):
        return HOSTILE, 1.0, True
class Broken(Server):
    def step(self, reply):
        raise RuntimeError(HOSTILE)
"""


@pytest.fixture
def hostile(request, tiny_place):  # noqa: F811
    """The text; prompts, pairs, reward, and names of folders hold it."""
    text = request.param
    rows = [{"prompt": f"{text} {i}", "response": f"{text} {i}", text: "x"} for i in range(12)]
    for file in ("prompts.jsonl", "pairs.jsonl"):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tiny_place / file).write_text(lines, encoding="utf-8")
    (tiny_place / "reward.py").write_text(REWARD.format(hostile=text, other="wrong"), encoding="utf-8")
    shutil.copytree("model", name_of(f"model {text}"))
    return text


in_data = pytest.mark.parametrize("hostile", IN_DATA.values(), ids=IN_DATA, indirect=True)


@in_data
def test_jobs_that_end_well(hostile, tiny_place, capfd):  # noqa: F811
    model, run = name_of(f"model {hostile}"), name_of(f"run {hostile}")
    settings = ["--ppo.steps", "2", "--run.report", "true", "--data.max-prompt-tokens", "100"]
    assert main([*PPO, *settings, "--model.policy", model, "--run.folder", run]) == 0
    assert main(["evaluate", run, "--data.eval-count", "3", "--output", "evaluated.json"]) == 0
    assert main(["generate", run, "--prompt", f"begin {hostile}", "--rollout.max-new-tokens", "3"]) == 0
    assert main(["generate", run, "--data.prompts", "prompts.jsonl", "--rollout.max-new-tokens", "3"]) == 0
    assert main(["report", run]) == 0
    assert main(["doctor", run, "--output", "doctor.json"]) == 0
    assert (
        main([*SFT, "--model.policy", model, "--run.folder", f"sft {run}", "--train.batch-tokens", "300"])
        == 0
    )
    printed = check(capfd)
    if hostile != IN_DATA["markup"]:
        assert hostile not in printed
    page = (Path(run) / "report.html").read_text(encoding="utf-8")
    assert not OBEYED.search(re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL))
    tags = Page(page).found
    assert not [attributes for tag, attributes in tags if tag == "img" or "onerror" in attributes]
    assert [tag for tag, _ in tags].count("script") == 2


@in_data
def test_conversations(hostile, tiny_place, capfd):  # noqa: F811
    recipe = (tiny_place / "recipe.toml").read_text(encoding="utf-8")
    recipe = (
        recipe.split("[reward]")[0].replace('prompts = "prompts.jsonl"', "")
        + "[ppo]"
        + recipe.split("[ppo]")[1]
    )
    (tiny_place / "recipe.toml").write_text(recipe, encoding="utf-8")
    assert main([*PPO, "--ppo.steps", "1", "--environment.use", "reward.py:Server"]) == 0
    assert (
        main([*PPO, "--ppo.steps", "1", "--environment.use", "reward.py:Broken", "--run.folder", "other"])
        == 2
    )
    check(capfd)


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE, indirect=True)
def test_errors(hostile, tiny_place, capfd):  # noqa: F811
    name = name_of(hostile)
    (tiny_place / f"{name}.jsonl").write_text(
        '{"a": ' + json.dumps(hostile) + "}\n" + hostile, "utf-8", "surrogateescape"
    )
    (tiny_place / f"{name}.toml").write_text(f"[ppo]\n{json.dumps(hostile)} = 1\n", encoding="utf-8")
    (tiny_place / f"{name}.py").write_text(f"raise ValueError({hostile!r})", encoding="utf-8")
    os.mkdir(f"folder {name}")
    (tiny_place / f"folder {name}" / "config.json").write_text(json.dumps({"model_type": hostile}))
    (tiny_place / f"folder {name}" / "tokenizer.json").write_text(json.dumps({"model": hostile}))
    for arguments in (
        [hostile],
        ["ppo", hostile],
        ["ppo", f"{name}.toml"],
        ["ppo", f"--{hostile}", "1"],
        ["ppo", f"--ppo.{hostile}", "1"],
        ["ppo", "--ppo.steps", hostile],
        ["ppo", "--ppo.kl-estimator", hostile],
        ["ppo", "--reward.args", f"{{{json.dumps(hostile)} = {json.dumps(hostile)}"],
        ["ppo", f"-{hostile}"],
        ["ppo", "recipe.toml", hostile],
        [*PPO, f"--reward.args.{hostile}", hostile],
        [*PPO, "--reward.use", hostile],
        [*PPO, "--reward.use", f"reward.py:{hostile}"],
        [*PPO, "--reward.use", "reward.py:fails"],
        [*PPO, "--reward.use", "reward.py:wrong"],
        [*PPO, "--reward.use", f"{name}.py:score"],
        [*PPO, "--reward.weights", f"{{{json.dumps(hostile)} = 1.0}}"],
        [*PPO, "--data.prompts", hostile],
        [*PPO, "--data.prompts", f"{name}.jsonl"],
        [*PPO, "--data.prompt-field", hostile],
        [*PPO, "--data.chat", "--data.chat-template", hostile],
        [*PPO, "--model.policy", hostile],
        [*PPO, "--model.policy", f"./{hostile}"],
        [*PPO, "--model.policy", f"folder {name}"],
        [*PPO, "--model.device", hostile],
        [*PPO, "--ppo.loss", hostile],
        [*PPO, "--environment.use", hostile],
        [*PPO, "--run.folder", f"prompts.jsonl/{hostile}"],
        [*PPO, "--run.folder", f"no {name}", "--resume"],
        [*SFT, "--text.train", f"{name}.jsonl"],
        ["pretrain", "--text.train", hostile],
        ["evaluate", hostile],
        ["generate", f"folder {name}"],
        ["report", hostile],
        ["doctor", hostile],
        ["control", "--environment.id", hostile, "--run.folder", "c"],
    ):  # fmt: skip
        if any("\0" in argument for argument in arguments):
            continue
        assert main(arguments) == 2, arguments
        printed = check(capfd)
        lines = [line for line in printed.splitlines() if line.startswith("proxlm: error: ")]
        assert len(lines) == 1, (arguments, printed)


@in_data
def test_a_damaged_run_that_holds_it(hostile, tiny_place, capfd):  # noqa: F811
    assert main([*PPO, "--ppo.steps", "2"]) == 0
    text = json.dumps(hostile)
    damages = {
        "metrics.jsonl": f'{{"step": {text}}}\n',
        "samples.jsonl": f'{{"step": 1, "prompt": {text}}}\n',
        "evaluation.json": f'{{"models": [{text}]}}',
        "config.toml": f"job = {text}\n",
        "checkpoints/step-00000002/manifest.json": f'{{"format": {text}}}',
    }
    for file, damage in damages.items():
        path = tiny_place / "run" / file
        before = path.read_bytes()
        path.write_text(damage, encoding="utf-8")
        for arguments in (["report", "run"], ["doctor", "run"], [*PPO, "--resume", "--ppo.steps", "2"]):
            main(arguments)
            check(capfd)
        path.write_bytes(before)


def test_a_terminal_gets_no_control_sequences_but_ours(tiny_place):  # noqa: F811
    text = IN_DATA["terminal"]
    (tiny_place / "reward.py").write_text(REWARD.format(hostile=text, other="wrong"), encoding="utf-8")
    ours, its = pty.openpty()
    command = [sys.executable, "-m", "proxlm", *PPO, "--ppo.steps", "2"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    run = subprocess.Popen(command, stdout=its, stderr=its, stdin=subprocess.DEVNULL, env=environment)
    os.close(its)
    parts = []
    with suppress(OSError):  # how a terminal says that its other end is closed
        while part := os.read(ours, 2**16):
            parts.append(part)
    os.close(ours)
    assert run.wait(60) == 0
    printed = b"".join(parts).decode()
    assert "\x1b[1m" in printed  # the live view
    assert "\x1b]0;" not in printed
    assert not set(printed) & set("\x07\x9b\u202e\u200b\u2028")
    assert r"called \x1b]0;o\x07\x9b1m\r\u202e\u200b\u2028" in " ".join(printed.split())
