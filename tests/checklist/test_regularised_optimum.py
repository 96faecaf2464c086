"""A transformer with three tokens, small enough to write down every response: does PPO reach the optimum of J?

Vocabulary a, b, EOS and at most three tokens: 15 responses. J = E[score] − β KL(π ‖ π_ref) has the optimum
π* ∝ π_ref · exp(score / β). The trainer, the engine and the forward passes are those of every other run.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers import SilentLog, prepared_by, with_experience
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from proxlm.config import (
    ModelSettings,
    NewModelSettings,
    OptimiserSettings,
    OptimisersSettings,
    PPOConfig,
    PPOSettings,
    RolloutSettings,
    RunSettings,
)
from proxlm.data.prompts import PromptStream
from proxlm.models.actor_critic import make_actor_critic
from proxlm.models.forward import token_outputs
from proxlm.models.load import build_language_model
from proxlm.rl.advantages import gae
from proxlm.rl.kl import kl_estimate
from proxlm.rl.losses import clipped_policy_loss
from proxlm.rl.ragged import segment_sum
from proxlm.rl.shaping import token_rewards
from proxlm.train.ppo.loop import PPOLoop
from proxlm.train.ppo.update import update
from proxlm.types import Prompt, Rollout, Scores, Sequences

pytestmark = pytest.mark.checklist(39)

A, B, EOS = range(3)
LIMIT, BETA = 3, 0.5
OUTCOMES = [
    (*letters, *end)
    for n in range(LIMIT + 1)
    for letters in itertools.product((A, B), repeat=n)
    for end in ([(EOS,)] if n < LIMIT else [()])
]
NUMBERS = 0.6 * torch.randn(len(OUTCOMES), generator=torch.Generator().manual_seed(7))
TABLE = dict(zip(OUTCOMES, NUMBERS.tolist(), strict=True))
SCORES = torch.tensor([TABLE[y] for y in OUTCOMES])
PROMPT = Prompt(0, (A, B), "a b")
SEQUENCES = Sequences.from_lists([PROMPT.input_ids] * len(OUTCOMES), OUTCOMES)
OFFSETS = SEQUENCES.response_offsets


def letters():
    """A tokenizer of three tokens; padding is never seen by a model here, so EOS may stand for it."""
    words = Tokenizer(models.WordLevel({"a": A, "b": B, "</s>": EOS}, unk_token="</s>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = dict.fromkeys(("eos_token", "pad_token", "unk_token"), "</s>")
    return PreTrainedTokenizerFast(tokenizer_object=words, **special)


def transformer(seed=0, family="llama"):
    torch.manual_seed(seed)
    new = NewModelSettings(type=family, hidden=32, layers=1, heads=4, context=16, tie_embeddings=False)
    model = build_language_model(new, letters(), ModelSettings(device="cpu"))
    with torch.no_grad():
        # Far enough from uniform that π_ref matters.
        model.network.get_output_embeddings().weight.mul_(8.0)
    return model


def logprobs(model):
    """log π of every token of every response, teacher-forced, [R]."""
    return token_outputs(model, SEQUENCES).logprobs


@torch.no_grad()
def distribution(model):
    """π of each of the 15 responses, float64."""
    return segment_sum(logprobs(model).double(), OFFSETS).exp()


def table_of(rollout):
    """The reward: a fixed number for each response, by its token ids."""
    return Scores(torch.tensor([TABLE[completion.tokens] for completion in rollout.completions()]))


def job(steps=100, lr=5e-3, **ppo):
    settings = {
        "steps": steps,
        "batch_size": 384,
        "epochs": 2,
        "minibatches": 2,
        "kl_coef": BETA,
        "whiten_advantages": "never",
        "aggregation": "fixed",
        **ppo,
    }
    falling = OptimiserSettings(lr=lr, schedule="cosine")
    return PPOConfig(
        model=ModelSettings(device="cpu", critic="separate"),
        rollout=RolloutSettings(max_new_tokens=LIMIT, batch_size=512),
        ppo=PPOSettings(**settings),
        optim=OptimisersSettings(falling, falling),
        run=RunSettings(seed=0, save_every=0, log_samples=0),
    )


def total_variation(p, q):
    return float((p - q).abs().sum()) / 2


def optimum(reference):
    weight = reference * (SCORES.double() / BETA).exp()
    return weight / weight.sum()


def exact_gradient(model, reference):
    """∇J over all parameters, by autograd through the enumerated expectation."""
    logp = segment_sum(logprobs(model), OFFSETS)
    earned = SCORES.to(logp.dtype) - BETA * (logp - segment_sum(reference, OFFSETS))
    return torch.autograd.grad((logp.exp() * earned).sum(), list(model.network.parameters()))


def test_the_responses_are_all_there_are():
    assert len(OUTCOMES) == 15
    assert float(distribution(transformer()).sum()) == pytest.approx(1.0, abs=1e-6)


def test_ppo_reaches_the_regularised_optimum(tmp_path):
    config = job()
    networks = make_actor_critic(transformer(), "separate")
    reference = distribution(networks.reference)
    wanted = optimum(reference)
    assert total_variation(reference, wanted) > 0.2
    made = PPOLoop(config, networks, PromptStream([PROMPT], 384, 0), table_of, tmp_path)
    log = SilentLog()
    made.train(log)
    got = total_variation(distribution(networks.policy), wanted)
    print("start", total_variation(reference, wanted), "end", got)
    assert got <= 0.02
    # At the optimum, score − β log(π / π_ref) is the same number for every response: log Σ π_ref exp(score / β).
    best = BETA * float((reference * (SCORES.double() / BETA).exp()).sum().log())
    regret = [best - row["reward"] + BETA * row["kl"] for row in log.rows]
    print("regret: first step", regret[0], "last", regret[-1])
    assert abs(regret[-1]) < 0.02 < 0.1 < regret[0]


@pytest.mark.parametrize(("family", "tolerance"), [("gpt2", 1e-12), ("llama", 1e-6)])
def test_expected_gradient_is_exact_for_all_parameters(family, tolerance):
    """Float64, ρ = 1: token_rewards → gae → clipped_policy_loss, each response weighted by its probability.

    Llama's norms work in float32 whatever the weights are, hence its tolerance, relative to the largest derivative.
    """
    model, reference = transformer(0, family), transformer(1, family)
    for one in (model, reference):
        one.network.double()
    new, ref = logprobs(model), logprobs(reference).detach()
    old, mask = new.detach(), torch.ones(len(new), dtype=torch.bool)
    rewards = token_rewards(SCORES.double(), kl_estimate(old, ref), BETA, mask, OFFSETS)
    anything = torch.randn(len(new), generator=torch.Generator().manual_seed(3)).double()
    # A critic sees the prefix only: the same number wherever responses begin alike.
    prefixes = [y[:t] for y in OUTCOMES for t in range(len(y))]
    values = torch.stack([anything[prefixes.index(p)] for p in prefixes])
    advantages, _ = gae(rewards, values, mask, OFFSETS, 1.0, 1.0)
    terms = clipped_policy_loss(new, old, advantages)
    weight = segment_sum(old, OFFSETS).exp().repeat_interleave(SEQUENCES.response_lengths)
    got = torch.autograd.grad(-(weight * terms.loss).sum(), list(model.network.parameters()))
    wanted = exact_gradient(model, ref)
    worst = max(float((g - e).abs().max()) for g, e in zip(got, wanted, strict=True))
    largest = max(float(e.abs().max()) for e in wanted)
    print("expected gradient: worst", worst, "largest", largest)
    assert new.dtype == torch.float64
    assert worst < tolerance * max(1.0, largest)
    assert largest > 0.1


def test_the_trainers_own_gradient_is_exact():
    """Float32: prepare → update, in micro-batches, each response's probability instead of the correction."""
    config = job(steps=1, epochs=1, minibatches=1, lam=1.0, micro_batch_tokens=20)
    networks = make_actor_critic(transformer(), "separate")
    networks.reference = transformer(seed=1)
    torch.nn.init.normal_(networks.value_head.linear.weight)  # λ = 1: any critic will do
    made = PPOLoop(config, networks, PromptStream([PROMPT], 15, 0), table_of, None)
    wanted = exact_gradient(networks.policy, logprobs(networks.reference).detach())
    rollout = Rollout(
        prompts=[PROMPT] * len(OUTCOMES),
        sequences=SEQUENCES,
        action_mask=torch.ones(int(OFFSETS[-1]), dtype=torch.bool),
        logprobs=logprobs(networks.policy).detach(),
        finish=["eos" if y[-1] == EOS else "length" for y in OUTCOMES],
        texts=[""] * len(OUTCOMES),
        policy_versions=torch.zeros(int(OFFSETS[-1]), dtype=torch.int64),
    )
    prepared = prepared_by(made, rollout, table_of(rollout), temperature=1.0, kl_coef=BETA)
    chance = distribution(networks.policy).float().repeat_interleave(SEQUENCES.response_lengths)
    got = []

    def step(*_):
        got.extend(p.grad.clone() for p in networks.policy.network.parameters())
        return 0.0, 0.0

    made.learner.optimisers.policy.step = step
    update(made.learner, with_experience(prepared, correction=chance))
    # "fixed" divides by responses × limit.
    scale = -len(OUTCOMES) * LIMIT
    worst = max(float((scale * g - e).abs().max()) for g, e in zip(got, wanted, strict=True))
    largest = max(float(e.abs().max()) for e in wanted)
    print("trainer's gradient: worst", worst, "largest", largest)
    assert sum(len(minibatch.micro_batches) for minibatch in prepared.plan.epoch(0)) > 2
    assert worst < 1e-5 * largest
