"""Blackjack of Gymnasium as a conversation: random play loses 0.45 a game, and a small model learns to lose less.

    python examples/gymnasium_text.py [STEPS [GAMES]]

A small model first reads random games, so that it knows what a reply looks like. Needs proxlm[control].
"""

import random
import sys

import gymnasium

import proxlm

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 40
games = int(sys.argv[2]) if len(sys.argv) > 2 else 512
NAMES = ["stick", "hit"]


def transcript(seed: int) -> str:
    """One game of random replies, as the model will read it: "14 10 0 hit", a line for each reply."""
    table, draw = gymnasium.make("Blackjack-v1"), random.Random(seed)
    seen, _ = table.reset(seed=seed)
    lines, done = [], False
    while not done:
        action = draw.randrange(2)
        lines.append(f"{' '.join(map(str, seen))} {NAMES[action]}\n")
        seen, _, done, _, _ = table.step(action)
    return "".join(lines)


pretraining = proxlm.PretrainConfig(
    new=proxlm.NewModelSettings(vocabulary=300, hidden=32, layers=2, heads=2, context=96),
    train=proxlm.SupervisedSettings(steps=150, batch_tokens=512, block=32, validate_every=75),
    optim=proxlm.OptimiserSettings(lr=5e-3),
    run=proxlm.RunSettings(report=False, save_every=0, folder="runs/blackjack-read"),
)
base = proxlm.PretrainTrainer([transcript(seed) for seed in range(1000)], pretraining).train().model

config = proxlm.PPOConfig(
    data=proxlm.DataSettings(eval_count=games),
    rollout=proxlm.RolloutSettings(max_new_tokens=6, stop=["\n"], batch_size=512),
    environment=proxlm.EnvironmentSettings(
        use="gymnasium:Blackjack-v1", args={"prompt": "", "illegal_reward": -1.0}, tasks=4096, max_turns=6
    ),
    ppo=proxlm.PPOSettings(
        batch_size=512, minibatches=8, epochs=3, steps=steps, kl_coef=0.0, entropy_coef=0.05, gae_steps="turn"
    ),
    optim=proxlm.OptimisersSettings(policy=proxlm.OptimiserSettings(lr=1e-3)),
    run=proxlm.RunSettings(save_every=0, folder="runs/blackjack"),
)
run = proxlm.PPOTrainer(base, config=config).train()
for name, evaluation in run.evaluations.items():
    print("return", name, evaluation.metrics["reward"])
