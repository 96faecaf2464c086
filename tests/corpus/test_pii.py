"""Personal data by rules: what has the right form and check digit is masked, and nothing else is."""

from __future__ import annotations

import time

import pytest

from proxlm.corpus.pii import RULES, is_card, is_chinese_id, luhn, mask_pii

ALL = list(RULES)


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("write to bob.smith+x@mail.example.co.uk.", "write to [EMAIL]."),
        ("邮箱zhang_san@example.com，谢谢", "邮箱[EMAIL]，谢谢"),
        ("card 4111 1111 1111 1111!", "card [CARD]!"),
        ("5555-5555-5555-4444", "[CARD]"),
        ("378282246310005", "[CARD]"),
        ("GB82 WEST 1234 5698 7654 32 and more", "[IBAN] and more"),
        ("DE89370400440532013000", "[IBAN]"),
        ("身份证11010519491231002X。", "身份证[CN_ID]。"),
        ("电话13812345678，", "电话[CN_MOBILE]，"),
        ("+86 138-1234-5678", "[CN_MOBILE]"),
        ("call (212) 555-0123 or 212-555-0123", "call [PHONE] or [PHONE]"),
        ("+44 20 7946 0958", "[PHONE]"),
        ("座机010-62345678", "座机[PHONE]"),
        ("at 192.168.0.254, port 80", "at [IP], port 80"),
        ("fe80::1ff:fe23:4567:890a is up", "[IP] is up"),
    ],
)
def test_what_is_masked(text, masked):
    found, counts = mask_pii(text, ALL)
    assert found == masked
    assert sum(counts.values()) == masked.count("[")
    assert mask_pii(found, ALL) == (found, {})  # again changes nothing


@pytest.mark.parametrize(
    "text",
    [
        "4111 1111 1111 1112",  # Luhn's digit is wrong
        "0000 0000 0000 0000",
        "GB82 WEST 1234 5698 7654 33",  # mod 97 is wrong
        "XX82 WEST 1234 5698 7654 32",  # no such country
        "110105194912310021",  # the check digit should be X
        "11010519491331002X",  # month 13
        "23812345678",
        "999.1.1.1",
        "version 1.2.3",
        "1.2.3.4.5",
        "std::vector<int> at 12:30:45",
        "3.14159265358979323846",
        "2024-05-01 12:00:00",
        "ISBN 978-3-16-148410-0",
        "a @ b, @name, me@localhost",
        "1 000 000 000",
        "order 12345678901234",
        "𝟏𝟑𝟖 digits of another kind",
    ],
)
def test_what_is_not(text):
    assert mask_pii(text, ALL) == (text, {})


def test_check_digits_against_all_others():
    """Of ten last digits exactly one is right."""
    assert [d for d in range(10) if luhn(f"7992739871{d}")] == [3]
    assert [d for d in range(10) if is_card(f"411111111111111{d}")] == [1]
    assert [d for d in "0123456789X" if is_chinese_id(f"11010519491231002{d}")] == ["X"]


def test_kinds_and_mask():
    text = "a@b.com 13812345678"
    assert mask_pii(text, ["email"])[0] == "[EMAIL] 13812345678"
    assert mask_pii(text, ["cn_mobile"], "<{kind}>")[0] == "a@b.com <CN_MOBILE>"
    assert mask_pii(text, ALL, "")[0] == " "


@pytest.mark.parametrize(
    "piece",
    ["a@", "1", "1 ", "a.b", "GB12", "1-", "+1 ", "::", "ab:", "1.1.", "a", "@a.", "(1)", "13", "A0 "],
)
def test_hostile_text_takes_time_in_proportion(piece):
    begun = time.process_time()
    mask_pii(piece * (200_000 // len(piece)), ALL)
    assert time.process_time() - begun < 10
