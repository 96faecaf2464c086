"""How well do advantage estimators say which token earned the reward? Against the exact advantages, by enumeration.

python benchmarks/credit.py [--seeds 3] [--output benchmarks/results/credit.json]

Eight prompts, a vocabulary of four tokens, responses of six; each prompt has a policy of its own, a random table of
logits for every prefix, and a token that is wanted. The tasks differ in where the reward is decided. A critic learns
from responses of the policy, which stays as it is (64 a step, returns as targets), and then advantages are estimated
from 4096 fresh responses, eight in a group, and compared with Q − V of every token (`proxlm.rl.exact`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from proxlm.rl.estimators import (
    AdvantageInputs,
    gae_advantages,
    grpo_advantages,
    reinforce_advantages,
    rloo_advantages,
)
from proxlm.rl.exact import CreditQuality, ExactCredit, credit_quality, exact_credit

PROMPTS, VOCABULARY, LENGTH, GROUP = 8, 4, 6, 8
# The steps after which the critic is asked.
CRITICS = (5, 50, 500)
TASKS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "the first token decides": lambda y, wanted: (y[:, 0] == wanted).float(),
    "the last token decides": lambda y, wanted: (y[:, -1] == wanted).float(),
    "each token counts a sixth": lambda y, wanted: (y == wanted).float().mean(-1),
    "first and last must agree": lambda y, _: (y[:, 0] == y[:, -1]).float(),
}
ESTIMATORS = {
    "GAE, λ = 0": (gae_advantages, {"lam": 0.0}),
    "GAE, λ = 0.95": (gae_advantages, {"lam": 0.95}),
    "GAE, λ = 1": (gae_advantages, {"lam": 1.0}),
    "turn GAE, λ = 0.95, turns of three tokens": (gae_advantages, {"lam": 0.95, "turns": True}),
    "RLOO": (rloo_advantages, {}),
    "GRPO": (grpo_advantages, {}),
    "REINFORCE": (reinforce_advantages, {}),
}
WITHOUT_CRITIC = ("RLOO", "GRPO", "REINFORCE")


class Critic(nn.Module):
    """V of a prompt and a prefix: a small network over one-hot tokens."""

    def __init__(self) -> None:
        super().__init__()
        inputs = PROMPTS + LENGTH * VOCABULARY
        self.layers = nn.Sequential(
            nn.Linear(inputs, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1)
        )

    def forward(self, prompts: Tensor, tokens: Tensor) -> Tensor:
        """Values before each token, [n, T], of prompts [n] and responses [n, T]."""
        one_hot = torch.nn.functional.one_hot(tokens, VOCABULARY).float()
        seen = torch.tril(torch.ones(LENGTH, LENGTH), -1)  # before token t: the tokens up to t − 1
        prefixes = (one_hot[:, None] * seen[None, :, :, None]).flatten(2)
        which = torch.nn.functional.one_hot(prompts, PROMPTS).float()[:, None].expand(-1, LENGTH, -1)
        found: Tensor = self.layers(torch.cat([which, prefixes], -1))
        return found[..., 0]


class Policy:
    """Eight tables of logits, one for each prompt, and what is exact of them."""

    def __init__(self, task: str, seed: int) -> None:
        self.draw = torch.Generator().manual_seed(seed)
        self.score = TASKS[task]
        self.exact = [self._exact(prompt) for prompt in range(PROMPTS)]

    def _exact(self, prompt: int) -> ExactCredit:
        def next_logprobs(prefixes: Tensor) -> Tensor:
            return torch.log_softmax(1.5 * torch.randn(len(prefixes), VOCABULARY, generator=self.draw), -1)

        return exact_credit(next_logprobs, lambda y: self.score(y, prompt % VOCABULARY), VOCABULARY, LENGTH)

    def sample(self, prompts: Tensor) -> tuple[Tensor, Tensor]:
        """Responses [n, T] to prompts [n], and the number of the prefix before each token [n, T]."""
        tables = torch.stack([exact.logprobs for exact in self.exact])
        at, tokens, prefixes = torch.zeros_like(prompts), list[Tensor](), list[Tensor]()
        for _ in range(LENGTH):
            prefixes.append(at)
            shares = tables[prompts, at].exp()
            tokens.append(torch.multinomial(shares, 1, generator=self.draw)[:, 0])
            at = at * VOCABULARY + tokens[-1] + 1
        return torch.stack(tokens, 1), torch.stack(prefixes, 1)

    def rewards(self, prompts: Tensor, tokens: Tensor) -> Tensor:
        """What the responses are worth, [n]."""
        found = torch.zeros(len(prompts))
        for prompt in range(PROMPTS):
            rows = prompts == prompt
            found[rows] = self.score(tokens[rows], prompt % VOCABULARY)
        return found


def measure(task: str, seed: int) -> dict[str, dict[str, CreditQuality]]:
    """Estimator → critic → how near it is to the exact credit."""
    torch.manual_seed(seed)
    policy, critic = Policy(task, seed), Critic()
    optimiser = torch.optim.Adam(critic.parameters(), lr=3e-3)
    prompts = torch.arange(PROMPTS).repeat_interleave(512)
    tokens, prefixes = policy.sample(prompts)
    rewards = policy.rewards(prompts, tokens)
    of_token = torch.stack([exact.q - exact.values[:, None] for exact in policy.exact])
    exact = of_token[prompts[:, None], prefixes, tokens]
    values = torch.stack([exact.values for exact in policy.exact])[prompts[:, None], prefixes]
    critics = {"exact": values.float()}
    for step in range(1, max(CRITICS) + 1):
        asked = torch.arange(PROMPTS).repeat_interleave(GROUP)
        seen, _ = policy.sample(asked)
        returns = policy.rewards(asked, seen)[:, None].expand(-1, LENGTH)
        for _ in range(2):
            optimiser.zero_grad()
            (critic(asked, seen) - returns).square().mean().backward()
            optimiser.step()
        if step in CRITICS:
            with torch.no_grad():
                critics[f"{step} steps"] = critic(prompts, tokens)
    return {
        name: {
            kind: _quality(name, rewards, found, exact)
            for kind, found in critics.items()
            if kind == "exact" or name not in WITHOUT_CRITIC
        }
        for name in ESTIMATORS
    }


def _quality(name: str, rewards: Tensor, values: Tensor, exact: Tensor) -> CreditQuality:
    """Of one estimator. Between the two turns stands a token that the policy did not choose."""
    estimate, settings = ESTIMATORS[name]
    rows = len(rewards)
    gap, half = torch.zeros(rows, 1), LENGTH // 2

    def with_gap(x: Tensor) -> Tensor:
        return torch.cat([x[:, :half], gap.to(x.dtype), x[:, half:]], 1).flatten()

    mask = with_gap(torch.ones(rows, LENGTH, dtype=torch.bool))
    per_token = torch.zeros(rows, LENGTH)
    per_token[:, -1] = rewards
    inputs = AdvantageInputs(
        rewards=with_gap(per_token),
        values=with_gap(values),
        action_mask=mask,
        offsets=torch.arange(rows + 1) * (LENGTH + 1),
        groups=torch.arange(rows) // GROUP,
        **settings,
    )
    return credit_quality(estimate(inputs).advantages, with_gap(exact), mask)


def table(results: dict[str, dict[str, dict[str, list[CreditQuality]]]]) -> str:
    """Markdown: correlation (RMSE), means over seeds; a row for each estimator and critic."""
    rows = ["| estimator | critic | " + " | ".join(results) + " |", "| --- | --- |" + " --- |" * len(results)]
    for name, kinds in next(iter(results.values())).items():
        for kind in kinds:
            cells = [_cell(found[name][kind]) for found in results.values()]
            critic = "–" if name in WITHOUT_CRITIC else kind
            rows.append(f"| {name} | {critic} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _cell(found: list[CreditQuality]) -> str:
    means = (statistics.fmean(values) for values in zip(*found, strict=True))
    return "{:.2f} ({:.2f})".format(*means)


def main() -> None:
    """Measure, print the table and write the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/credit.json"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    began, results = time.process_time(), {}
    for task in TASKS:
        seeds = [measure(task, seed) for seed in range(given.seeds)]
        results[task] = {
            name: {kind: [found[name][kind] for found in seeds] for kind in kinds}
            for name, kinds in seeds[0].items()
        }
    seconds = round(time.process_time() - began, 1)
    given.output.write_text(json.dumps({"seconds": seconds, "results": results}, indent=1) + "\n")
    print(f"correlation (RMSE), means over {given.seeds} seeds; {seconds} s of CPU time\n\n{table(results)}")


if __name__ == "__main__":
    main()
