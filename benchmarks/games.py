"""The three games, learnt by a small model: random play to read, then PPO; the share of the best possible return.

    python benchmarks/games.py OUTPUT_FOLDER [--games number-game tic-tac-toe frozen-lake] [--seeds 0 1 2]

Writes OUTPUT_FOLDER/GAME/{play.jsonl, read/, SEED/} and OUTPUT_FOLDER/games.json. A finished run is not run again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from proxlm import load_config
from proxlm.engine.native import NativeEngine
from proxlm.environments.games import GAMES, random_play
from proxlm.environments.resolve import conversations, task_prompts
from proxlm.jobs import ppo, pretrain
from proxlm.models.load import load_language_model
from proxlm.seeds import Purpose, Stream, derive_seed

TEXTS = 12_000
READ: dict[str, Any] = {
    "new.hidden": 64,
    "new.layers": 2,
    "new.heads": 4,
    "new.vocabulary": 320,
    "new.context": 384,
    "text.validation_share": 0.05,
    "train.steps": 300,
    "train.batch_tokens": 2048,
    "train.block": 128,
    "optim.lr": 3e-3,
}
# Per game: the recipe's settings that differ.
RECIPES = {name: Path("recipes") / f"{name}.toml" for name in GAMES}


def read_random_play(game: str, folder: Path, threads: int, args: dict[str, Any] | None = None) -> Path:
    """A model that has read random games, so that it knows how one is played and no more.

    Args:
        game: Its name.
        folder: For the games and the model.
        threads: Of the training.
        args: Of the game.
    """
    model = folder / "read" / "policy"
    if not model.exists():
        folder.mkdir(parents=True, exist_ok=True)
        turns = int(load_config("ppo", RECIPES[game], {"model.policy": "x"}).environment.max_turns)
        games = [random_play(game, args or {}, turns, derive_seed(i, Purpose(game))) for i in range(TEXTS)]
        (folder / "play.jsonl").write_text("".join(json.dumps({"text": g}) + "\n" for g in games), "utf-8")
        given = {"text.train": [str(folder / "play.jsonl")], "run.folder": str(folder / "read")}
        pretrain.main(load_config("pretrain", None, {**READ, **given, "run.threads": threads}))
    return model


def learn(game: str, model: Path, folder: Path, seed: int, threads: int) -> dict[str, Any]:
    """One PPO run; what it earned on held-out tasks before and after."""
    if not (folder / "report.html").exists():
        given = {
            "model.policy": str(model),
            "run.folder": str(folder),
            "run.seed": seed,
            "run.threads": threads,
        }
        ppo.main(load_config("ppo", RECIPES[game], given))
    models = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))["models"]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    before, after = (m["metrics"]["reward"] for m in models)
    wins = [win_rate(game, path, seed) for path in (model, folder / "policy")]
    return {"wins": wins, "before": before, "after": after, "seconds": rows[-1]["time"], "steps": len(rows)}


def win_rate(game: str, model: Path, seed: int) -> float:
    """Share of held-out games that end with a win (the last turn pays 1), sampled as in training."""
    config = load_config("ppo", RECIPES[game], {"model.policy": str(model)})
    policy = load_language_model(config.model)
    _, tasks = task_prompts(config.environment, config.data.eval_count)
    multi_turn = conversations(config.environment, config.data, policy.tokenizer)
    engine = NativeEngine(policy, config.rollout)
    rollout = multi_turn(engine, tasks.prompts, config.rollout, seed=seed, step=0, stream=Stream.EVALUATION)
    last = rollout.sequences.response_offsets[1:] - 1
    assert rollout.rewards is not None
    return float((rollout.rewards[last] > 0.9).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path)
    parser.add_argument("--games", nargs="+", default=list(GAMES), choices=list(GAMES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    found: dict[str, Any] = {}
    for game in given.games:
        folder = given.output / game
        model = read_random_play(game, folder, given.threads)
        settings = load_config("ppo", RECIPES[game], {"model.policy": str(model)}).environment
        best = GAMES[game](**settings.args).best_return(settings.max_turns)
        found[game] = {"best": best, "seeds": {}}
        for seed in given.seeds:
            result = learn(game, model, folder / str(seed), seed, given.threads)
            share = result["after"]["mean"] / best
            found[game]["seeds"][str(seed)] = {**result, "share": share}
            before, after = result["before"]["mean"], result["after"]["mean"]
            wins = " → ".join(f"{rate:.1%}" for rate in result["wins"])
            print(
                f"{game} seed {seed}: {before:.3f} → {after:.3f}, {share:.1%} of {best:.3f}; wins {wins}",
                flush=True,
            )
    (given.output / "games.json").write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
