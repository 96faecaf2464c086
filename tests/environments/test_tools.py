"""Tools: calls as models write them, what goes wrong in them, hostile ones, and what is judged and counted."""

from __future__ import annotations

import json
import os
import random
import re
import sys
import time

import pytest

from proxlm.config import EnvironmentSettings, RolloutSettings
from proxlm.data.chat import ChatFormat
from proxlm.data.turn_end import turn_end_of
from proxlm.engine.native import NativeEngine
from proxlm.environments.message_tokens import ChatMessageTokens, PlainMessageTokens
from proxlm.environments.multi_turn import MultiTurn
from proxlm.environments.protocol import Task
from proxlm.environments.resolve import resolve
from proxlm.environments.tools.calculator import calculator
from proxlm.environments.tools.tool_error import ToolError
from proxlm.errors import ConfigError
from proxlm.types import Prompt
from small_models import tiny_model


def tools(**args):
    environment = resolve(EnvironmentSettings(use="tools", args=args))()
    assert environment.reset(Task("How much?")) == "How much?"
    return environment


def call(name, **arguments):
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def results(environment, reply):
    said, reward, done = environment.step(reply)
    assert (reward, done) == (0.0, False)
    assert all(message["role"] == "tool" for message in said)
    return [message["content"] for message in said]


# --- the calculator


ARITHMETIC = """
2 + 3 * 4 = 14; (2 + 3) * 4 = 20; 7 / 2 = 3.5; 8 / 2 = 4; -7 // 2 = -4; -7 % 3 = 2; 2 ** 10 = 1024; 2^10 = 1024
0.1 + 0.2 = 0.3; sqrt(2) = 1.41421356237; round(2.567, 1) = 2.6; max(1, 2, 3) - min(4, 5) = -1; 3 × 4 ÷ 2 − 1 = 5
2 * pi = 6.28318530718; 1e3 + 1 = 1001; 2 ** 0.5 ** 2 = 1.189207115; log(e) = 1; 10 ** 12 = 1000000000000
"""


@pytest.mark.parametrize("case", re.split(r"[;\n]", ARITHMETIC.strip()))
def test_arithmetic(case):
    expression, result = case.split(" = ")
    assert calculator(expression) == result


@pytest.mark.parametrize("seed", range(20))
def test_whole_numbers_are_exact(seed):
    draw = random.Random(seed)

    def drawn(depth):
        """An expression, and its value."""
        if not depth or draw.random() < 0.2:
            number = draw.randint(0, 99)
            return str(number), number
        (a, x), (b, y), sign = drawn(depth - 1), drawn(depth - 1), draw.choice("+-*")
        return f"({a} {sign} {b})", x + y if sign == "+" else x - y if sign == "-" else x * y

    for _ in range(50):
        expression, value = drawn(4)
        if len(expression) <= 300 and abs(value) <= 10**60:
            assert calculator(expression) == str(value)


HOSTILE = [
    *("9" * 299, "(" * 145 + "1", "1" + "+1" * 200, "\x00", "", "1 +"),
    *("9**9**9**9", "10**61", "2**(10**9)", "0.5**-(10**9)", "(10**59)*(10**59)", "exp(10**9)", "sin(1e400)"),
    *("1/0", "0**-1", "5 % 0", "(-8)**0.5", "round(5, -10**9)", "round(5, 10**50)", "sqrt(-1)", "log(0)"),
    *(
        "max()",
        "sqrt(1, 2)",
        "sqrt(x=2)",
        "max(*[1])",
        "__import__('os').system('true')",
        "().__class__",
        "abs",
    ),
    *(
        "open('/etc/passwd')",
        "'a' * 10**9",
        "[1] * 10**9",
        "lambda: 1",
        "1 if 1 else 2",
        "x",
        "x := 1",
        "1 < 2",
    ),
    *("1 and 2", "True + True", "1j", "1,234 + 5", "1_0__", "0x1g", "f'{1}'", "...", "1;2"),
]


@pytest.mark.parametrize("expression", HOSTILE)
def test_hostile_expressions_are_refused_at_once(expression):
    began = time.process_time()
    with pytest.raises(ToolError) as caught:
        calculator(expression)
    assert len(str(caught.value)) < 200
    assert time.process_time() - began < 0.5


def test_signs_and_brackets_may_be_many():
    assert calculator("-" * 290 + "1") == "1"
    assert calculator("(" * 140 + "1" + ")" * 140) == "1"


# --- calls


def test_several_calls_in_a_turn_and_the_answer():
    environment = tools()
    reply = (
        "Let me see. " + call("calculator", expression="6*7") + " and " + call("calculator", expression="1/3")
    )
    assert results(environment, reply) == ["42", "0.333333333333"]
    assert environment.step("It is 42.") == ("", 0.0, True)
    assert environment.extras.answer == "It is 42."
    assert environment.extras.counts == {"tool_calls": 2, "failed_tool_calls": 0}


@pytest.mark.parametrize(
    "reply",
    [
        '<tool_call>{"name": "calculator", "arguments": {"expression": "6*7"}}',  # the closing tag as the stop text
        '<tool_call>{"name": "calculator", "arguments": "{\\"expression\\": \\"6*7\\"}"}</tool_call>',
        '<tool_call>{"function": {"name": "calculator", "arguments": {"expression": "6*7"}}}</tool_call>',
        ' {"name": "calculator", "parameters": {"expression": "6*7"}}\n',
    ],
)
def test_forms_of_a_call(reply):
    assert results(tools(), reply) == ["42"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("6*7", "not JSON"),
        ("{'name': 'calculator'}", "not JSON"),
        ('{"arguments": {}}', "no name"),
        ('{"name": 3, "arguments": {}}', "must be a text"),
        ('{"name": "calculator", "arguments": [1]}', "an object"),
        ('{"name": "calculate", "arguments": {}}', "there is no tool calculate; there are calculator"),
        ('{"name": "calculator", "arguments": {}}', "needs the argument expression"),
        ('{"name": "calculator", "arguments": {"expression": "1", "x": 1}}', "no argument x; its arguments:"),
        ('{"name": "calculator", "arguments": {"expression": 5}}', "must be of type string"),
        ('{"name": "calculator", "arguments": {"expression": true}}', "must be of type string"),
        ('{"name": "calculator", "arguments": {"expression": "six"}}', "not part of an arithmetic expression: six"),
        ("[" * 20_000, "not JSON"),
        ('{"a":' * 5_000, "not JSON"),
        ("9" * 10_000, "not JSON"),
        ("x" * 40_000, "more than 32000 characters"),
        (json.dumps({"name": "\x1b[2J" + "n" * 1000, "arguments": {}}), "there is no tool"),
    ],
)  # fmt: skip
def test_malformed_calls_are_answered_by_what_is_wrong(body, said):
    environment = tools()
    (text,) = results(environment, f"<tool_call>{body}</tool_call>")
    assert text.startswith("error: ")
    assert any(part in text for part in said.split("|"))
    assert len(text) < 300
    assert "\x1b" not in text
    assert environment.extras.counts == {"tool_calls": 1, "failed_tool_calls": 1}


def test_a_turn_makes_eight_calls():
    environment = tools()
    said = results(environment, call("calculator", expression="1+1") * 5000)
    assert said == ["2"] * 8 + ["error: only 8 calls are made in one turn"]


def test_text_in_braces_that_is_no_call_is_an_answer():
    environment = tools()
    assert environment.step('{"result": 42}')[2]
    assert environment.extras.answer == '{"result": 42}'


# --- Python, search, functions of the user's


def test_python_runs_in_the_sandbox(tmp_path):
    environment = tools(tools=["python"], seconds=0.5, longest=100)
    secret = tmp_path / "secret.txt"
    secret.write_text("hidden")
    programs = [
        "print(sum(range(10)))",
        "1/0",
        "while True: pass",
        f"print(open({str(secret)!r}).read())",
        "pass",
    ]
    programs += ["print('x' * 10_000)"]
    said = results(environment, "".join(call("python", code=code) for code in programs))
    assert said[0] == "45"
    assert said[1] == "error: error: ZeroDivisionError: division by zero"
    assert said[2] == "error: timeout"
    assert "PermissionError" in said[3]
    assert "hidden" not in said[3]
    assert said[4] == "(nothing was printed)"
    assert said[5] == "x" * 100 + " […]"


def test_search_finds_passages_of_the_folder_and_of_no_other(tmp_path):
    folder = tmp_path / "texts"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.txt").write_text("The lighthouse of Alexandria was tall.\n\n" + "Filler words here. " * 60)
    (folder / "deep" / "b.md").write_text("Bees dance to tell where flowers are.")
    (folder / "c.json").write_text("Alexandria")
    (tmp_path / "out.txt").write_text("Alexandria outside")
    os.symlink(tmp_path / "out.txt", folder / "link.txt")
    environment = tools(tools=["search"], path=str(folder), results=2)
    (said,) = results(environment, call("search", query="Where is Alexandria?"))
    assert said.startswith("[a.txt] The lighthouse of Alexandria was tall.")
    assert "outside" not in said
    assert results(environment, call("search", query="dance of bees"))[0].startswith("[deep/b.md] Bees")
    assert results(environment, call("search", query="zebra")) == ["nothing was found"]
    assert results(environment, call("search", query="?")) == ["error: the query has no words to look for"]
    assert results(environment, call("search", query="../../etc/passwd")) == ["nothing was found"]
    assert results(environment, call("search", query="bees " * 5000))[0].startswith("[deep/b.md]")


def test_a_function_of_the_users(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        'def double(number: int) -> int:\n    """Twice a number.\n\n    Args:\n        number: It.\n    """\n'
        "    if number > 99:\n        raise ValueError('too large')\n    return 2 * number\n"
        "def bare(x):\n    return x\n"
    )
    environment = tools(tools=["calculator", f"{file}:double"])
    said = results(
        environment, call("double", number=4) + call("double", number="4") + call("double", number=100)
    )
    assert said == [
        "8",
        "error: the argument number of double must be of type integer",
        "error: ValueError: too large",
    ]
    with pytest.raises(ConfigError, match="bare cannot be described"):
        tools(tools=[f"{file}:bare"])


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"tools": ["telephone"]}, "calculator, python, search, and path/to/file.py"),
        ({"tools": "calculator"}, "must be a list"),
        ({"tools": []}, "must be a list"),
        ({"tools": ["search"]}, "needs a folder of texts"),
        ({"results": 0}, "at least 1"),
        ({"seconds": -1.0, "tools": ["python"]}, "must be more than 0"),
    ],
)
def test_settings_are_checked(args, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=said):
        tools(**{"path": "nowhere", **args})


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(ConfigError, match=r'pip install "proxlm\[tools\]"'):
        tools(tools=["search"], path=str(tmp_path))


# --- in a conversation

HERMES = (
    "{% if tools %}<|im_start|>system\n# Tools{% for t in tools %} {{ t | tojson }}{% endfor %}<|eos|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|eos|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATML = HERMES[HERMES.index("{% for m in") :]


def test_tools_stand_where_the_template_has_a_place_for_them(tokenizer):
    environment = tools()
    asked = [{"role": "user", "content": "How much?"}]
    schemas = environment.extras.tools
    assert schemas[0]["function"]["name"] == "calculator"
    with_place = ChatMessageTokens(ChatFormat(tokenizer, HERMES)).opening(asked, schemas)
    assert json.dumps(schemas[0]["function"]["name"]) in with_place.text
    assert with_place.messages == asked
    without = ChatMessageTokens(ChatFormat(tokenizer, CHATML), "be kind").opening(asked, schemas)
    assert without.text.count("<|im_start|>system") == 1
    assert "be kind\n\nYou may call these tools" in without.text
    plain = PlainMessageTokens(tokenizer).opening(asked, schemas)
    assert plain.text.startswith("You may call these tools")
    assert plain.text.endswith("\n\nHow much?")
    assert tools(describe=False).extras.tools == ()


REFUSES = CHATML.replace(
    "{% for m in messages %}",
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}",
)
LEAVES_OUT = CHATML.replace("in messages %}", "in messages if m.role != 'tool' %}")


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (HERMES, "<|im_start|>tool\n42<|eos|>"),
        (CHATML, "<|im_start|>tool\n42<|eos|>"),
        (REFUSES, "user\n<tool_response>42</tool_response>"),
        (LEAVES_OUT, "user\n<tool_response>42</tool_response>"),
    ],
)
def test_results_are_the_tools_where_the_template_shows_them_and_the_users_else(
    tokenizer, template, expected
):
    said = [{"role": "tool", "name": "calculator", "content": "42"}]
    chat = ChatFormat(tokenizer, template)
    ids = ChatMessageTokens(chat).continuation(said, [5], turn_end_of(chat))
    assert expected in tokenizer.decode(ids)


def test_results_in_plain_text_are_in_tags(tokenizer):
    said = [{"role": "tool", "name": "calculator", "content": "42"}]
    ids = PlainMessageTokens(tokenizer).continuation(said, [5], turn_end_of(tokenizer))
    assert tokenizer.decode(ids) == "<tool_response>42</tool_response>\n"


def test_the_answer_is_judged_and_calls_are_counted(tokenizer):
    replies = {0: [call("calculator", expression="6*7"), "42"], 1: ["41"], 2: [call("calculator")] * 2}

    class Scripted:
        """Tools whose replies are given, since the tiny model writes none."""

        def __init__(self):
            self.inner = resolve(EnvironmentSettings(use="tools", args={"describe": False}))()
            self.extras = self.inner.extras

        def reset(self, task):
            self.replies = iter(replies[task.fields["number"]])
            return self.inner.reset(task)

        def step(self, reply):
            self.extras.cut = False
            return self.inner.step(next(self.replies))

    sampling = RolloutSettings(max_new_tokens=3)
    settings = EnvironmentSettings(use="x", max_turns=2)
    spec = MultiTurn(Scripted, PlainMessageTokens(tokenizer), settings)
    prompts = [Prompt(i, (), "6 * 7 =", {"number": i}) for i in range(3)]
    rollout = spec(NativeEngine(tiny_model(tokenizer), sampling), prompts, sampling, seed=0, step=0)
    assert [done.text for done in rollout.completions()] == ["42", "41", ""]
    assert "<tool_response>42</tool_response>" in rollout.texts[0]
    assert [row["tool_calls"] for row in rollout.counts] == [1, 0, 2]
    assert [row["failed_tool_calls"] for row in rollout.counts] == [0, 0, 2]
    both = type(rollout).join([rollout, rollout])
    assert both.answers == rollout.answers * 2
    assert both.counts == rollout.counts * 2


def test_a_reply_that_was_cut_is_no_answer(tokenizer):
    """What stands at the limit may be half of an answer, or of a call."""
    make = resolve(EnvironmentSettings(use="tools", args={"describe": False}))
    sampling = RolloutSettings(max_new_tokens=3)
    spec = MultiTurn(make, PlainMessageTokens(tokenizer), EnvironmentSettings(use="tools"))
    rollout = spec(
        NativeEngine(tiny_model(tokenizer), sampling), [Prompt(0, (), "6 * 7 =")], sampling, seed=0, step=0
    )
    assert rollout.sequences.response_lengths.tolist() == [3]  # cut
    assert (rollout.answers, rollout.finish) == ([""], ["length"])
    environment = make()
    environment.reset(Task("6 * 7 ="))
    environment.extras.cut = True  # behind a whole call, the result is given all the same
    messages, _, done = environment.step(call("calculator", expression="6*7") + " and th")
    assert (messages[0]["content"], done) == ("42", False)
