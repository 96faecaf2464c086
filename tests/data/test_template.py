"""Chat templates without end, or that fill memory, are refused; all others read as transformers renders them."""

# ruff: noqa: E501 (templates are easier to read on one line)

from __future__ import annotations

import resource
import time
from typing import Any

import pytest

from chat_families import FAMILIES, Family
from proxlm.data.chat import ChatFormat
from proxlm.data.template import render
from proxlm.data.template_budget import LARGEST, MOST_WORK, TemplateLimitError
from proxlm.errors import DataError

TALK = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "What is 2 + 3? <b>&amp;</b> 鸟"},
    {"role": "assistant", "content": None, "reasoning": "They add.", "tool_calls": [
        {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": [3, 0.5, None, True]}}}]},
    {"role": "tool", "name": "add", "content": "5"},
    {"role": "assistant", "content": "It is 5."},
]  # fmt: skip
TOOLS = [
    {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
]

GROWS = "{% set ns = namespace(s='x' * 1000) %}{% for i in range(9999) %}{% set ns.s = GROWN %}{% endfor %}{{ ns.s }}"
NESTED = "{% set ns = namespace(s=[1]) %}{% for i in range(200) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}"
ENDLESS = {
    "times": '{{ "x" * 10**10 }}',
    "times from the left": "{{ 10**10 * 'x' }}",
    "a list times": "{{ ([1] * 10**9) | length }}",
    "power": "{{ 7 ** (10**9) }}",
    "powers": "{% set ns = namespace(n=9) %}{% for i in range(99) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "percent": '{{ "%999999999d" % 1 }}',
    "percent, precision": '{{ "%.999999999f" % 1.5 }}',
    "percent, flags": '{{ "%(a)+0999999999d" % {"a": 1} }}',
    "percent, width as value": '{{ "%*d" % (10**9, 1) }}',
    "percent, a long name": "{{ ('%(' ~ 'a' * 300 ~ ')999999999d') % {'a' * 300: 1} }}",
    "format, filter": '{{ "%999999999d" | format(1) }}',
    "format, method": '{{ "{:>999999999}".format(1) }}',
    "format, by name": '{{ "{a:0>999999999}".format(a=1) }}',
    "format, nested": '{{ "{:{}}".format(1, 999999999) }}',
    "format, nested text": '{{ "{:{}}".format(1, "999999999") }}',
    "format_map": '{{ "{a:999999999}".format_map({"a": 1}) }}',
    "format, often": "{{ ('{0}' * 9999).format('x' * 99999) }}",
    "ljust": '{{ "x".ljust(10**10) }}',
    "zfill by attr": '{{ ("x" | attr("zfill"))(10**10) }}',
    "center": '{{ "x" | center(10**10) }}',
    "center in map": '{{ ["x"] | map("center", 10**10) | list }}',
    "indent": '{{ "x\\nx" | indent(10**10) }}',
    "indent, many lines": "{{ ('x\\n' * 10**6) | indent(10**4) }}",
    "replace": "{{ ('x' * 10**6).replace('x', 'y' * 10**6) }}",
    "replace, filter": "{{ ('x' * 10**6) | replace('x', 'y' * 10**6) }}",
    "replace nothing": "{{ ('x' * 10**6).replace('', 'y' * 10**6) }}",
    "join": "{{ ('x' * 10**6).join('y' * 10**5) }}{{ (['x' * 10**6] * 10**5) | join }}",
    "join, separator": "{{ ([1] * 10**5) | join('y' * 10**6) }}",
    "join, attribute": "{{ ([{'a': 'x' * 10**6}] * 10**5) | join(attribute='a') }}",
    "sum of lists": "{{ ([[1] * 10**4] * 10**4) | sum(start=[]) }}",
    "expandtabs": "{{ ('\\t' * 10**6).expandtabs(10**6) }}",
    "translate": "{{ ('x' * 10**6).translate({120: 'y' * 10**6}) }}",
    "to_bytes": "{{ (1).to_bytes(10**10, 'big') }}",
    "tojson, indent": "{{ {'a': [1]} | tojson(indent=10**9) }}",
    "tojson, indent text": "{{ ([[1]] * 999) | tojson(indent='x' * 10**6) }}",
    "tojson, separators": "{{ ([1] * 10**5) | tojson(separators=('y' * 10**6, ':')) }}",
    "batch": "{{ [1] | batch(10**10, 'x') | list }}",
    "grows by ~": GROWS.replace("GROWN", "ns.s ~ ns.s"),
    "grows by +": GROWS.replace("GROWN", "ns.s + ns.s"),
    "grows by %": GROWS.replace("GROWN", "'%s%s' % (ns.s, ns.s)"),
    "grows by format": GROWS.replace("GROWN", "'{0}{0}'.format(ns.s)"),
    "grows by join": GROWS.replace("GROWN", "[ns.s, ns.s] | join"),
    "grows by a block": GROWS.replace("{% set ns.s = GROWN %}", "{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}"),
    "grows as a list": GROWS.replace("'x' * 1000", "[1]").replace("GROWN", "ns.s + ns.s"),
    "shared lists, written": NESTED + "{{ ns.s }}",
    "shared lists, json": NESTED + "{{ ns.s | tojson }}",
    "shared lists, joined": NESTED + "{{ ns.s ~ '' }}",
    "shared lists, text": NESTED + "{{ ns.s | string | length }}",
    "shared lists, compared": NESTED + "{% set a = ns.s %}" + NESTED + "{{ a == ns.s }}",
    "shared lists, tested": NESTED + "{% set a = ns.s %}" + NESTED + "{{ a is eq(ns.s) }}",
    "shared lists, in a namespace": NESTED + "{{ ns }}",
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
    "{% endfor %}{% endfor %}{% endfor %}",
    "loops over texts": "{% set s = 'x' * 99999 %}{% for a in s %}{% for b in s %}{% for c in s %}"
    "{% endfor %}{% endfor %}{% endfor %}",
    "loops with a condition": "{% for a in range(99999) %}{% for b in range(99999) if b < 0 %}{% endfor %}{% endfor %}",
    "loops that write": "{% for a in range(99999) %}{% for b in range(99999) %}" + "x" * 999 + "{% endfor %}{% endfor %}",
    "loops that set": "{% for a in range(99999) %}{% set s %}{% for b in range(9999) %}" + "x" * 999
    + "{% endfor %}{% endset %}{% endfor %}",
    "calls": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "calls that write": "{% macro m(n) %}" + "x" * 9999 + "{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}"
    "{% set s = m(60) %}",
    "a recursive loop": "{% for a in range(999) recursive %}{{ loop(range(999)) if loop.depth < 9 }}{% endfor %}",
    "slow filters": "{{ ('<!--' * 99999) | striptags }}",
    "generations": "{% for a in range(99999) %}{% for b in range(99999) %}{% generation %}x{% endgeneration %}"
    "{% endfor %}{% endfor %}",
    "a date": "{{ strftime_now('%Y' * 99999) }}",
    "a long template": "x" * 2**20,
}  # fmt: skip


def _memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.parametrize("name", ENDLESS)
def test_what_has_no_end_is_refused_before_it_fills_memory(name: str) -> None:
    before, began = _memory(), time.thread_time()
    with pytest.raises(TemplateLimitError):
        render(ENDLESS[name], messages=TALK)
    assert _memory() - before < 2**20  # KiB
    assert time.thread_time() - began < 30


SMALL = [
    "{{ 'ab' * 3 }}{{ 3 * 'ab' }}{{ [1] * 2 }}{{ 2 ** 10 }}{{ 7 % 4 }}{{ 1 + 2 }}{{ 'a' + 'b' }}{{ [1] + [2] }}",
    "{{ '%5d|%-5s|%.2f' % (1, 'a', 2.345) }}{{ '%s' | format('x') }}{{ '{:>6}|{a:0<4}'.format(1, a=2) }}",
    "{{ '%s: 1234567' % 20251129 }}{{ '{}: 1234567 {}'.format('x', 1234567890) }}",
    "{{ 'x' | center(9) }}{{ 'a\nb' | indent(4) }}{{ 'aXb'.replace('X', '--') | replace('a', 'c') }}",
    "{{ ['a', 'b'] | join(', ') }}{{ [{'n': 1}, {'n': 2}] | join('+', attribute='n') }}{{ [1, 2.5] | sum }}",
    "{{ [{'n': 1}, {'n': 2}] | sum(attribute='n') }}{{ [[1], [2]] | sum(start=[]) }}{{ ', '.join(['a', 'b']) }}",
    "{{ {'a': [1, None]} | tojson }}{{ {'b': 1, 'a': 'é'} | tojson(indent=2, sort_keys=true) }}",
    "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ loop.last }}{{ loop.revindex }} {{ m.role }}{% endfor %}",
    "{% for k, v in messages[0].items() if k != 'role' %}{{ k }}={{ v }}{% else %}none{% endfor %}",
    "{% for m in messages | selectattr('role', 'equalto', 'user') %}{{ loop.first }}{{ m.content }}{% endfor %}",
    "{% for m in messages | map(attribute='role') | unique %}{{ m }}{{ loop.length }}{% endfor %}",
    "{% for x in [[1, [2]], [3]] recursive %}{{ loop.depth }}{{ loop(x) if x is iterable else x }}{% endfor %}",
    "{% macro m(a, b=2) %}<{{ a }}{{ b }}{{ varargs }}{{ kwargs }}>{{ caller() if caller }}{% endmacro %}"
    "{{ m(1) }}{{ m(1, 3, 4, c=5) }}{% call m(1) %}inside{% endcall %}",
    "{% set ns = namespace(n=0, s='') %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% set ns.s = ns.s ~ m.role %}"
    "{% if loop.index > 2 %}{% break %}{% endif %}{% endfor %}{{ ns.n }}{{ ns.s }}",
    "{{ none ~ 1 ~ true ~ [1] ~ missing }}|{{ missing }}|{{ none }}|{{ messages[9] }}|{{ bos_token }}",
    "{{ messages[0] == messages[0] }}{{ 'a' in 'abc' }}{{ 1 < 2 < 3 }}{{ messages | length > 2 and tools is none }}",
    "{% for m in missing %}x{% else %}empty{% endfor %}{{ messages[2].content is defined }}{{ messages[2] | length }}",
    "{{ messages[2].thinking }}{{ messages[2].reasoning_content }}{{ dict(a=1) }}{{ documents is none }}",
    "{{ '<b>' | e }}{{ '<b>' | safe }}{{ '  x ' | trim }}{{ 'x y'.split() | list }}{{ 'Abc'[::-1].upper() }}",
    "{% filter upper %}abc{% endfilter %}{% set t %}{{ 1 }}x{% endset %}{{ t }}{{ range(3) | list }}",
]  # fmt: skip


@pytest.mark.parametrize("source", SMALL)
def test_everything_else_reads_as_transformers_renders_it(tokenizer: Any, source: str) -> None:
    wanted = tokenizer.apply_chat_template(TALK, chat_template=source, tokenize=False)
    assert render(source, messages=TALK, tools=None, **tokenizer.special_tokens_map).text == wanted


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
@pytest.mark.parametrize("prompt", [True, False])
def test_families_read_as_transformers_renders_them(family: Family, prompt: bool) -> None:
    tokenizer = family.tokenizer()
    for messages in (TALK[1:2], [TALK[1], TALK[4]], [TALK[1], TALK[4], TALK[1]]):
        wanted = tokenizer.apply_chat_template(messages, add_generation_prompt=prompt, tokenize=False)
        found = ChatFormat(tokenizer).render(messages, "here", add_generation_prompt=prompt)
        assert found == wanted


@pytest.mark.parametrize(
    "source", ["{{ nothing.at.all }}", "{{ raise_exception('no') }}", "{% for m in 5 %}{% endfor %}"]
)
def test_errors_are_those_of_transformers(tokenizer: Any, source: str) -> None:
    with pytest.raises(Exception) as wanted:
        tokenizer.apply_chat_template(TALK, chat_template=source, tokenize=False)
    with pytest.raises(wanted.type) as found:
        render(source, messages=TALK)
    assert str(found.value) == str(wanted.value)


def test_generation_marks_are_where_transformers_finds_them() -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    source = (
        "{% for m in messages %}<{{ m.role }}>{% generation %}{{ m.content }}!{% endgeneration %}{% endfor %}"
    )
    talk = [TALK[1], TALK[4]]
    texts, spans = render_jinja_template([talk], chat_template=source, return_assistant_tokens_mask=True)
    found = render(source, messages=talk, tools=None)
    assert found.text == texts[0]
    assert found.spans == [tuple(span) for span in spans[0]]
    assert [found.text[a:b] for a, b in found.spans] == [f"{m['content']}!" for m in talk]


def test_long_conversations_are_far_from_the_bounds(tokenizer: Any) -> None:
    source = (
        "{% set ns = namespace(s='') %}{% for m in messages %}{% if m['role'] == 'user' %}{% set ns.s = ns.s ~ '<u>'"
        " + m['content'] | trim + '</u>' %}{% else %}{% set ns.s = ns.s ~ m.content.split('</think>')[-1] %}{% endif %}"
        "{% endfor %}{{ ns.s }}"
    )
    talk = [{"role": ("user", "assistant")[i % 2], "content": f"{i} " + "word " * 100} for i in range(1000)]
    text = render(source, messages=talk).text
    assert 500_000 < len(text) < LARGEST
    assert render("{{ messages | tojson }}", messages=talk).text.count("word") == 100_000
    assert MOST_WORK == 2**20


def test_a_record_names_itself_and_the_template(tokenizer: Any) -> None:
    chat = ChatFormat(tokenizer, '{{ "x" * 10**10 }}')
    with pytest.raises(
        DataError, match=r"talks: line 3: the chat template is refused: it makes a text or list of 10,0"
    ):
        chat.render(TALK[:2], "talks: line 3")
