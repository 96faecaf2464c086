"""Every family of chat templates: BOS, the end of a turn, what is learnt, and that all of them are one notion."""

from __future__ import annotations

from typing import Any

import pytest

from chat_families import FAMILIES, Family
from proxlm.config import DataSettings, TextSettings
from proxlm.data.chat import ChatFormat
from proxlm.data.in_memory import InMemoryRecords
from proxlm.data.prompts import PromptSources, load_prompts
from proxlm.data.supervised import SFTExample, sft_examples
from proxlm.data.turn_end import turn_end_of
from proxlm.environments.message_tokens import ChatMessageTokens
from proxlm.errors import DataError

REPLIES = ["It is 5.", "Yes, a 鸟 👍."]
TALK = [
    {"role": "user", "content": "What is 2 + 3?"},
    {"role": "assistant", "content": REPLIES[0]},
    {"role": "user", "content": "And now?"},
    {"role": "assistant", "content": REPLIES[1]},
]


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.name)
def family(request: pytest.FixtureRequest) -> Family:
    found: Family = request.param
    return found


@pytest.fixture(scope="module")
def tokens(family: Family) -> Any:
    return family.tokenizer()


def sft(tokenizer: Any, family: Family, messages: list[dict[str, str]], **settings: Any) -> SFTExample:
    records = InMemoryRecords([{"messages": messages}], "talks", "messages")
    eos = family.eos_ids(tokenizer)
    (example,) = sft_examples(TextSettings(**settings), [records], tokenizer, 500, eos=eos)
    assert example is not None
    return example


def runs(example: SFTExample) -> list[list[int]]:
    """The tokens of each run of learnt ones."""
    found: list[list[int]] = [[]]
    for token, learnt in zip(example.response_ids, example.loss_mask, strict=True):
        if learnt:
            found[-1].append(token)
        elif found[-1]:
            found.append([])
    return [run for run in found if run]


def test_what_is_learnt_is_the_words_and_the_end_of_each_turn(family: Family, tokens: Any) -> None:
    learnt = runs(sft(tokens, family, TALK))
    thinking = ["", "<think>\n\n</think>\n\n"] if family.rewrites else ["", ""]
    wanted = [
        thought + family.space + reply + family.end for thought, reply in zip(thinking, REPLIES, strict=True)
    ]
    assert [tokens.decode([*tokens.encode("a"), *run]) for run in learnt] == [
        tokens.decode(tokens.encode("a")) + text for text in wanted
    ]
    end = turn_end_of(tokens, family.eos_ids(tokens))
    last = tokens.convert_tokens_to_ids(family.end.strip())
    assert [run[-1] for run in learnt] == [last] * 2
    assert last in end.tokens
    for run in learnt:  # a rollout of these tokens ends with the last one, and not before
        assert not {*run[:-1]} & end.tokens


def test_the_tokens_are_those_of_the_rendered_conversation(family: Family, tokens: Any) -> None:
    example = sft(tokens, family, TALK)
    ids = [*example.prompt_ids, *example.response_ids]
    whole = tokens.apply_chat_template(TALK, tokenize=True, return_dict=False)
    extra = ids[len(whole) :]  # the end of the last turn, where the template writes none
    assert ids[: len(whole)] == whole[: len(ids)]
    assert len(extra) == (1 if family.name == "GLM-4" else 0)
    bos = tokens.bos_token_id
    if bos is not None:
        text = tokens.apply_chat_template(TALK, tokenize=False)
        assert ids.count(bos) == text.count(tokens.bos_token)
        assert ids[:2] != [bos, bos]


def test_a_rollouts_prompt_is_the_examples(family: Family, tokens: Any) -> None:
    records = InMemoryRecords([{"prompt": TALK[:1]}], "asked", "prompt")
    data = DataSettings(eval_count=0)
    (prompt,) = load_prompts(data, tokens, 500, "train", 0, sources=PromptSources(records)).prompts
    assert (
        prompt.input_ids == sft(tokens, family, TALK[:2]).prompt_ids == sft(tokens, family, TALK).prompt_ids
    )
    # A text that was rendered elsewhere is the same prompt, with one BOS.
    if family.adds_bos and family.name != "Zephyr" and family.name != "Vicuna":
        text = InMemoryRecords([{"prompt": prompt.text}], "rendered", "prompt")
        (again,) = load_prompts(data, tokens, 500, "train", 0, sources=PromptSources(text)).prompts
        assert again.input_ids == prompt.input_ids


def test_a_conversation_of_tokens_is_the_rendered_one(family: Family, tokens: Any) -> None:
    """Opening, turn, what the environment says, turn: the tokens that SFT makes of the whole."""
    if family.rewrites:
        pytest.skip("earlier turns are rendered in another way")
    example = sft(tokens, family, TALK)
    end = turn_end_of(tokens, family.eos_ids(tokens))
    made = ChatMessageTokens(ChatFormat(tokens))
    first, second = runs(example)
    opening = made.opening(TALK[:1]).tokens
    ids = [*opening, *first, *made.continuation(TALK[2:3], first, end), *second]
    assert ids == [*example.prompt_ids, *example.response_ids]
    # A turn that was cut at its limit is ended by the template; one that another token ended is not ended twice.
    cut = first[:-1] if family.end.strip() == family.end else first[:-2]
    assert [*cut, *made.continuation(TALK[2:3], cut, end)] == [
        *first,
        *made.continuation(TALK[2:3], first, end),
    ]
    for other in end.tokens - {first[-1]}:
        if not end.begins_next:
            after = made.continuation(TALK[2:3], [*cut, other], end)
            assert after == made.continuation(TALK[2:3], first, end)


SPACED = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def spaced() -> Any:
    """A generation prompt that ends in a space, and tokens that hold it together with a word."""
    tokenizer = FAMILIES[0].tokenizer()
    tokenizer.chat_template = SPACED
    return tokenizer


def test_a_token_across_the_seam_is_no_error_and_the_prompt_is_a_rollouts() -> None:
    tokenizer = spaced()
    talk = [{"role": r, "content": "the ball"} for r in ("user", "assistant", "user", "assistant")]
    example = sft(tokenizer, FAMILIES[0], talk)
    prompt = tokenizer("user: the ball\nassistant: ")["input_ids"]
    whole = tokenizer("user: the ball\nassistant: the ball\n")["input_ids"]
    assert whole[: len(prompt)] != prompt  # " the" is one token
    assert list(example.prompt_ids) == prompt
    assert tokenizer.decode([*example.prompt_ids, *example.response_ids]) == (
        "user: the ball\nassistant: the ball\nuser: the ball\nassistant: the ball\n<|im_end|>"
    )
    assert [tokenizer.decode(run) for run in runs(example)] == ["the ball\n", "the ball\n<|im_end|>"]
    # What a policy writes behind the prompt is what was learnt behind it.
    alone = tokenizer("the ball\n")["input_ids"]
    assert [run[: len(alone)] for run in runs(example)] == [alone, alone]


def test_a_plain_end_of_a_turn_stands_once() -> None:
    """The template ends turns with a line break, which the policy writes itself: as a stop text, or before EOS."""
    tokenizer = spaced()
    made, end = ChatMessageTokens(ChatFormat(tokenizer)), turn_end_of(tokenizer)
    assert (end.own, end.default) == (None, tokenizer.eos_token_id)
    words, line, eos = tokenizer("Yes.")["input_ids"], tokenizer("\n")["input_ids"], [tokenizer.eos_token_id]
    for turn, said in (
        (words, "\nuser: And now?\nassistant: "),
        ([*words, *line], "user: And now?\nassistant: "),
        ([*words, *line, *eos], "user: And now?\nassistant: "),
        ([*words, *eos], "\nuser: And now?\nassistant: "),
    ):
        assert tokenizer.decode(made.continuation(TALK[2:3], turn, end)) == said


@pytest.mark.parametrize("marked", ["{{ m.content }}<|im_end|>", "{{ m.content }}"])
def test_marks_of_generation_say_what_is_learnt(marked: str) -> None:
    """With or without the end of the turn in them: the model must learn to end."""
    tokenizer = FAMILIES[0].tokenizer()
    rest = "" if "im_end" in marked else "<|im_end|>"
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}(hm) "
        "{% generation %}" + marked + "{% endgeneration %}" + rest + "{% else %}{{ m.content }}<|im_end|>"
        "{% endif %}\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    example = sft(tokenizer, FAMILIES[0], TALK)
    assert [tokenizer.decode(run) for run in runs(example)] == [f"{reply}<|im_end|>" for reply in REPLIES]
    weighted = [{**m, "weight": 0} if m["content"] == REPLIES[0] else m for m in TALK]
    example = sft(tokenizer, FAMILIES[0], weighted)  # type: ignore[arg-type]
    assert [tokenizer.decode(run) for run in runs(example)] == [f"{REPLIES[1]}<|im_end|>"]


def test_variables_of_the_template_reach_training_prompts_and_conversations(caplog: Any) -> None:
    family = next(f for f in FAMILIES if f.name == "Qwen3")
    tokenizer = family.tokenizer()
    quiet = {"enable_thinking": False}
    example = sft(tokenizer, family, TALK[:2], chat_template_kwargs=quiet)
    assert tokenizer.decode(example.prompt_ids).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert tokenizer.decode(example.response_ids) == f"{REPLIES[0]}<|im_end|>"
    assert "otherwise" not in caplog.text
    records = InMemoryRecords([{"prompt": TALK[:1], "chat_template_kwargs": quiet}], "asked", "prompt")
    (prompt,) = load_prompts(
        DataSettings(eval_count=0), tokenizer, 500, "train", 0, sources=PromptSources(records)
    ).prompts
    assert prompt.input_ids == example.prompt_ids
    made = ChatMessageTokens(ChatFormat(tokenizer, variables=quiet))
    assert made.opening(TALK[:1]).tokens == list(example.prompt_ids)
    after = made.continuation(TALK[2:3], example.response_ids, turn_end_of(tokenizer))
    assert tokenizer.decode(after) == (
        "\n<|im_start|>user\nAnd now?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    # The first of two turns has no reasoning in the template's rendering: learnt so, and said.
    longer = sft(tokenizer, family, TALK, chat_template_kwargs=quiet)
    assert tokenizer.decode(longer.prompt_ids).endswith("<|im_start|>assistant\n")
    assert "otherwise" in caplog.text


def test_a_conversation_far_over_the_limit_is_measured_before_its_turns_are_looked_for() -> None:
    tokenizer = FAMILIES[0].tokenizer()
    rendered = 0
    apply = tokenizer.apply_chat_template

    def counted(*arguments: Any, **more: Any) -> Any:
        nonlocal rendered
        rendered += 1
        return apply(*arguments, **more)

    tokenizer.apply_chat_template = counted
    turn_end_of(tokenizer)
    rendered = 0
    with pytest.raises(DataError, match="tokens with the response, the limit is 500"):
        sft(tokenizer, FAMILIES[0], TALK * 40)
    assert rendered <= 3


def test_a_turn_that_calls_a_tool_is_learnt_whole() -> None:
    tokenizer = FAMILIES[0].tokenizer()
    tokenizer.chat_template = (
        "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}"
        "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }} {{ c.function.arguments | tojson }}</call>"
        "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
    talk: list[dict[str, Any]] = [
        {"role": "user", "content": "What is 2 + 3?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "5"},
        {"role": "assistant", "content": "It is 5."},
    ]
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
    records = InMemoryRecords([{"messages": talk, "tools": tools}], "talks", "messages")
    (example,) = sft_examples(TextSettings(), [records], tokenizer, 500)
    assert example is not None
    assert [tokenizer.decode(run) for run in runs(example)] == [
        '<call>add {"a": 2}</call><|im_end|>',
        "It is 5.<|im_end|>",
    ]
    assert '"name": "add"' in tokenizer.decode(example.prompt_ids)


ODD = {
    "EOS behind the last turn alone": (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}"
        "{{ eos_token if loop.last and m.role == 'assistant' else '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}",
        ["one", "two<|im_end|>"],
    ),
    "EOS behind all turns but the last": (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}"
        "{% if m.role == 'assistant' and not loop.last %}{{ eos_token }}{% endif %}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}",
        [" one<|im_end|>", " two<|im_end|>"],
    ),
    "another end of the last turn (gpt-oss)": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "{{ '<|endoftext|>' if loop.last and m.role == 'assistant' else '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        ["one<|im_end|>", "two<|endoftext|>"],
    ),
    "words behind the reply": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }} (over)<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        ["one (over)<|im_end|>", "two (over)<|im_end|>"],
    ),
    "a system message is wanted": (
        "{% if messages[0].role != 'system' %}{{ raise_exception('no system message') }}{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        ["one<|im_end|>", "two<|im_end|>"],
    ),
    "another generation prompt than the turn's beginning (R1)": (
        "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>{{ m.content.split('</think>')[-1] }}"
        "<|im_end|>{% else %}{{ m.content }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|><think>\n{% endif %}",
        ["one<|im_end|>", "two<|im_end|>"],
    ),
}


@pytest.mark.parametrize("base", [False, True], ids=["EOS <|im_end|>", "EOS <|endoftext|>"])
@pytest.mark.parametrize("name", ODD)
def test_odd_templates(name: str, base: bool) -> None:
    template, wanted = ODD[name]
    tokenizer = FAMILIES[1 if base else 0].tokenizer()
    tokenizer.chat_template = template
    roles = ("system", "user", "assistant", "user", "assistant")
    talk = [{"role": r, "content": c} for r, c in zip(roles, ("be", "a", "one", "b", "two"), strict=True)]
    if base and "EOS" in name:
        wanted = [text.replace("<|im_end|>", "<|endoftext|>") for text in wanted]
    example = sft(tokenizer, FAMILIES[0], talk)
    assert [tokenizer.decode(run) for run in runs(example)] == wanted
    if name == "a system message is wanted":
        end = turn_end_of(tokenizer)
        assert end.own == tokenizer.convert_tokens_to_ids("<|im_end|>")
