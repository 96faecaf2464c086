"""The reward similarity: cosines of mean-pooled states, equal to transformers' own on single texts."""

from pathlib import Path
from typing import Any

import pytest
import torch
from reward_helpers import refused

from proxlm.config.schema import RewardSettings
from proxlm.data.tokenizer import train_tokenizer
from proxlm.errors import ConfigError, RewardError
from proxlm.rewards import build_reward
from proxlm.rewards.similarity import Similarity
from proxlm.types import Completion
from small_models import TEXTS as SMALL

TEXTS = ["The cat", "The cat sat on the mat and looked", "at the moon.", "春眠不觉晓", "a"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = train_tokenizer(SMALL * 20, 300, 32)
    config = BertConfig(
        vocab_size=len(tokenizer), num_hidden_layers=2, hidden_size=16, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    model = BertModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def embedding(path: str, text: str) -> torch.Tensor:
    """One text through transformers alone, nothing padded."""
    from transformers import AutoModel, AutoTokenizer

    ids = AutoTokenizer.from_pretrained(path)(text)["input_ids"][:32]
    with torch.no_grad():
        states = AutoModel.from_pretrained(path).eval()(torch.tensor([ids])).last_hidden_state
    return torch.nn.functional.normalize(states[0].mean(0), dim=0)


def test_it_is_the_cosine_of_mean_states_and_the_best_reference_counts(encoder: str) -> None:
    references: list[Any] = [["The cat", "a"], "The cat sat", "at the moon.", ["a", "moon"], "at " * 50]
    completions = [
        Completion("", f" {text}\n", fields={"response": right})
        for text, right in zip(TEXTS, references, strict=True)
    ]
    wanted = [
        max(
            float(embedding(encoder, text) @ embedding(encoder, one.strip()))
            for one in ([right] if isinstance(right, str) else right)
        )
        for text, right in zip(TEXTS, references, strict=True)
    ]
    for size in (1, 2, 32):
        reward = Similarity(encoder, batch_size=size, device="cpu")
        assert reward(completions) == pytest.approx(wanted, abs=1e-5)
        assert reward(completions[::-1]) == pytest.approx(wanted[::-1], abs=1e-5)
    assert wanted[0] == pytest.approx(1, abs=1e-5)
    assert min(wanted) < 0.95


def test_an_empty_response_is_a_number_and_a_bad_field_an_error(encoder: str) -> None:
    reward = Similarity(encoder, device="cpu")
    (found,) = reward([Completion("", "", fields={"response": "The cat"})])
    assert isinstance(found, float)
    assert -1 <= found < 1
    for wrong in (7, [], [""], "  ", ["a", 1]):
        (error,) = reward([Completion("", "a", fields={"response": wrong})])
        assert isinstance(error, RewardError)
    scores = build_reward(RewardSettings(use="similarity", args={"path": encoder}, isolate=True)).score(
        [Completion("", "The cat", fields={"response": "The cat"})]
    )
    assert scores.total.tolist() == [pytest.approx(1, abs=1e-5)]


def test_wrong_arguments_fail_before_it_is_loaded(encoder: str, tmp_path: Path) -> None:
    for args, message in [
        ({"path": str(tmp_path / "none")}, "path = "),
        ({"path": str(tmp_path)}, "path = "),
        ({"path": encoder, "batch_size": 0}, "batch_size = 0"),
        ({"path": encoder, "max_length": -1}, "max_length = -1"),
    ]:
        assert refused(ConfigError, RewardSettings(use="similarity", args=args)).startswith(
            f"reward.args.{message}"
        )
