"""The reward: form and rhyme of a couplet (格式与押韵). A plain function from completions to a number for each."""

import re

RHYMES = {
    **dict.fromkeys("光香长阳", "ang"),
    **dict.fromkeys("楼流秋舟", "ou"),
    **dict.fromkeys("山寒圆间", "an"),
}
COUPLET = re.compile("([\u4e00-\u9fff]+)，([\u4e00-\u9fff]+)。")


def couplet(completions):
    """Half for two lines of five characters, half for a rhyme; 0 for what is no couplet.

    Args:
        completions: Objects with `prompt`, `text`, `finish` and `fields` (the whole record of the data).
    """
    return [score(done.text) for done in completions]


def score(text):
    found = COUPLET.fullmatch(text.strip())
    if found is None:
        return 0.0
    upper, lower = found.groups()
    form = (len(upper) == 5) / 4 + (len(lower) == 5) / 4
    rhyme = RHYMES.get(upper[-1]) is not None and RHYMES.get(upper[-1]) == RHYMES.get(lower[-1])
    return form + (0.5 if rhyme and upper[-1] != lower[-1] else 0.0)
