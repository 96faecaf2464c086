"""Peak memory of preparing data, by the size of the file: it must not grow with it.

    python benchmarks/streaming.py TEXT_FILE OUTPUT_FOLDER [--sizes 50,200] [--long] [--kinds read,text,...]

Files of 50 and 200 MB (with --long: of 2,048 MB too) are made of TEXT_FILE, over and over with a running number.
Each is prepared in a process of its own, as the jobs do it before their first step; of tokens, 20 batches are drawn.

    records    a .jsonl file of prompts and responses: every record read and checked
    read       one .txt file: read, cleaned, split in training and validation
    text       the same, a tokenizer of 1,024 tokens trained, encoded, cut into blocks of 256
    documents  a .jsonl.gz file, 40 lines a document: the same as text
    pairs      a .jsonl file of prompts and responses: read, encoded, split
    corpus     a .jsonl file of documents of about 2 kB, lines of the text in a random order: proxlm data with the
               steps unicode, html, quality, pii, exact, near, split

Encoding goes at about 1 MB a second on one core, so 2 GB of text take an hour, of pairs several.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

LONG = 2048
MEGABYTE = 2**20


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("text", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sizes", default="50,200", help="of the files, in MB")
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--kinds", default=",".join(WRITERS))
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    columns = ["peak memory, MB", "of it not pages of files, MB", "tokens or texts", "seconds", "CPU seconds"]
    print("| data | file, MB |", " | ".join(columns), "|")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for kind in arguments.kinds.split(","):
        for size in [*map(int, arguments.sizes.split(",")), *([LONG] if arguments.long else [])]:
            path = arguments.folder / f"{kind}-{size}{ENDINGS[kind]}"
            WRITERS[kind](arguments.text, path, size * MEGABYTE)
            done = subprocess.run(
                [sys.executable, __file__, "--prepare", kind, str(path)],
                capture_output=True,
                text=True,
                check=True,
            )
            found = json.loads(done.stdout.splitlines()[-1])
            print(
                f"| {kind} | {size} | {found['peak']:.0f} | {found['own']:.0f} | {found['tokens']:,}"
                f" | {found['seconds']:.0f} | {found['cpu']:.0f} |",
                flush=True,
            )
            path.unlink()


def lines_of(source: Path, size: int) -> Iterator[str]:
    """Lines of the text, each pass with its number, until `size` bytes."""
    lines = source.read_text(encoding="utf-8").splitlines()
    written, turn = 0, 0
    while written < size:
        for line in lines:
            text = f"{line} {turn}" if line else line
            written += len(text.encode()) + 1
            yield text
            if written >= size:
                return
        turn += 1


def write_text(source: Path, path: Path, size: int) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines_of(source, size))


def write_documents(source: Path, path: Path, size: int) -> None:
    with gzip.open(path, "wt", encoding="utf-8", compresslevel=1) as file:
        waiting: list[str] = []
        for line in lines_of(source, size):
            waiting.append(line)
            if len(waiting) == 40:
                file.write(json.dumps({"text": "\n".join(waiting)}, ensure_ascii=False) + "\n")
                waiting = []


def write_pairs(source: Path, path: Path, size: int) -> None:
    with open(path, "w", encoding="utf-8") as file:
        waiting: list[str] = []
        for line in lines_of(source, size):
            waiting.append(line)
            if len(waiting) == 12:
                row = {"prompt": "\n".join(waiting[:6]) + "x", "response": "\n".join(waiting[6:]) + "x"}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                waiting = []


def write_corpus(source: Path, path: Path, size: int) -> None:
    lines = [line for line in source.read_text(encoding="utf-8").splitlines() if line]
    choose, written = random.Random(0), 0
    with open(path, "w", encoding="utf-8") as file:
        while written < size:
            text = "\n".join(choose.choices(lines, k=60))
            written += file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")


def prepare_corpus(path: str) -> int:
    """Returns the number of documents that are kept."""
    from proxlm import CorpusConfig, prepare_data

    steps = ["unicode", "html", "quality", "pii", "exact", "near", "split"]
    done = prepare_data(CorpusConfig(input=[path], output=f"{path}-out", steps=steps))
    return sum(1 for file in done.files.values() for _ in open(file, encoding="utf-8"))


def prepare(kind: str, path: str) -> int:
    """Do what the jobs do with the file before they train; returns the number of tokens, or of texts without them."""
    from proxlm.config import TextSettings
    from proxlm.data.supervised import pretrain_blocks, record_texts, sft_examples
    from proxlm.data.text import read_texts, split_validation
    from proxlm.data.tokenizer import train_tokenizer
    from proxlm.train.supervised.batches import TokenBatches
    from proxlm.train.supervised.examples import Examples

    if kind == "corpus":
        return prepare_corpus(path)
    if kind == "records":
        return sum(len(pair) for pair in record_texts(TextSettings(), [path]))
    if kind == "read":
        return sum(map(len, read_texts([path], []).split(0.05, 0)))
    if kind == "pairs":
        tokenizer = train_tokenizer(["To be, or not to be: that is the question."] * 9, 300, 10_000)
        every = Examples.from_rows(sft_examples(TextSettings(), [path], tokenizer, 10_000))
        train, _ = map(every.select, split_validation(range(len(every)), 0.05, 0))
    else:
        documents, held_out = read_texts([path], []).split(0.05, 0)
        parts = (part for i in range(len(documents)) for part in documents.parts(i, 2**16))
        tokenizer = train_tokenizer(parts, 1024, 256)
        train = Examples.from_blocks(pretrain_blocks(tokenizer, documents.shuffled(0), 256))
        every = Examples.from_blocks(pretrain_blocks(tokenizer, held_out, 256))
    batches = TokenBatches(train.lengths, 8192, 0)
    for _ in range(20):
        train.batch(batches.next())
    return int(train.lengths.sum()) + int(every.lengths.sum()) * (kind != "pairs")


def measured(kind: str, path: str) -> dict[str, float]:
    """Tokens, seconds, and the most memory in MB; own: without the pages of files, which the system can drop."""
    most = {"VmRSS": 0, "RssAnon": 0}
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.05):
            for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
                name, _, value = line.partition(":")
                if name in most:
                    most[name] = max(most[name], int(value.split()[0]))

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    tokens = prepare(kind, path)
    seconds = time.perf_counter() - began
    ended.set()
    watcher.join()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "peak": most["VmRSS"] / 1024,
        "own": most["RssAnon"] / 1024,
        "tokens": tokens,
        "seconds": seconds,
        "cpu": usage.ru_utime + usage.ru_stime,
    }


WRITERS = {
    "records": write_pairs,
    "read": write_text,
    "text": write_text,
    "documents": write_documents,
    "pairs": write_pairs,
    "corpus": write_corpus,
}
ENDINGS = {
    "records": ".jsonl",
    "read": ".txt",
    "text": ".txt",
    "documents": ".jsonl.gz",
    "pairs": ".jsonl",
    "corpus": ".jsonl",
}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--prepare"]:
        print(json.dumps(measured(*sys.argv[2:])))
    else:
        main()
