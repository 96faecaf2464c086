"""Every random stream of the library, declared once, and the seeds derived from a run's seed.

No generator state is stored: whatever is random is a pure function of the run's seed, a purpose and counters.
The values of both enumerations are part of what a seed means: changing one changes the results of every run.
"""

from __future__ import annotations

import enum
import hashlib


@enum.unique
class Purpose(enum.StrEnum):
    """What a derived seed is for; the comment says which counters follow it, if any."""

    WEIGHTS = "weights"  # new weights: of models, adapters, value heads and control's networks
    WORD_VECTORS = "word-vectors"  # word2vec on the training text of a new model
    # Data
    PROMPTS = "prompts"  # order of the training prompts; epoch
    HELD_OUT = "held-out"  # which prompts are held out for evaluation
    SHOTS = "shots"  # which solved examples stand before a prompt; its row
    DOCUMENTS = "documents"  # order of the texts to pretrain on
    EXAMPLES = "examples"  # order of the rows of supervised training; epoch, of a mixture also the source
    VALIDATION = "validation"  # which texts or records are kept for validation
    BAG = "bag"  # which comparisons a member of an ensemble learns, and how often; member
    MEMBER = "member"  # base of the weights of a member of an ensemble; member
    STATEMENTS = "statements"  # which of the demo's statements are used
    DROPOUT = "dropout"  # which states a training pass sets to 0; step
    ON_POLICY = "on-policy"  # which rows of a batch the student of a distillation samples itself; step
    PREFIXES = "prefixes"  # where the demo's statements are cut
    MINHASH = "minhash"  # the permutations of MinHash signatures
    SPLIT = "split"  # which groups of records are for validation and test
    # Evaluation
    RESAMPLES = "resamples"  # the prompts, seeds, signs and assignments of intervals and tests
    FOLD = "fold"  # which records each part of `proxlm folds` holds
    # Search
    SAMPLER = "sampler"  # where a search's sampler puts a trial; its number
    # Rollouts
    SERVER = "server"  # a request's seed on a server; stream, step, prompt id, repeat, position
    # Updates
    PASS = "pass"  # order of the rows in one pass over a rollout; step, pass
    COVARIANCE = "covariance"  # which tokens Clip-Cov leaves out; step, prompt id, repeat
    HEADS = "heads"  # which responses each value head of the critic learns from; step, prompt id, repeat
    # Multi-turn environments
    TASK = "task"  # Task.seed, the same in each repeat of a prompt; the base is the prompt's id
    CHANCE = "chance"  # Task.chance, new in each conversation; stream, step, prompt id, repeat
    NUMBER_GAME = "number-game"  # random play to pretrain on; the base is the text's number
    TIC_TAC_TOE = "tic-tac-toe"
    FROZEN_LAKE = "frozen-lake"
    # Control
    ACTIONS = "actions"  # the actions sampled in a rollout; step
    EPISODE = "episode"  # how an episode begins; environment, episode
    UPDATE = "update"  # base of the PASS seeds of control
    PLAY = "play"  # how the episode begins in which a saved policy is shown


@enum.unique
class Stream(enum.IntEnum):
    """Streams of the engine's counter-based numbers (engine/uniforms.py), so that none repeats another's samples."""

    TRAINING = 0
    EVALUATION = 1
    TRIAL = 2  # the responses that a reward is tried on before the run begins
    TEACHER = 4  # the answers of a teacher
    REFERENCE = 3  # the responses that the reference statistics of the reward are taken on


def derive_seed(base: int, purpose: Purpose, *counters: int) -> int:
    """A 63-bit seed, the same on every machine and Python version.

    Args:
        base: the run's seed, or a seed or an identity from which several others are derived.
        purpose: what the seed is for.
        counters: what else it depends on, such as step and pass; see `Purpose`.
    """
    digest = hashlib.blake2b("/".join(map(str, (base, purpose, *counters))).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
