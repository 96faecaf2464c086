"""Personal data that a rule can find: by its form and, where it has one, by its check digit."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Sequence
from datetime import date

# Letters and digits of an IBAN, by country (the IBAN registry, ISO 13616).
_IBAN_LENGTHS = {
    country: int(length)
    for group in (
        "15:NO 16:BE 18:DK,FI,FO,GL,NL 19:MK,SI 20:AT,BA,EE,KZ,LT,LU,XK 21:CH,HR,LI,LV 22:BG,BH,CR,DE,GB,GE,IE,ME,RS",
        "23:AE,GI,IL,IQ,TL 24:AD,CZ,ES,MD,PK,RO,SA,SE,SK,TN,VG 25:PT 26:IS,TR 27:FR,GR,IT,MC,SM 28:AL,AZ,CY,DO,GT,HU",
        "28:LB,PL 29:BR,EG,PS,QA,UA 30:JO,KW,MU 31:MT,SC",
    )
    for length, countries in (part.split(":") for part in group.split())
    for country in countries.split(",")
}
_CARD_PREFIX = re.compile(r"4|5[1-5]|2[2-7]|3[0457-9]|6[02459]")
_ID_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)

# A Chinese character is a letter for \w, too, so that the borders are told by ASCII letters and digits.
_EMAIL = re.compile(
    r"(?<![A-Za-z0-9_.+%-])[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9-])"
)
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]){11,30}")
_CN_ID = re.compile(r"(?<![A-Za-z0-9])[1-9]\d{16}[\dXx](?![A-Za-z0-9])")
_CARD = re.compile(r"(?<![A-Za-z0-9.,-])\d(?:[ -]?\d){11,17}\d(?![A-Za-z0-9])")
_CN_MOBILE = re.compile(r"(?<![A-Za-z0-9.])(?:\+?86[ -]?)?1[3-9]\d[ -]?\d{4}[ -]?\d{4}(?![A-Za-z0-9])")
_PHONE = re.compile(
    r"(?<![A-Za-z0-9_+.])(?:"
    r"\+[1-9]\d{0,2}(?:[ .-]?\(\d{1,4}\))?(?:[ .-]?\d{1,4}){2,5}"  # +44 20 7946 0958
    r"|(?:\+?1[ .-])?(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[.-]\d{4}"  # (212) 555-0123
    r"|0\d{2,3}-\d{7,8}"  # 010-62345678
    r")(?![A-Za-z0-9])"
)
_IPV4 = re.compile(r"(?<![A-Za-z0-9_.])\d{1,3}(?:\.\d{1,3}){3}(?![A-Za-z0-9_]|\.\d)")
_IPV6 = re.compile(r"(?<![A-Za-z0-9_:])[0-9A-Fa-f]{1,4}(?::{1,2}[0-9A-Fa-f]{1,4}){2,7}(?![A-Za-z0-9_:])")


def mask_pii(text: str, kinds: Sequence[str], mask: str = "[{kind}]") -> tuple[str, dict[str, int]]:
    """The text with personal data masked, and how many of each kind were.

    Args:
        text: Any text.
        kinds: Of `RULES`.
        mask: What stands in its place; {kind} is the kind in capital letters.
    """
    found: dict[str, int] = {}
    digits = sum(map(text.count, "0123456789")) >= 4  # the fewest that a number or an address has
    for kind, rules in RULES.items():
        if (
            kind not in kinds
            or (kind == "email" and "@" not in text)
            or (kind not in ("email", "ip") and not digits)
        ):
            continue
        mark = mask.replace("{kind}", kind.upper())
        for pattern, length in rules:
            text, count = _masked(text, pattern, length, mark)
            if count:
                found[kind] = found.get(kind, 0) + count
    return text, found


def _masked(text: str, pattern: re.Pattern[str], length: Callable[[str], int], mark: str) -> tuple[str, int]:
    count = 0

    def replaced(match: re.Match[str]) -> str:
        nonlocal count
        taken = length(match[0])
        count += taken > 0
        return mark + match[0][taken:] if taken else match[0]

    return pattern.sub(replaced, text), count


def _whole(test: Callable[[str], bool]) -> Callable[[str], int]:
    return lambda found: len(found) if test(found) else 0


def luhn(number: str) -> bool:
    """Whether the last digit is Luhn's check digit of the others (ISO/IEC 7812-1)."""
    digits = [int(digit) for digit in reversed(number)]
    return sum(d if i % 2 == 0 else d * 2 - 9 * (d > 4) for i, d in enumerate(digits)) % 10 == 0


def is_card(text: str) -> bool:
    """Whether a number is of a known kind of card, with the right check digit."""
    number = re.sub("[ -]", "", text)
    return _CARD_PREFIX.match(number) is not None and len(set(number)) > 1 and luhn(number)


def is_chinese_id(text: str) -> bool:
    """Whether it is a Chinese identity number: a date of birth, and the check digit of GB 11643-1999."""
    try:
        born = date(int(text[6:10]), int(text[10:12]), int(text[12:14]))
    except ValueError:
        return False
    total = sum(int(digit) * weight for digit, weight in zip(text[:17], _ID_WEIGHTS, strict=True))
    return 1850 <= born.year <= 2100 and "10X98765432"[total % 11] == text[17].upper()


def _iban(text: str) -> int:
    """The characters of the IBAN that a text begins with; 0: it begins with none (mod 97 of ISO 7064)."""
    wanted, at = _IBAN_LENGTHS.get(text[:2], 0), 0
    letters = ""
    while at < len(text) and len(letters) < wanted:
        letters += text[at] if text[at] not in " -" else ""
        at += 1
    if not wanted or len(letters) < wanted or text[at : at + 1].isalnum():
        return 0
    return at if int("".join(str(int(c, 36)) for c in letters[4:] + letters[:4])) % 97 == 1 else 0


def _is_phone(text: str) -> bool:
    return 8 <= sum(c.isdigit() for c in text) <= 15


def _is_address(text: str) -> bool:
    try:
        return bool(ipaddress.ip_address(text))
    except ValueError:
        return False


# In this order: a number that has a check digit comes before those that have none.
RULES: dict[str, tuple[tuple[re.Pattern[str], Callable[[str], int]], ...]] = {
    "email": ((_EMAIL, len),),
    "iban": ((_IBAN, _iban),),
    "cn_id": ((_CN_ID, _whole(is_chinese_id)),),
    "card": ((_CARD, _whole(is_card)),),
    "cn_mobile": ((_CN_MOBILE, len),),
    "phone": ((_PHONE, _whole(_is_phone)),),
    "ip": ((_IPV4, _whole(_is_address)), (_IPV6, _whole(_is_address))),
}
