import base64
import hashlib
import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from proxlm.config import ReportConfig
from proxlm.errors import RunError
from proxlm.jobs.report import main
from proxlm.report.page import write_report
from proxlm.runlog.folder import read_jsonl
from report_runs import edit, ppo_run, sft_run

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>&amp;<!--\"'"


class Page(HTMLParser):
    """The elements and texts of a page, as a browser would take it apart."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.texts: list[str] = []
        self.policy = ""
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        self.data: dict[str, Any] = json.loads(self.scripts[0])
        self.text = "\n".join(self.texts)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open.append(tag)
        if dict(attrs).get("http-equiv"):
            self.policy = dict(attrs)["content"] or ""

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "script":
            self.scripts.append(data)
        else:
            self.texts.append(data)

    def ids(self) -> list[str | None]:
        return [attributes["id"] for tag, attributes in self.elements if tag == "section"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ppo_run(tmp_path_factory.mktemp("runs") / "stories")


@pytest.fixture(scope="module")
def page(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(write_report(made, tmp_path_factory.mktemp("out") / "page.html"))


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "stories"))


def test_the_report_lands_in_the_run_and_is_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p.name for p in run.iterdir()}
    main(ReportConfig(folder=str(run)))
    assert capsys.readouterr().out == f"{run / 'report.html'}\n"
    assert {p.name for p in run.iterdir()} - before == {"report.html"}


def test_a_report_of_everything_has_every_section(page: Page) -> None:
    assert page.ids() == ["curves", "evaluation", "side-by-side", "token-views", "over-training", "config"]
    for text in ("stories260K", "3m 12s", "mean reward of a response", "0.810", "0.760 to 0.860", "+0.550"):
        assert text in page.text
    assert "从前有一只小猫，" in page.text
    assert "[optim.critic]" in page.text


def test_the_headline_is_the_mean_of_the_first_and_last_five_rows(made: Path, page: Page) -> None:
    rewards = [row["reward"] for row in read_jsonl(made / "metrics.jsonl")]
    assert f"{sum(rewards[:5]) / 5:.3f} → {sum(rewards[-5:]) / 5:.3f}" in page.text


def test_the_headline_has_the_held_out_reward_sampled_and_greedy_where_both_ends_are_known(run: Path) -> None:
    ends = {"before": (0.5, 0.625), "after": (0.75, 0.875)}
    models = [
        {"name": name, "metrics": {"reward": {"mean": sampled}, "greedy/reward": {"mean": greedy}}}
        for name, (sampled, greedy) in ends.items()
    ]
    (run / "evaluation.json").write_text(json.dumps({"models": models}))
    shown = Page(write_report(run)).text
    assert "Held-out reward, sampled 0.500 → 0.750" in " ".join(shown.split())
    assert "Held-out reward, greedy 0.625 → 0.875" in " ".join(shown.split())
    (run / "evaluation.json").write_text(json.dumps({"models": models[:1]}))
    assert "Held-out reward" not in Page(write_report(run)).text


def test_a_model_in_a_folder_goes_by_its_last_two_names(run: Path) -> None:
    config = (run / "config.toml").read_text()
    (run / "config.toml").write_text(config.replace('"stories260K"', '"/a/long/way/models/stories260K"'))
    assert "models/stories260K" in Page(write_report(run)).texts


def test_every_metric_is_drawn_or_named(made: Path, page: Page) -> None:
    curves = page.data["curves"]
    shown = {name for plot in curves["plots"] for name in (*plot["names"], plot["band"])} | {
        *curves["constant"],
        *curves["same"],
    }
    metrics = set(read_jsonl(made / "metrics.jsonl")[0]) - {"step", "time"}
    assert metrics <= shown
    assert curves["constant"] == {"kl_coef": 0.05, "reward_failed": 0.0, "optimiser_steps": 16.0}


def test_the_page_loads_nothing_and_runs_its_own_script_only(page: Page) -> None:
    assert [tag for tag, attributes in page.elements if {"src", "data", "action"} & set(attributes)] == []
    links = [attributes["href"] for _, attributes in page.elements if "href" in attributes]
    assert all(str(link).startswith("#") for link in links)
    assert len(page.scripts) == 2
    digest = base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
    assert f"'sha256-{digest}'" in page.policy
    assert page.policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-inline" not in page.policy.split(";")[1]


def test_a_page_is_little_more_than_what_the_run_holds(made: Path, tmp_path: Path) -> None:
    held = sum((made / name).stat().st_size for name in ("metrics.jsonl", "samples.jsonl", "evaluation.json"))
    assert write_report(made, tmp_path / "page.html").stat().st_size < 60_000 + 2 * held


def test_texts_cannot_become_markup_or_script(made: Path, page: Page, run: Path) -> None:
    rows = read_jsonl(run / "samples.jsonl")
    changed = {
        "prompt": HOSTILE,
        "response": HOSTILE,
        "finish": HOSTILE,
        "tokens": [HOSTILE] * len(rows[-1]["tokens"]),
        "components": {HOSTILE: 1.0, "other": 2.0},
        "per_token": {**rows[-1]["per_token"], HOSTILE: [0.5] * len(rows[-1]["tokens"])},
    }
    edit(run / "samples.jsonl", len(rows) - 1, **changed)
    edit(run / "metrics.jsonl", 1, **{HOSTILE: 1.0, f"reward/{HOSTILE}": 1.0})
    text = (run / "evaluation.json").read_text()
    for harmless in ("Once upon a time", "mean reward of a response", '"name": "after', "models/after"):
        assert harmless in text
        text = text.replace(harmless, harmless + json.dumps(HOSTILE)[1:-1])
    evaluation = json.loads(text)
    evaluation["models"][0]["metrics"][HOSTILE] = {"mean": 1.0}
    evaluation["seed"] = HOSTILE
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    with open(run / "config.toml", "a") as file:
        file.write(f"# {HOSTILE}\n")
    attacked = Path(shutil.copytree(run, run.parent / "<b>run"))

    found = Page(write_report(attacked))
    assert len(found.scripts) == 2
    assert found.scripts[1:] == page.scripts[1:]
    assert {tag for tag, _ in found.elements} == {tag for tag, _ in page.elements}
    assert not any(name.startswith("on") for _, attributes in found.elements for name in attributes)
    assert "<" not in found.scripts[0]
    # And nothing of it is lost on the way.
    last = found.data["samples"]["tokens"][-1]
    assert (last["prompt"], last["tokens"][0]) == (HOSTILE, HOSTILE)
    assert found.text.count(HOSTILE) >= 7


def test_a_supervised_run_has_curves_and_settings_only(tmp_path: Path) -> None:
    found = Page(write_report(sft_run(tmp_path / "sft")))
    assert found.ids() == ["curves", "config"]
    loss = found.data["curves"]["plots"][0]
    assert (loss["group"], loss["names"]) == ("Main", ["loss", "validation_loss"])
    validation = found.data["curves"]["series"]["validation_loss"]
    assert validation["at"] == [19, 39, 59, 79, 99, 119]
    assert f"{min(validation['y']):.2f}" in found.text
    assert found.data["samples"]["texts"] == []


def test_a_run_in_its_first_step_has_no_report_yet(run: Path) -> None:
    (run / "metrics.jsonl").write_text("")
    with pytest.raises(RunError, match=r"metrics\.jsonl: no rows: the run has not finished a step yet$"):
        write_report(run)
    assert not (run / "report.html").exists()


def test_a_run_that_goes_on_can_be_reported(run: Path) -> None:
    (run / "metrics.jsonl").write_text(
        json.dumps({"step": 1, "time": 2.0, "reward": 0.1}) + '\n{"step": 2, "ti'
    )
    (run / "samples.jsonl").write_text("")
    (run / "evaluation.json").unlink()
    found = Page(write_report(run))
    assert "1 of 60" in found.text
    assert found.data["curves"]["step"] == [1]


def test_numbers_that_were_not_finite_are_gaps(run: Path) -> None:
    edit(run / "metrics.jsonl", 2, reward=None, kl_coef=None)
    rows = read_jsonl(run / "samples.jsonl")
    edit(run / "samples.jsonl", len(rows), reward=None, per_token={"kl": [None] * len(rows[-1]["tokens"])})
    found = Page(write_report(run))
    reward = found.data["curves"]["series"]["reward"]
    assert (reward["at"][1], reward["y"][1]) == (2, None)
    assert "NaN" not in found.scripts[0]
    assert ["kl_coef"] in [plot["names"] for plot in found.data["curves"]["plots"]]


def test_a_secret_that_an_older_version_wrote_is_not_shown(run: Path) -> None:
    settings = run / "config.toml"
    for line in ('api_token = "hunter2hunter2"', 'headers = {Authorization = "Bearer abcd1234EFGH"}'):
        settings.write_text(f'job = "ppo"\n[reward.args]\n{line}\n')
        page = write_report(run).read_text()
        assert "hunter2" not in page
        assert "abcd1234EFGH" not in page
        assert "holds what looks like a secret" in page


def test_a_lone_surrogate_does_not_stop_the_report(run: Path) -> None:
    edit(run / "samples.jsonl", 1, prompt="a\ud800b")
    file = run / "evaluation.json"
    file.write_text(file.read_text().replace("Once upon a time", "c\\ud800d"))
    found = Page(write_report(run))
    assert found.data["samples"]["tokens"][0]["prompt"] == r"a\ud800b"
    assert "c\\ud800d, there was" in found.text


@pytest.mark.parametrize(
    ("file", "line", "change", "message"),
    [
        ("metrics.jsonl", 3, {"reward": "high"}, 'line 3: reward: expected a number, got "high"'),
        ("metrics.jsonl", 3, {"reward": [1]}, r"line 3: reward: expected a number, got \[1\]"),
        ("metrics.jsonl", 4, {"step": None}, "line 4: step: missing"),
        ("samples.jsonl", 2, {"step": "1"}, 'line 2: step: expected a number, got "1"'),
        ("samples.jsonl", 2, {"prompt": 3}, "line 2: prompt: expected a text, got 3"),
        ("samples.jsonl", 2, {"response": None}, "line 2: response: expected a text, got nothing"),
        ("samples.jsonl", 2, {"reward": True}, "line 2: reward: expected a number, got true"),
        ("samples.jsonl", 2, {"components": [1]}, r"line 2: components: expected an object, got \[1\]"),
        ("samples.jsonl", 2, {"tokens": "abc"}, 'line 2: tokens: expected a list of texts, got "abc"'),
        (
            "samples.jsonl",
            2,
            {"per_token": {"kl": [1]}},
            r"line 2: per_token: kl: expected \d+ numbers, one a token",
        ),
        (
            "samples.jsonl",
            2,
            {"tokens": ["a"], "per_token": {"kl": ["b"]}},
            'line 2: per_token: kl: .* got "b"',
        ),
    ],
)
def test_a_wrong_row_is_named_with_its_line(
    run: Path, file: str, line: int, change: dict[str, Any], message: str
) -> None:
    edit(run / file, line, **change)
    with pytest.raises(RunError, match=rf"{re.escape(file)}: {message}") as caught:
        write_report(run)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: not JSON: Expecting value"),
        ('{\n"models": ]', "line 2: not JSON: Expecting value"),
        ('{"models": [], "x": NaN}', "not JSON: NaN is not JSON"),
        ("[]", r"expected an object, got \[\]"),
        ("{}", "models: expected a list of models, got nothing"),
        ('{"models": []}', r"models: expected a list of models, got \[\]"),
        ('{"models": [{"metrics": {}}]}', r"models\[0\]: expected an object with a name"),
        ('{"models": [{"name": "before"}]}', r"models\[0\]: metrics: expected an object, got nothing"),
        (
            '{"models": [{"name": "a", "metrics": {"kl": 3}}]}',
            r"models\[0\]: metrics: kl: expected an object with a mean",
        ),
        (
            '{"models": [{"name": "a", "metrics": {"kl": {"mean": "x"}}}]}',
            r"metrics: kl: mean: expected a number",
        ),
        (
            '{"models": [{"name": "a", "metrics": {}, "samples": 3}]}',
            r"samples: expected a list of objects, got 3",
        ),
        (
            '{"models": [{"name": "a", "metrics": {}, "samples": [{}]}]}',
            r"samples\[0\]: prompt: expected a text",
        ),
        *(
            (
                f'{{"models": [{{"name": "a", "metrics": {{}}, "confusion": {confusion}}}]}}',
                r"confusion: expected labels and as many rows of counts",
            )
            for confusion in (
                "3",
                '{"sampled": {"labels": ["a"]}}',
                '{"sampled": {"labels": ["a"], "counts": [[1]]}}',
                '{"sampled": {"labels": ["a"], "counts": [[1, "x"]]}}',
            )
        ),
    ],
)
def test_a_wrong_evaluation_is_named_with_its_place(run: Path, text: str, message: str) -> None:
    (run / "evaluation.json").write_text(text)
    with pytest.raises(RunError, match=rf"evaluation\.json: .*{message}"):
        write_report(run)


def test_an_evaluation_of_one_model_without_texts(run: Path) -> None:
    value = {"models": [{"name": "before", "metrics": {"reward": {"mean": None}, "kl": {"mean": 1.5}}}]}
    (run / "evaluation.json").write_text(json.dumps(value))
    found = Page(write_report(run))
    assert found.data["curves"]["series"]["evaluation/kl"] == {"at": [0], "y": [1.5]}
    assert "evaluation" in found.ids()
    assert "side-by-side" not in found.ids()
    assert "difference" not in found.text


def test_a_metric_without_an_interval_shows_none(run: Path) -> None:
    same = {"mean": 24.0, "low": 24.0, "high": 24.0}
    value = {"models": [{"name": name, "metrics": {"length": same}} for name in ("before", "after")]}
    (run / "evaluation.json").write_text(json.dumps(value))
    found = Page(write_report(run))
    assert found.texts.count("24.0") == 2
    assert "24.0 to 24.0" not in found.text
    assert "svg" not in [tag for tag, _ in found.elements]


def test_a_prompt_that_one_model_has_not_answered_is_shown(run: Path) -> None:
    value = json.loads((run / "evaluation.json").read_text())
    del value["models"][1]["samples"][0]
    (run / "evaluation.json").write_text(json.dumps(value))
    assert Page(write_report(run)).text.count("no response to this prompt") == 1


def test_what_is_not_a_run_is_named(tmp_path: Path, run: Path) -> None:
    with pytest.raises(RunError, match=r"nowhere: no such folder$"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(RunError, match=r": not a run's folder: it holds no config\.toml$"):
        write_report(tmp_path)
    (run / "config.toml").write_text("a = \n")
    with pytest.raises(RunError, match=r"config\.toml: not valid TOML: .*line 1"):
        write_report(run)


def test_a_missing_metrics_file_is_named(run: Path) -> None:
    (run / "metrics.jsonl").unlink()
    with pytest.raises(RunError, match=r"metrics\.jsonl: cannot be read: No such file or directory$"):
        write_report(run)


def test_an_output_that_cannot_be_written_is_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"none/r\.html: cannot be written: No such file or directory$"):
        main(ReportConfig(folder=str(run), output=str(tmp_path / "none" / "r.html")))


def test_a_long_run_is_averaged(tmp_path: Path) -> None:
    found = Page(write_report(ppo_run(tmp_path / "long", steps=4001, with_texts=False)))
    curves = found.data["curves"]
    assert (curves["every"], len(curves["step"]), curves["step"][-1]) == (3, 1334, 4001)
    rows = read_jsonl(tmp_path / "long" / "metrics.jsonl")
    assert math.isclose(curves["series"]["kl"]["y"][0], sum(r["kl"] for r in rows[:3]) / 3, rel_tol=1e-5)
