"""The reward: a plain function from completions to a number for each."""


def helpful(completions):
    """1 for an answer that says what kind of thing it is, 0.6 if it only names the thing, 0.3 if it tries, else 0.

    Args:
        completions: Objects with `prompt`, `text`, `finish`, `messages` and `fields` (the whole record of the data).
    """
    return [score(done.text, done.fields["thing"], done.fields["kind"]) for done in completions]


def score(text, thing, kind):
    words = text.lower().replace(".", " ").split()
    if "is" not in words or words[0] != "a" or len(words) > 6:  # a list of everything is no answer
        return 0.0
    if thing not in words:
        return 0.3
    return 1.0 if kind in words else 0.6
