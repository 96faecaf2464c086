"""The Chinese of a line of Tatoeba's sentence pairs: English, tab, Chinese, tab, where they are from."""


def chinese(record):
    parts = record["text"].split("\t")
    return {"text": parts[1]} if len(parts) > 1 else None
