"""The reward: a plain function from completions to a number for each."""

HAPPY = {"happy", "kind", "friend", "fun", "sun", "warm", "good", "sang", "smile"}
SAD = {"lost", "sad", "fell", "cry", "cold", "nobody", "alone", "bad"}


def happy_ending(completions):
    """From −1 (all sad) to 1 (all happy), by the words of a response; −1 for one that does not end.

    Args:
        completions: Objects with `prompt`, `text`, `finish` and `fields` (the whole record of the data).
    """
    return [score(done.text) if done.finish != "length" else -1.0 for done in completions]


def score(text):
    words = text.lower().replace(".", " ").split()
    happy, sad = sum(word in HAPPY for word in words), sum(word in SAD for word in words)
    return (happy - sad) / max(1, happy + sad)
