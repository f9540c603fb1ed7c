"""Tokenizing and packing against `datasets.map(batched=True)` with the same fast tokenizer, in turns within one run:
python -m bench.tokenize --help

Both read the same Parquet file with the same number of threads and write what they made to disk. Tokens per second of
wall time, the median of `--rounds`; the machine may be busy, but it is so for both.
"""

import argparse
import os
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

MODEL_FOLDER = Path(__file__).parent.parent / "mistudio/demo/model"


def write_dataset(folder: Path, megabytes: float) -> int:
    """The sources of Python's library, again and again, in documents of up to 4,000 characters; returns characters."""
    from jobs.ml.documents import DocumentWriter

    folder.mkdir()
    writer, written = DocumentWriter(folder), 0
    while written < megabytes * 1e6:
        for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
            text = path.read_text(errors="replace")
            for start in range(0, len(text), 4000):
                writer.add(text[start : start + 4000])
                written += len(text[start : start + 4000])
            if writer.full:
                writer.finish_shard()
            if written >= megabytes * 1e6:
                break
    writer.finish_shard()
    return written


def ours(documents: Path, tokenizer: object, folder: Path, settings: dict[str, object]) -> int:
    from jobs.ml.documents import read_documents
    from jobs.ml.packing import pack

    told = pack(partial(read_documents, documents), tokenizer, folder, **settings)  # type: ignore[arg-type]
    return int(told["document_tokens"])


def theirs(documents: Path, tokenizer: Callable[..., dict], folder: Path) -> None:
    """Token ids alone: no packing, no masks, no statistics, no checksums."""
    from datasets import load_dataset

    data = load_dataset("parquet", data_files=str(documents / "*.parquet"), split="train", cache_dir=str(folder))
    # Its own copy of the file as Arrow is made by now, and is in its time: so is reading Parquet in ours.

    def encode(rows: dict) -> dict:
        return {
            "input_ids": tokenizer(rows["text"], add_special_tokens=False, return_attention_mask=False)["input_ids"]
        }

    data.map(encode, batched=True, remove_columns=data.column_names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=str(MODEL_FOLDER), help="folder of a language model")
    parser.add_argument("--megabytes", type=float, default=40, help="of text")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of the tokenizer")
    parser.add_argument("--layout", default="packed")
    parser.add_argument("--junk", default="off")
    options = parser.parse_args()
    os.environ |= {"RAYON_NUM_THREADS": str(options.threads), "TOKENIZERS_PARALLELISM": "true"}
    import datasets

    from jobs.ml.tokenizer import load_tokenizer

    datasets.disable_progress_bars()
    settings = {"context_length": 128, "layout": options.layout, "junk": options.junk}
    times: dict[str, list[float]] = {"ours": [], "datasets.map": []}
    with tempfile.TemporaryDirectory() as place:
        folder, tokenizer = Path(place), load_tokenizer(options.model)
        characters = write_dataset(folder / "documents", options.megabytes)
        for n in range(options.rounds):
            started = time.perf_counter()
            tokens = ours(folder / "documents", tokenizer, folder / f"ours-{n}", settings)
            times["ours"].append(time.perf_counter() - started)
            started = time.perf_counter()
            theirs(folder / "documents", tokenizer, folder / f"theirs-{n}")
            times["datasets.map"].append(time.perf_counter() - started)
            print(
                f"round {n + 1}: " + ", ".join(f"{name} {said[-1]:.2f} s" for name, said in times.items()), flush=True
            )
    print(
        f"{characters:,} characters, {tokens:,} tokens, {options.threads} threads, {options.rounds} rounds, {settings}"
    )
    for name, seconds in times.items():
        print(f"{name:14s} {tokens / statistics.median(seconds):12,.0f} tokens/s, {statistics.median(seconds):.2f} s")
    shares = sorted(b / a for a, b in zip(*times.values(), strict=True))
    print(f"ours is {statistics.median(shares):.2f} times as fast ({shares[0]:.2f} to {shares[-1]:.2f})")


if __name__ == "__main__":
    main()
