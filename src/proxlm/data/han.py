"""Han characters: those that Chinese is written with."""

from __future__ import annotations

# The script Han of Unicode 16: 々 and 〇, the unified ideographs with all their extensions, compatibility forms.
HAN = (
    "\u2e80-\u2e99\u2e9b-\u2ef3\u2f00-\u2fd5\u3005\u3007\u3021-\u3029\u3038-\u303b\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufa6d\ufa70-\ufad9\U00016fe2\U00016ff0-\U00016ff1\U00020000-\U0002a6df\U0002a700-\U0002ebe0"
    "\U0002ebf0-\U0002ee5d\U0002f800-\U0002fa1d\U00030000-\U000323af"
)
"""The characters, as what stands between [ and ] in a regular expression."""
