"""A search: its trials are those that are declared, done once, and pruned or failed with a reason."""

from __future__ import annotations

import json
import math
import os
import signal
import statistics
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_training import BASE, SPACE, STEPS, FakeTrainer, loss

import proxlm
from proxlm.config import SearchConfig, load_config
from proxlm.errors import ConfigError, RunError
from proxlm.jobs.search import search_settings
from proxlm.runlog.text import number
from proxlm.search.results import summary
from proxlm.search.search import Search
from proxlm.search.space import space_of
from proxlm.search.study import Study
from proxlm.search.sweep import Sweep


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def searched(space: Any = SPACE, base: Any = BASE, **settings: Any) -> proxlm.SearchResults:
    return search_settings(base, space, SearchConfig(folder="s", **settings), trainer=FakeTrainer)


def content(folder: str = "s") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(folder, "results.json").read_text(encoding="utf-8"))
    for trial in found["trials"]:
        del trial["seconds"]
    return found


def test_the_best_trial_is_found_and_is_a_recipe() -> None:
    found = searched(trials=20, random_first=6, sampler="tpe")
    assert [trial.number for trial in found.trials] == list(range(20))
    assert found.trials[0].values["optim.lr"] == 1e-3  # the recipe's own
    best = found.best
    assert best is not None
    finished = [trial for trial in found.trials if trial.state == "finished"]
    assert best.objective[0] == min(trial.objective[0] for trial in finished)
    assert 1e-3 < best.values["optim.lr"] < 1e-1
    settings = load_config("sft", "s/best.toml")
    assert settings.optim.lr == best.values["optim.lr"]
    assert settings.optim.name == best.values["optim.name"]
    assert settings.run.folder == ""
    (shares,) = found.importance
    assert sum(shares.values()) == pytest.approx(1)
    assert max(shares, key=lambda key: shares[key]) == "optim.lr"
    assert "optim.momentum" not in shares  # not all trials have it
    failed = [trial for trial in found.trials if trial.values["train.batch_tokens"] == 400]
    assert failed
    assert all(t.state == "failed" and t.reason == "no step could be done with 400 tokens" for t in failed)
    page = Path("s/search.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "default-src &#x27;none&#x27;" in page or "default-src 'none'" in page
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("<circle") >= len(finished)


def test_tpe_stays_where_it_is_good() -> None:
    space = {"optim.lr": SPACE["optim.lr"], "optim.weight_decay": {"low": 0.0, "high": 1.0}}

    def mean_of_later_ones(sampler: Any) -> float:
        config = SearchConfig(folder=sampler, sampler=sampler, trials=20)
        found = search_settings(BASE, space, config, trainer=FakeTrainer)
        return statistics.mean(trial.objective[0] for trial in found.trials[8:])

    assert mean_of_later_ones("tpe") < mean_of_later_ones("random") - 0.2


def test_a_grid_has_the_declared_trials_in_order() -> None:
    space = {"optim.lr": [1e-3, 1e-2], "train.batch_tokens": {"low": 100, "high": 300, "step": 100}}
    found = searched(space, sampler="grid", trials=99)
    assert [tuple(trial.values.values()) for trial in found.trials] == [
        (lr, tokens) for lr in (1e-3, 1e-2) for tokens in (100, 200, 300)
    ]
    assert all(t.objective[0] == loss_of(t.values["optim.lr"], 3) for t in found.trials)


def child(work: Callable[[], object]) -> int:
    """Run in a fork; its process id."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
            work()
            status = 0
        finally:
            os._exit(status)
    return pid


def end_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize(
    ("sampler", "pruner", "seeds"), [("tpe", "halving", 1), ("random", "median", 2), ("tpe", "hyperband", 1)]
)
def test_killed_anywhere_the_same_call_ends_as_if_nothing_had_been(
    sampler: Any, pruner: Any, seeds: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    options = {"sampler": sampler, "pruner": pruner, "seeds": seeds, "trials": 8 if pruner == "median" else 6}
    options |= {"random_first": 3} if sampler == "tpe" else {}
    searched(**options)
    whole, steps = (
        content(),
        Counter(line.split()[1:][1] for line in Path("steps.txt").read_text().splitlines()),
    )
    assert {"finished", "pruned"} <= {trial["state"] for trial in whole["trials"]}
    total = sum(steps.values())
    moments = [
        (Study, "add", 3, True), (Study, "is_bad", 12, True), (Study, "finish", 2, False),
        (Study, "give_up", 1, True),
    ]  # fmt: skip
    for kind, name, call, after in moments if pruner == "halving" else moments[1:2]:
        place = tmp_path / f"{name}{call}"
        place.mkdir()
        monkeypatch.chdir(place)

        def killed(kind: Any = kind, name: str = name, call: int = call, after: bool = after) -> None:
            method, calls = getattr(kind, name), [0]

            def counted(*arguments: Any, **named: Any) -> Any:
                calls[0] += 1
                if calls[0] == call and not after:
                    os.kill(os.getpid(), signal.SIGKILL)
                found = method(*arguments, **named)
                if calls[0] == call:
                    os.kill(os.getpid(), signal.SIGKILL)
                return found

            setattr(kind, name, counted)
            searched(**options)

        assert end_of(child(killed)) == -signal.SIGKILL
        searched(**options)
        assert content() == whole, (name, call)
        lines = Path("steps.txt").read_text().splitlines()
        assert len(lines) <= total + 1  # at most the step that was under way is done again


def test_workers_share_the_trials_and_run_none_twice() -> None:
    def work() -> None:
        searched(trials=10, sampler="random")

    for pid in [child(work) for _ in range(3)]:
        assert end_of(pid) == 0
    found = searched(trials=10, sampler="random")
    lines = [line.split() for line in Path("steps.txt").read_text().splitlines()]
    done = Counter((folder, step) for _, folder, step in lines)
    assert set(done.values()) == {1}
    assert len(done) == STEPS * sum(trial.state == "finished" for trial in found.trials)
    assert [trial.number for trial in found.trials] == list(range(10))
    assert all(trial.state in ("finished", "failed") for trial in found.trials)


def test_workers_of_a_sweep_train_each_combination_once() -> None:
    space = space_of({"optim": {"lr": [1e-5, 1e-4, 1e-3, 1e-2], "warmup": [1, 2, 3, 4, 5]}}, BASE)

    def work() -> None:
        def train(settings: Any, _: Any) -> dict[str, float]:
            with open("trained.txt", "a", encoding="utf-8") as file:
                file.write(f"{settings.optim.lr} {settings.optim.warmup}\n")
            return {"validation_loss": settings.optim.lr}

        Sweep(BASE, space, 1, Path("w"), train).work()

    Path("w").mkdir()
    for pid in [child(work) for _ in range(4)]:
        assert end_of(pid) == 0
    lines = Path("trained.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(set(lines)) == 20


def test_a_trial_of_a_dead_worker_is_taken_over_and_that_of_a_living_one_is_not() -> None:
    started, go_on = os.pipe(), os.pipe()

    def slow() -> None:
        is_bad = Study.is_bad

        def waiting(*arguments: Any) -> bool:
            os.write(started[1], b"x")
            os.read(go_on[0], 1)
            return is_bad(*arguments)

        Study.is_bad = waiting  # type: ignore[method-assign]
        searched(trials=4, sampler="random", pruner="median")

    pid = child(slow)
    os.read(started[0], 1)
    found = searched(trials=4, sampler="random", pruner="median")
    assert found.trials[0].state == "running"
    assert all(trial.state != "running" for trial in found.trials[1:])
    os.kill(pid, signal.SIGKILL)
    assert end_of(pid) == -signal.SIGKILL
    found = searched(trials=4, sampler="random", pruner="median")
    assert all(trial.state != "running" for trial in found.trials)


def test_the_same_seed_gives_the_same_trials() -> None:
    values = [
        [trial.values for trial in search_settings(
            BASE, SPACE, SearchConfig(folder=folder, trials=6, random_first=2, seed=seed), trainer=FakeTrainer
        ).trials]
        for folder, seed in (("a", 1), ("b", 1), ("c", 2))
    ]  # fmt: skip
    assert values[0] == values[1] != values[2]


def test_a_pruned_trial_says_at_which_step_and_by_what() -> None:
    found = searched(trials=12, pruner="median", sampler="random", prune_from=3)
    pruned = [trial for trial in found.trials if trial.state == "pruned"]
    assert pruned
    for trial in pruned:
        last = max(trial.steps)
        assert last >= 3
        assert trial.reason.startswith(f"after step {last}: validation_loss = ")
        assert not trial.objective
    text = Path("s/search.html").read_text(encoding="utf-8")
    assert pruned[0].reason in text


def test_a_value_is_the_mean_over_seeds_and_new_seeds_confirm_the_best() -> None:
    found = searched({"optim.lr": [1e-3, 1e-2]}, sampler="grid", seeds=3, confirm=2)
    each = [[loss_of(lr, seed) for seed in (3, 4, 5)] for lr in (1e-3, 1e-2)]
    for trial, values in zip(found.trials, each, strict=True):
        assert trial.objective[0] == pytest.approx(statistics.mean(values))
        assert trial.deviations[0] == pytest.approx(statistics.stdev(values) / math.sqrt(3))
    (confirmed,) = found.confirmed
    assert confirmed.trial == 1
    assert confirmed.seeds == (6, 7)
    assert confirmed.difference.mean == pytest.approx(loss_of(1e-2, 6) - loss_of(1e-3, 6))
    assert confirmed.recipe == pytest.approx([loss_of(1e-3, 6), loss_of(1e-3, 7)])


def loss_of(rate: float, seed: int) -> float:
    run, optim = replace(BASE.run, seed=seed), replace(BASE.optim, lr=rate)
    return loss(replace(BASE, run=run, optim=optim), STEPS)


def test_two_objectives_have_a_front() -> None:
    class Two(FakeTrainer):
        def train(self) -> Any:
            run = super().train()
            rate = self.settings.optim.lr
            run.metrics["validation_loss"] = [rate] * STEPS
            run.metrics["grad_norm"] = [1 / rate if rate < 0.05 else 99.0] * STEPS
            return run

    config = SearchConfig(
        folder="s", sampler="grid", objective=["validation_loss", "grad_norm"], best_is=["lowest", "lowest"]
    )
    found = search_settings(BASE, {"optim.lr": [0.01, 0.02, 0.1, 0.2]}, config, trainer=Two)
    assert [trial.number for trial in found.front] == [0, 1]
    assert len(list(Path("s/front").iterdir())) == 2
    with pytest.raises(ConfigError, match="not with several objectives"):
        searched(objective=["loss", "validation_loss"], pruner="median")


def test_a_best_trial_that_is_far_from_the_reference_is_said_to_be() -> None:
    class Far(FakeTrainer):
        def train(self) -> Any:
            run = super().train()
            run.metrics["kl"] = [1000 * self.settings.optim.lr] * STEPS
            return run

    base = replace(BASE, optim=replace(BASE.optim, lr=2e-3))
    config = SearchConfig(folder="s", sampler="grid")
    found = search_settings(base, {"optim.lr": [2e-3, 1e-2]}, config, trainer=Far)
    space = space_of({"optim.lr": [2e-3, 1e-2]}, base)
    search = Search(base, space, replace(config, command="sft"), Path("s"), lambda *_: {})
    text = summary(search, found)
    assert "the best trial is 10.0 nats from the reference, the recipe 2.00" in text
    rows = [row.split()[1:3] for row in text.splitlines() if row.startswith(("1 ", "2 "))]
    assert rows[:2] == [
        [number(found.trials[1].objective[0]), "10.0"],
        [number(found.trials[0].objective[0]), "2.00"],
    ]


def test_a_search_whose_first_trials_all_fail_ends() -> None:
    with pytest.raises(RunError, match="all of the first 3 trials have failed: no step could be done"):
        searched({"train.batch_tokens": [400], "optim.lr": SPACE["optim.lr"]}, recipe_first=False)


def test_another_search_is_not_mixed_into_a_folder() -> None:
    searched(trials=2)
    assert len(searched(trials=3).trials) == 3  # more of the same is no other search
    with pytest.raises(RunError, match="s: was begun with other search; give another folder"):
        searched(trials=2, seed=1)
    with pytest.raises(RunError, match="was begun with other space"):
        searched({"optim.lr": [0.1]}, trials=2)
    Path("other").mkdir()
    Path("other/file").write_text("mine")
    with pytest.raises(RunError, match="other: holds something else"):
        search_settings(BASE, SPACE, SearchConfig(folder="other"), trainer=FakeTrainer)
    Path("s/study.db").write_text("not a database")
    with pytest.raises(RunError, match=r"study\.db: cannot be used"):
        searched(trials=2)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"objective": ["validation_los"]}, "no metric validation_los; did you mean validation_loss"),
        ({"objective": ["lr"]}, "best_is: needed for objective = lr"),
        ({"objective": ["loss", "loss"]}, "names a metric twice"),
        ({"best_is": ["low"]}, "write highest or lowest"),
        ({"best_is": ["lowest", "lowest"]}, "give one for each objective"),
        ({"pruner": "median", "prune_by": "kl"}, "steps of proxlm sft have no metric kl"),
        (
            {"pruner": "median", "best_is": ["highest"]},
            "the lowest value is the better one, of the objective the",
        ),
        ({"pruner": "median", "prune_by": "validation_accuracy"}, "have no metric validation_accuracy"),
        ({"prune_from": 3}, "has no effect with pruner"),
        ({"factor": 4, "pruner": "median"}, "has no effect with pruner"),
        ({"confirm_best": 4}, "has no effect with confirm"),
        ({"sampler": "grid"}, "a grid needs a list of values"),
        ({"workers": 2}, "a trainer of your own cannot be sent"),
    ],
)
def test_wrong_settings_are_named_before_anything_is_written(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as found:
        searched(**settings)
    assert said in str(found.value)
    assert not Path("s").exists()


def test_a_ppo_search_needs_held_out_prompts() -> None:
    base = proxlm.PPOConfig(
        model=proxlm.ModelSettings(policy="m"),
        data=proxlm.DataSettings(prompts="p", eval_count=0),
        reward=proxlm.RewardSettings(use="length", args={"target": 3}),
    )
    with pytest.raises(ConfigError, match="a search judges by held-out prompts"):
        search_settings(base, "ppo", SearchConfig(folder="s"))


def test_a_missing_optuna_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r'needs optuna: pip install "proxlm\[search\]"'):
        searched()
    assert not Path("s").exists()
