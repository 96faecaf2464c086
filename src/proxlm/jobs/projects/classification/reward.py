"""The reward: a plain function from completions to a number for each."""


def right_label(completions):
    """1 for the right label and nothing else, 0 otherwise.

    Args:
        completions: Objects with `prompt`, `text`, `finish` and `fields` (the whole record of the data).
    """
    return [float(done.text.strip() == done.fields["label"]) for done in completions]
