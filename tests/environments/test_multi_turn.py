"""Conversations: who chose which token, rewards on turns, limits, losses, and an environment's pace."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from proxlm.config import DataSettings, EnvironmentSettings, RolloutSettings
from proxlm.data.chat import ChatFormat
from proxlm.data.turn_end import turn_end_of
from proxlm.engine.native import NativeEngine
from proxlm.environments.games import GAMES, random_play
from proxlm.environments.message_tokens import ChatMessageTokens, PlainMessageTokens
from proxlm.environments.multi_turn import MultiTurn
from proxlm.environments.protocol import Task
from proxlm.environments.resolve import conversations, resolve, task_prompts, with_environment
from proxlm.errors import ConfigError, RunError
from proxlm.rl.advantages import gae
from proxlm.types import Prompt
from small_models import tiny_model

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|eos|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SAMPLING = RolloutSettings(max_new_tokens=5)


class Counts:
    """Says how many replies there were, pays 1 for each but 10 for the last, and ends after `replies`."""

    def __init__(self, replies=3, words=" and then?", wait=0.0):
        self.replies, self.words, self.wait, self.heard = replies, words, wait, []

    def reset(self, task):
        self.random = random.Random(task.chance)
        return "tell me"

    def step(self, reply):
        time.sleep(self.wait * self.random.random())
        self.heard.append(reply)
        done = len(self.heard) == self.replies
        return self.words, 10.0 if done else 1.0, done


class Later(Counts):
    async def reset(self, task):
        return super().reset(task)

    async def step(self, reply):
        await asyncio.sleep(0)
        return super().step(reply)


def prompts(count):
    return [Prompt(i, (), "") for i in range(count)]


def talk(model, make, count=6, sampling=SAMPLING, **settings):
    spec = MultiTurn(make, PlainMessageTokens(model.tokenizer), EnvironmentSettings(use="x", **settings))
    return spec(NativeEngine(model, sampling), prompts(count), sampling, seed=3, step=0)


def turns_of(mask):
    """(start, end) of each run of chosen tokens."""
    edges = [0, *(i for i in range(1, len(mask)) if mask[i] != mask[i - 1]), len(mask)]
    return [(a, b) for a, b in pairwise(edges) if mask[a]]


@pytest.mark.checklist(3)
@pytest.mark.checklist(30)
@pytest.mark.parametrize("make", [Counts, Later])
def test_masks_rewards_and_texts_of_turns(tokenizer, make):
    model = tiny_model(tokenizer)
    heard = []

    def made():
        heard.append(make())
        return heard[-1]

    rollout = talk(model, made)
    between = tokenizer(" and then?", add_special_tokens=False).input_ids
    offsets = rollout.sequences.response_offsets.tolist()
    tokens = rollout.sequences.response_tokens.tolist()
    assert rollout.finish == ["done"] * 6
    for b in range(6):
        span = slice(offsets[b], offsets[b + 1])
        row, mask = tokens[span], rollout.action_mask[span].tolist()
        turns = turns_of(mask)
        assert len(turns) == 3
        assert turns[-1][1] == len(row)  # the last word is the policy's
        for (_, end), (start, _) in pairwise(turns):
            assert row[end:start] == between
        paid = rollout.rewards[span]
        assert [float(paid[end - 1]) for _, end in turns] == [1.0, 1.0, 10.0]
        assert float(paid.sum()) == 12.0
        assert [tokenizer.decode(row[a:z], skip_special_tokens=True) for a, z in turns] == heard[b].heard
        assert not rollout.logprobs[span][~rollout.action_mask[span]].any()
    scores = with_environment(None)(rollout)
    assert scores.components == {"environment": [12.0] * 6}


@pytest.mark.checklist(32)
def test_a_slow_environment_changes_nothing_and_holds_up_nobody(tokenizer):
    model = tiny_model(tokenizer)
    quick, slow = talk(model, Counts), talk(model, lambda: Counts(wait=0.1))
    assert quick.sequences.tokens.tolist() == slow.sequences.tokens.tolist()
    one = talk(model, Counts, sampling=replace(SAMPLING, batch_size=1))
    assert quick.sequences.tokens.tolist() == one.sequences.tokens.tolist()
    assert torch.allclose(quick.logprobs, one.logprobs, atol=1e-5)


class Breaks(Counts):
    def reset(self, task):
        self.bad = task.seed % 2 == 0
        return super().reset(task)

    def step(self, reply):
        if self.bad:
            raise OSError("the line is dead")
        return super().step(reply)


def test_an_environment_that_raises_or_hangs_loses_its_own_conversation_only(tokenizer):
    model = tiny_model(tokenizer)
    rollout = talk(model, Breaks, count=12)
    assert 0 < len(rollout) < 12
    assert rollout.lost == ["OSError: the line is dead"] * (12 - len(rollout))
    whole = talk(model, Counts, count=12)
    kept = torch.tensor([p.id for p in rollout.prompts])
    assert rollout.sequences.tokens.tolist() == whole.sequences.select(kept).tokens.tolist()
    made = iter(range(100))
    hangs = talk(model, lambda: Counts(wait=60.0 if next(made) == 2 else 0.0), count=4, timeout=2.0)
    assert [p.id for p in hangs.prompts] == [0, 1, 3]
    assert hangs.lost == ["TimeoutError: no answer within 2 seconds"]
    with pytest.raises(RunError, match="every conversation was lost; the first one: TypeError"):
        talk(model, lambda: type("Bad", (), {"reset": lambda self: "", "step": None})())


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("yes", r"step must return \(messages, reward, done\), not str"),
        (("a", "b", True), "step must return a number as reward, not 'b'"),
        (("a", float("nan"), True), "step must return a number as reward, not nan"),
        (("a", 1.0, 1), "step must return True or False as done, not 1"),
        (([{"role": "tool"}], 1.0, False), "message 1 needs a text"),
    ],
)
def test_answers_that_are_none_are_named(tokenizer, answer, said):
    class Odd(Counts):
        def step(self, reply):
            return answer

    with pytest.raises(RunError, match=said):
        talk(tiny_model(tokenizer), Odd, count=1)


@pytest.mark.checklist(29)
def test_limits_end_a_conversation_with_the_policys_own_word(tokenizer):
    model = tiny_model(tokenizer)
    for settings in ({"max_turns": 2}, {"max_tokens": 12}):
        rollout = talk(model, lambda: Counts(replies=99), **settings)
        assert set(rollout.finish) == {"length"}
        last = rollout.sequences.response_offsets[1:] - 1
        assert bool(rollout.action_mask[last].all())
        assert int(rollout.sequences.response_lengths.max()) <= settings.get("max_tokens", 99)


class Drifting:
    """A tokenizer whose round trip is not the identity: text that comes back has other tokens."""

    def __init__(self, inner):
        self.inner = inner

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def __call__(self, text, **options):
        return self.inner(text.upper(), **options)


def test_sampled_tokens_are_never_made_anew_from_text(tokenizer):
    plain = tiny_model(tokenizer)
    model = replace(plain, tokenizer=Drifting(tokenizer))
    rollout = talk(model, Counts)
    ids = rollout.sequences.response_tokens[rollout.action_mask]
    offsets = rollout.sequences.response_offsets
    from proxlm.models.forward import token_outputs

    with torch.no_grad():
        again = token_outputs(plain, rollout.sequences).logprobs
    mask = rollout.action_mask
    assert torch.allclose(again[mask], rollout.logprobs[mask], atol=1e-4)
    text = tokenizer.decode(ids[: int(offsets[1])].tolist())
    assert tokenizer(text.upper(), add_special_tokens=False).input_ids != ids[: int(offsets[1])].tolist()


@pytest.mark.parametrize("ended", [True, False])
def test_chat_templates_go_on_from_tokens(tokenizer, ended):
    tokens = ChatMessageTokens(ChatFormat(tokenizer, CHATML), "be kind")
    opening = tokens.opening([{"role": "user", "content": "hi"}])
    ids = opening.tokens
    assert opening.messages == [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "hi"},
    ]
    assert (
        opening.text
        == "<|im_start|>system\nbe kind<|eos|>\n<|im_start|>user\nhi<|eos|>\n<|im_start|>assistant\n"
    )
    reply = tokenizer(" well", add_special_tokens=False).input_ids
    eos = tokenizer.eos_token_id
    turn = [*reply, *([eos] if ended else [])]
    after = tokens.continuation([{"role": "tool", "content": "42"}], turn, turn_end_of(tokenizer))
    whole = [*ids, *turn, *after]
    said = "<|im_start|>assistant\n well<|eos|>\n<|im_start|>tool\n42<|eos|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(whole).endswith(said)


@pytest.mark.checklist(3)
def test_other_words_of_another_length_leave_the_advantages(tokenizer):
    """A policy that does not look (its head is 0) decides the same, whatever it reads; λ = 0.9 over many turns."""
    model = tiny_model(tokenizer)
    torch.nn.init.zeros_(model.network.get_output_embeddings().weight)
    found = []
    for words in (" a", " and so on"):
        rollout = talk(model, lambda w=words: Counts(replies=5, words=w))
        mask, offsets = rollout.action_mask, rollout.sequences.response_offsets
        row = torch.repeat_interleave(torch.arange(len(rollout)), rollout.sequences.response_lengths)
        order = torch.cumsum(mask, 0) - torch.cumsum(mask, 0)[offsets[:-1]][row]
        values = torch.where(mask, torch.sin(order.float()), 0.0)  # of the decision, not of the words
        advantages, _ = gae(rollout.rewards, values, mask, offsets, 1.0, 0.9)
        found.append((rollout.sequences.response_tokens[mask].tolist(), advantages[mask]))
    assert len(found[0][0]) > 6 * 15
    assert found[0][0] == found[1][0]
    assert float((found[0][1] - found[1][1]).abs().max()) <= 1e-6


@pytest.mark.parametrize(("game", "turns", "best"), [("number-game", 6, 0.85), ("frozen-lake", 12, 1.0)])
def test_best_returns_known_in_closed_form(game, turns, best):
    assert GAMES[game]().best_return(turns) == pytest.approx(best)


@pytest.mark.parametrize("game", GAMES)
def test_random_play_stays_below_the_best_and_repeats_itself(game):
    assert random_play(game, {}, 5, 7) == random_play(game, {}, 5, 7)
    total = 0.0
    for seed in range(200):
        made, draw = GAMES[game](), random.Random(seed)
        made.reset(Task(seed=seed, chance=seed))
        for _ in range(8):
            _, reward, done = made.step(made.random_reply(draw))
            total += reward
            if done:
                break
    assert total / 200 < GAMES[game]().best_return(8)


def test_tic_tac_toe_rules():
    game = GAMES["tic-tac-toe"]()
    assert game.reset(Task(chance=1)) == ". . . . . . . . . >"
    assert game.step("10") == ("no\n", 0.0, True)
    game.board = "xx.oo...."
    assert game.step(" 3") == ("won\n", 1.0, True)
    game.board = "x..oo...x"
    assert game.step("2") == ("lost\n", 0.0, True)  # it wins where it can


def test_settings_are_checked(tokenizer, tmp_path):
    with pytest.raises(ConfigError, match="no such environment; did you mean number-game"):
        resolve(EnvironmentSettings(use="number-gam"))
    with pytest.raises(ConfigError, match=r"environment\.args: number-game: highest must be 2 or more"):
        resolve(EnvironmentSettings(use="number-game", args={"highest": 1}))
    with pytest.raises(ConfigError, match="unexpected keyword argument 'lowest'"):
        resolve(EnvironmentSettings(use="number-game", args={"lowest": 1}))
    (tmp_path / "mine.py").write_text("class Mine:\n    def reset(self, task):\n        return 'x'\n")
    with pytest.raises(ConfigError, match=r'no "Mien" in .*; did you mean Mine\? it defines Mine'):
        resolve(EnvironmentSettings(use=f"{tmp_path}/mine.py:Mien"))
    with pytest.raises(ConfigError, match="has no method step"):
        resolve(EnvironmentSettings(use=f"{tmp_path}/mine.py:Mine"))
    assert isinstance(
        conversations(EnvironmentSettings(use="number-game"), DataSettings(), tokenizer), MultiTurn
    )


def test_tasks_stand_for_prompts():
    train, held_out = task_prompts(EnvironmentSettings(use="number-game", tasks=5), 3)
    assert [p.id for p in train.prompts] == [0, 1, 2, 3, 4]
    assert [p.id for p in held_out.prompts] == [5, 6, 7]


def test_a_conversation_is_kept_as_messages_for_the_reward(tokenizer):
    model = tiny_model(tokenizer)
    tokens = ChatMessageTokens(ChatFormat(tokenizer, CHATML), "be kind")
    heard = []

    def made():
        heard.append(Counts(replies=2, words="and then?"))
        return heard[-1]

    spec = MultiTurn(made, tokens, EnvironmentSettings(use="x"))
    rollout = spec(NativeEngine(model, SAMPLING), prompts(3), SAMPLING, seed=3, step=0)
    for completion, environment in zip(rollout.completions(), heard, strict=True):
        said = [m["content"] for m in completion.messages]
        first, second = environment.heard
        assert said == ["be kind", "tell me", first, "and then?", second]
        assert [m["role"] for m in completion.messages] == [
            "system",
            *("user", "assistant") * 2,
        ]
    again = rollout.select(torch.tensor([2, 0]))
    assert again.completions()[0] == rollout.completions()[2]
    assert type(rollout).join([rollout, again]).completions()[3:] == again.completions()
    assert all(not c.messages for c in talk(model, Counts).completions())


@pytest.mark.parametrize("stop", [[], ["<|im_end|>"]])
@pytest.mark.parametrize("template", [True, False])
def test_the_end_of_a_turn_stands_once_in_a_conversation(stop, template):
    """ChatML on a base model, whose EOS is another token; the end is the template's own, a stop text, or both."""
    from chat_families import FAMILIES

    chat = FAMILIES[1].tokenizer()
    form = ChatFormat(chat, chat.chat_template)
    if (
        not template
    ):  # the model's tokenizer does not know of it: without a stop text, turns end at EOS or the limit
        chat.chat_template = None
    model = tiny_model(chat)
    torch.nn.init.zeros_(model.network.get_output_embeddings().weight)  # every token is as likely
    sampling = RolloutSettings(max_new_tokens=24, stop=stop)
    spec = MultiTurn(
        lambda: Counts(replies=2, words="so?"), ChatMessageTokens(form), EnvironmentSettings(use="x")
    )
    rollout = spec(NativeEngine(model, sampling), prompts(60), sampling, seed=3, step=0)
    end = chat.convert_tokens_to_ids("<|im_end|>")
    ended = 0
    lengths = rollout.sequences.response_lengths.tolist()
    for ids, mask in zip(
        rollout.sequences.response_tokens.split(lengths), rollout.action_mask.split(lengths), strict=True
    ):
        row, first = ids.tolist(), turns_of(mask.tolist())[0][1]
        ended += row[first - 1] == end
        between = chat.decode(row[first:])
        assert row[first - 2 : first + 1].count(end) <= 1
        if row[first - 1] == end or row[first - 1] in model.turn_end.tokens:
            assert between.startswith("\n<|im_start|>user\nso?<|im_end|>\n<|im_start|>assistant\n")
        else:
            assert between.startswith("<|im_end|>\n<|im_start|>user\nso?<|im_end|>\n")
    assert ended >= 2 or not (template or stop)


class Leaves(Breaks):
    def step(self, reply):
        if self.bad:
            raise SystemExit(3)
        return super().step(reply)


class Interrupts(Counts):
    def step(self, reply):
        raise KeyboardInterrupt


def test_sys_exit_loses_its_conversation_and_a_keyboard_interrupt_ends_the_run(tokenizer):
    model = tiny_model(tokenizer)
    rollout = talk(model, Leaves, count=8)
    assert 0 < len(rollout.lost) < 8
    assert set(rollout.lost) == {"SystemExit: 3"}
    with pytest.raises(KeyboardInterrupt):
        talk(model, Interrupts)


def test_an_environment_is_closed_once_in_its_thread_however_its_conversation_ends(tokenizer):
    made = []

    class Opens(Counts):
        def __init__(self):
            super().__init__(replies=[1, 9, 1][len(made) % 3])
            self.place, self.threads, self.closed = len(made) % 3, [], []
            made.append(self)

        def step(self, reply):
            self.threads.append(threading.get_ident())
            if self.place == 2:
                raise RuntimeError("broken")
            return super().step(reply)

        def close(self):
            self.closed.append(threading.get_ident())
            if self.place == 1:
                raise RuntimeError("cannot close")

    rollout = talk(tiny_model(tokenizer), Opens, count=3, max_turns=2)
    assert rollout.finish == ["done", "length"]
    assert rollout.lost == ["RuntimeError: broken"]
    assert [one.closed for one in made] == [[one.threads[0]] for one in made]
