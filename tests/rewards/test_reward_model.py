import math
from pathlib import Path
from typing import Any

import pytest
import torch

from proxlm.config.schema import RewardSettings
from proxlm.data.tokenizer import train_tokenizer
from proxlm.errors import ConfigError, ModelError, RewardError
from proxlm.models.model_types import register_model_types
from proxlm.rewards import build_reward
from proxlm.rewards.reward_model import RewardModel
from proxlm.types import Completion
from small_models import TEXTS as SMALL

TEXTS = [
    "The cat",
    " sat on the mat and looked",
    " at the moon.",
    "春眠不觉晓",
    " a",
    "def add(a, b): return a + b",
]
SIX = [Completion("One day", text) for text in TEXTS]


def save_classifier(folder: Path, tokenizer: Any, type: str = "llama", **config: Any) -> str:
    """A random sequence classifier with weights large enough to tell texts apart."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    register_model_types()
    sizes = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    made = AutoConfig.for_model(
        type,
        **({"n_layer": 2, "n_embd": 16, "n_head": 2} if type == "gpt2" else sizes),
        **{
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 64,
            "pad_token_id": tokenizer.pad_token_id,
        }
        | {"num_labels": 1}
        | config,
    )
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(made)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


LETTERS = [chr(ord("a") + i) for i in range(26)]


def bert_tokenizer() -> Any:
    """BERT's, whose words are single letters."""
    from transformers import BertTokenizer

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return BertTokenizer(vocab={word: i for i, word in enumerate([*special, *LETTERS])})


def direct_logits(path: str, tokenizer: Any, text: str | tuple[str, str]) -> torch.Tensor:
    """One text through transformers alone, nothing padded."""
    texts = (text,) if isinstance(text, str) else text
    return logits_of(path, tokenizer(*texts)["input_ids"])


def logits_of(path: str, ids: list[int]) -> torch.Tensor:
    """One sequence of token ids through transformers alone."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]


@pytest.mark.parametrize("type", ["llama", "gpt2", "bert", "proxlm_lstm"])
def test_a_score_is_the_models_logit_whatever_the_batch_and_order(
    type: str, tmp_path: Path, tokenizer: Any
) -> None:
    path = save_classifier(tmp_path, tokenizer, type)
    expected = [direct_logits(path, tokenizer, c.prompt + c.text).item() for c in SIX]
    assert max(expected) - min(expected) > 0.01
    for size in (1, 2, 4, 16):
        scores = RewardModel(path, batch_size=size, device="cpu")(SIX)
        assert scores == pytest.approx(expected, abs=1e-5)
    backwards = RewardModel(path, batch_size=4, device="cpu")(SIX[::-1])
    assert backwards == pytest.approx(expected[::-1], abs=1e-5)


def test_without_a_padding_token_texts_go_one_by_one(tmp_path: Path, tokenizer: Any) -> None:
    path = save_classifier(tmp_path, tokenizer, pad_token_id=None)
    scores = RewardModel(path, batch_size=4, device="cpu")(SIX)
    expected = [direct_logits(path, tokenizer, c.prompt + c.text).item() for c in SIX]
    assert scores == pytest.approx(expected, abs=1e-5)


def test_the_models_padding_token_counts_where_the_tokenizers_differs(tmp_path: Path, tokenizer: Any) -> None:
    path = save_classifier(tmp_path, tokenizer, pad_token_id=tokenizer.eos_token_id)
    scores = RewardModel(path, batch_size=4, device="cpu")(SIX)
    expected = [direct_logits(path, tokenizer, c.prompt + c.text).item() for c in SIX]
    assert scores == pytest.approx(expected, abs=1e-5)


def test_sigmoid_makes_a_probability_of_the_logit(tmp_path: Path, tokenizer: Any) -> None:
    path = save_classifier(tmp_path, tokenizer)
    logits = RewardModel(path, device="cpu")(SIX)
    probabilities = RewardModel(path, device="cpu", sigmoid=True)(SIX)
    assert probabilities == pytest.approx([1 / (1 + math.exp(-x)) for x in logits], abs=1e-6)


def test_with_classes_the_score_is_the_labels_log_probability(tmp_path: Path, tokenizer: Any) -> None:
    names = {0: "bad", 1: "good", 2: "odd"}
    path = save_classifier(tmp_path, tokenizer, num_labels=3, id2label=names)
    by_name = {n: RewardModel(path, device="cpu", label=n, sigmoid=True)(SIX[:2]) for n in names.values()}
    for row in range(2):
        logits = direct_logits(path, tokenizer, SIX[row].prompt + SIX[row].text)
        expected = torch.softmax(logits, -1).tolist()
        assert [by_name[n][row] for n in names.values()] == pytest.approx(expected, abs=1e-6)
    log_probabilities = RewardModel(path, device="cpu", label=1)(SIX[:2])
    assert log_probabilities == pytest.approx([math.log(p) for p in by_name["good"]], abs=1e-5)


def test_independent_labels_have_their_own_probability(tmp_path: Path, tokenizer: Any) -> None:
    path = save_classifier(tmp_path, tokenizer, num_labels=2, problem_type="multi_label_classification")
    text = SIX[0].prompt + SIX[0].text
    expected = torch.sigmoid(direct_logits(path, tokenizer, text))[1].item()
    assert RewardModel(path, device="cpu", label=1, sigmoid=True)(SIX[:1]) == pytest.approx(
        [expected], abs=1e-6
    )
    assert RewardModel(path, device="cpu", label=1)(SIX[:1]) == pytest.approx([math.log(expected)], abs=1e-5)


@pytest.mark.parametrize("label", [None, "fine", 2])
def test_a_label_is_needed_and_checked_before_anything_is_loaded(
    label: Any, tmp_path: Path, tokenizer: Any
) -> None:
    path = save_classifier(tmp_path, tokenizer, num_labels=2, id2label={0: "bad", 1: "good"})
    args = {"path": path} | ({} if label is None else {"label": label})
    with pytest.raises(ConfigError) as raised:
        build_reward(RewardSettings(use="reward_model", args=args))
    what = "required for a model with several classes" if label is None else "no such class"
    assert str(raised.value) == f"reward.args.label = {label!r}: {what}; the model has bad, good"


def test_a_long_text_is_an_error_or_loses_its_beginning(tmp_path: Path, tokenizer: Any) -> None:
    path = save_classifier(tmp_path, tokenizer)
    long = Completion("x" * 40, SIX[1].text)
    ids = tokenizer(long.prompt + long.text)["input_ids"]
    assert len(ids) > 20
    short, error = RewardModel(path, max_length=20, device="cpu")([SIX[0], long])
    assert isinstance(error, RewardError)
    assert str(error).startswith(
        f"{len(ids)} tokens with the prompt are more than max_length = 20; truncate = true"
    )
    assert short == pytest.approx(
        direct_logits(path, tokenizer, SIX[0].prompt + SIX[0].text).item(), abs=1e-5
    )
    model = RewardModel(path, max_length=20, truncate=True, device="cpu")
    assert model([long]) == pytest.approx([logits_of(path, [ids[0], *ids[-19:]]).item()], abs=1e-5)


@pytest.mark.parametrize("type", ["t5", "bart"])
def test_encoder_decoders_score_too_and_read_a_text_or_a_pair(type: str, tmp_path: Path) -> None:
    """Their classifiers read the state at the last EOS, which their tokenizers write."""
    tokenizer = train_tokenizer(SMALL * 20, 320, 64, encoder_decoder=True)
    sizes = {"d_kv": 8, "d_ff": 32} if type == "t5" else {"decoder_layers": 2, "encoder_ffn_dim": 32}
    more = {} if type == "t5" else {"decoder_ffn_dim": 32, "decoder_attention_heads": 2}
    ends = {"eos_token_id": tokenizer.eos_token_id, "decoder_start_token_id": tokenizer.pad_token_id}
    path = save_classifier(tmp_path, tokenizer, type, **sizes, **more, **ends)
    expected = [direct_logits(path, tokenizer, c.prompt + c.text).item() for c in SIX]
    assert max(expected) - min(expected) > 0.01
    for size in (1, 4, 16):
        scores = RewardModel(path, batch_size=size, device="cpu")(SIX)
        assert scores == pytest.approx(expected, abs=1e-5)
    pairs = [direct_logits(path, tokenizer, (c.prompt, c.text)).item() for c in SIX]
    scores = RewardModel(path, device="cpu", pair=True)(SIX)
    assert scores == pytest.approx(pairs, abs=1e-5)
    assert scores != pytest.approx(expected, abs=1e-3)


def test_a_long_pair_loses_the_beginning_of_its_prompt(tmp_path: Path, tokenizer: Any) -> None:
    path = save_classifier(tmp_path, tokenizer)
    model = RewardModel(path, max_length=20, truncate=True, device="cpu", pair=True)
    prompt = "".join(chr(ord("a") + i % 26) for i in range(40))
    whole = tokenizer(prompt, " sat")["input_ids"]
    expected = logits_of(path, [whole[0], *whole[-19:]]).item()
    assert model([Completion(prompt, " sat")]) == pytest.approx([expected], abs=1e-5)
    assert logits_of(path, whole[:20]).item() != pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("words", [16, 17, 18, 60])
def test_a_long_pair_without_room_for_its_prompt_is_the_end_of_its_response(
    words: int, tmp_path: Path
) -> None:
    tokenizer = bert_tokenizer()
    path = save_classifier(tmp_path, tokenizer, "bert")
    model = RewardModel(path, max_length=20, truncate=True, device="cpu", pair=True)
    response = [chr(ord("a") + i % 26) for i in range(words)]
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    ids = tokenizer.convert_tokens_to_ids(response)[-17:]
    prompt = tokenizer.convert_tokens_to_ids(["z"])[: 17 - len(ids)]  # of x y z
    expected = logits_of(path, [cls, *prompt, sep, *ids, sep]).item()
    assert model([Completion("x y z", " ".join(response))]) == pytest.approx([expected], abs=1e-5)


def test_a_long_text_keeps_the_token_that_an_encoders_classifier_reads(tmp_path: Path) -> None:
    """BERT's tokenizer has no BOS: its head reads the state at [CLS]."""
    tokenizer, words = bert_tokenizer(), LETTERS
    path = save_classifier(tmp_path, tokenizer, "bert")
    model = RewardModel(path, max_length=8, truncate=True, device="cpu")
    whole = tokenizer(" ".join(words))["input_ids"]
    expected = logits_of(path, [tokenizer.cls_token_id, *whole[-7:]]).item()
    assert model([Completion(" ".join(words[:20]), " " + " ".join(words[20:]))]) == pytest.approx(
        [expected], abs=1e-5
    )
    assert logits_of(path, whole[-8:]).item() != pytest.approx(expected, abs=1e-3)


def test_the_longest_text_is_by_default_the_models_own_limit(tmp_path: Path, tokenizer: Any) -> None:
    path = save_classifier(tmp_path, tokenizer, max_position_embeddings=24)
    (error,) = RewardModel(path, device="cpu")([Completion("x" * 40, "")])
    assert "more than max_length = 24;" in str(error)


def test_it_is_loaded_once_at_the_first_call_or_by_prepare(tmp_path: Path, tokenizer: Any) -> None:
    path = save_classifier(tmp_path, tokenizer, "bert")  # has dropout, which must be off
    expected = [direct_logits(path, tokenizer, c.prompt + c.text).item() for c in SIX]
    weights, hidden = Path(path) / "model.safetensors", Path(path) / "hidden"
    config = RewardSettings(
        use="reward_model", args={"path": path, "device": "cpu", "batch_size": 4}, timeout=60
    )
    weights.rename(hidden)
    reward = build_reward(config)  # loads nothing
    with pytest.raises(ModelError):
        reward.prepare()
    hidden.rename(weights)
    reward.prepare()
    weights.unlink()
    for _ in range(2):
        scores = reward.score(SIX)
        assert scores.total.tolist() == pytest.approx(expected, abs=1e-5)
        assert scores.failed == 0


def test_a_language_model_without_a_trained_head_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), num_labels=1, **sizes)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    settings = RewardSettings(use="reward_model", args={"path": str(tmp_path)})
    with pytest.raises(ConfigError, match=r"a LlamaForCausalLM; a reward model is a trained classifier"):
        build_reward(settings)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace("ForCausalLM", "ForSequenceClassification"))
    with pytest.raises(ModelError, match=r"missing: score\.weight.* a reward model is a trained classifier"):
        build_reward(settings).prepare()


def test_a_folder_that_cannot_be_loaded(tmp_path: Path, tokenizer: Any) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ConfigError, match=r"^reward\.args\.path = "):
        build_reward(RewardSettings(use="reward_model", args={"path": str(empty)}))

    path = save_classifier(tmp_path / "model", tokenizer)
    reward = build_reward(RewardSettings(use="reward_model", args={"path": path}, on_error="score"))
    weights = tmp_path / "model" / "model.safetensors"
    torch.save({}, tmp_path / "model" / "pytorch_model.bin")
    for damage, problem in (
        (lambda: weights.write_bytes(b"nonsense"), "cannot be loaded: "),
        (weights.unlink, "only pickled weights"),
    ):
        damage()
        with pytest.raises(ModelError) as raised:
            reward.score(SIX)
        assert str(raised.value).startswith(f"reward model {path}: {problem}")
        assert "\n" not in str(raised.value)


TURNS = (
    "{{ bos_token }}{% for m in messages %}<turn>{{ m.role }}\n{{ m.content | trim }}</turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
)
ASKED = [{"role": "user", "content": "where is the dog"}]
TALK = [*ASKED, {"role": "assistant", "content": "in the park"}]


def own_template(template: str = TURNS) -> Any:
    made = train_tokenizer(SMALL * 20, vocabulary=300, context=64)
    made.add_special_tokens({"additional_special_tokens": ["<turn>", "</turn>"]})
    made.chat_template = template
    return made


def test_messages_are_read_through_the_reward_models_own_template(tmp_path: Path) -> None:
    """Its tokenizer puts BOS first, and so does its template; the policy's rendering has another form."""
    tokenizer = own_template()
    path = save_classifier(tmp_path, tokenizer)
    text = tokenizer.apply_chat_template(TALK, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids.count(tokenizer.bos_token_id) == 1
    assert text.endswith("in the park</turn>\n")
    expected = logits_of(path, ids).item()
    policys = "[INST] where is the dog [/INST]"
    asked = {"prompt": ASKED}
    for completion in (
        Completion(policys, "in the park", messages=TALK),
        Completion(policys, "in the park", fields=asked),  # not of a rollout
        Completion(
            policys, "in the park", messages=TALK, fields={"prompt": [{"role": "user", "content": "x"}]}
        ),
    ):
        assert RewardModel(path, device="cpu")([completion]) == pytest.approx([expected], abs=1e-5)
    plain = direct_logits(path, tokenizer, policys + "in the park").item()
    assert RewardModel(path, device="cpu")([Completion(policys, "in the park")])[0] == pytest.approx(
        plain, abs=1e-5
    )
    assert abs(plain - expected) > 1e-3


def test_bos_stands_once_in_a_rendered_prompt_without_messages(tmp_path: Path) -> None:
    tokenizer = own_template("")
    path = save_classifier(tmp_path, tokenizer)
    expected = direct_logits(path, tokenizer, "where is the dog").item()
    spelled = Completion(f"{tokenizer.bos_token}where is", " the dog")
    assert RewardModel(path, device="cpu")([spelled]) == pytest.approx([expected], abs=1e-5)


def test_a_long_conversation_is_cut_at_its_beginning_behind_bos(tmp_path: Path) -> None:
    tokenizer = own_template()
    path = save_classifier(tmp_path, tokenizer)
    ids = tokenizer(tokenizer.apply_chat_template(TALK, tokenize=False), add_special_tokens=False)[
        "input_ids"
    ]
    completion = Completion("", "in the park", messages=TALK)
    cut = [ids[0], *ids[-9:]]
    model = RewardModel(path, max_length=10, truncate=True, device="cpu")
    assert model([completion]) == pytest.approx([logits_of(path, cut).item()], abs=1e-5)
    (error,) = RewardModel(path, max_length=10, device="cpu")([completion])
    assert f"{len(ids)} tokens with the prompt are more than max_length = 10" in str(error)


def test_a_template_from_a_file_with_variables_and_one_that_refuses(tmp_path: Path) -> None:
    path = save_classifier(tmp_path / "model", own_template(""))
    template = tmp_path / "template.jinja"
    template.write_text(
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system message') }}{% endif %}"
        "{{ mark }}{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    arguments: dict[str, Any] = {"chat_template": str(template), "chat_template_kwargs": {"mark": "The cat"}}
    model = RewardModel(path, device="cpu", **arguments)
    ids = own_template("")("The catwhere is the dogin the park", add_special_tokens=False)["input_ids"]
    refused = [{"role": "system", "content": "be kind"}, *TALK]
    good, bad = model([Completion("", "", messages=TALK), Completion("", "", messages=refused)])
    assert good == pytest.approx(logits_of(path, ids).item(), abs=1e-5)
    assert "no system message" in str(bad)
    with pytest.raises(ValueError, match=r"chat_template_kwargs\.tokenize: not a variable"):
        RewardModel(path, chat_template_kwargs={"tokenize": True})


def test_without_a_template_the_policys_rendering_is_read_and_said(tmp_path: Path, caplog: Any) -> None:
    tokenizer = own_template("")
    path = save_classifier(tmp_path, tokenizer)
    expected = direct_logits(path, tokenizer, "where is the dog: in the park").item()
    completion = Completion("where is the dog: ", "in the park", messages=TALK)
    model = RewardModel(path, device="cpu")
    assert model([completion, completion]) == pytest.approx([expected] * 2, abs=1e-5)
    assert caplog.text.count("its tokenizer has no chat template") == 1


def test_a_pair_of_messages_is_their_words(tmp_path: Path) -> None:
    tokenizer = own_template()
    path = save_classifier(tmp_path, tokenizer)
    expected = direct_logits(path, tokenizer, ("be kind\nwhere is the dog", "in the park")).item()
    talk = [{"role": "system", "content": "be kind"}, *TALK]
    completion = Completion("<turn>...", "in the park", messages=talk)
    assert RewardModel(path, pair=True, device="cpu")([completion]) == pytest.approx([expected], abs=1e-5)
