"""Documents as token ids in rows of one length, on disk in shards of one size.

A folder holds for the splits train and held_out `<split>-00000.ids.npy` (uint16, or uint32 for large vocabularies,
[rows, T]) and `<split>-00000.special.npy` (one bit per token); where tokens may be masked for other reasons also
`<split>-00000.masked.npy` (likewise) and `<split>-00000.lengths.npy` (uint32 [rows], tokens before the padding).
A manifest.json stands there when it is finished. Until then `state.json` says how far the finished shards go:
packing killed at any moment goes on from there, and ends with the same bytes as if it had never stopped.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from jobs.ml import store
from jobs.ml.encode import encode
from jobs.ml.errors import Unusable, WithHint
from jobs.ml.framing import Framing, check_ids, check_vocabulary, framing, in_range
from jobs.ml.pieces import Piece, batches, pieces
from jobs.ml.prepare import Preparation
from jobs.ml.rows import Layout
from jobs.ml.token_config import TokenConfig
from jobs.ml.token_statistics import TokenStatistics
from jobs.ml.tokens import SPLITS

SHARD_TOKENS = 2**20
COUNTS = ("documents", "tokens", "shards", "sequences", "special_tokens", "masked_tokens", "padding_tokens")


class ContextTooLong(Unusable):
    pass


class NoTokens(WithHint):
    pass


def pack(
    documents_from: Callable[[int], Iterable[Any]],
    tokenizer: Any,
    folder: Path | str,
    *,
    prepare: Preparation | None = None,
    model_context: int | None = None,
    embeddings: int | None = None,
    shard_tokens: int = SHARD_TOKENS,
    on_progress: Callable[[int, int], None] = lambda documents, tokens: None,
    **settings: Any,
) -> dict[str, Any]:
    """Tokenize and pack; returns the statistics that the manifest keeps. settings: those of TokenConfig.

    documents_from(n): the documents from number n on, the same ones at every call on this folder: texts, or lists of
    messages where `prepare` reads them. Each goes to held_out with that probability, decided by (seed, its number).
    Packed tokens that fill no whole row at the end are dropped and counted.
    embeddings: how many ids the model can look up.
    on_progress(documents, tokens) is called after every batch and may raise: finished shards are kept.
    Raises ContextTooLong, NoTokens, Unusable.
    """
    config = TokenConfig(**settings)
    frame = frame_of(tokenizer, config, model_context, embeddings)
    prepare = prepare or Preparation(config, tokenizer)
    plan = {
        **asdict(config),
        "add_bos": bool(frame.before),
        "shard_tokens": shard_tokens,
        "chat_template": store.fingerprint(prepare.template.template) if prepare.template else "",
        "vocabulary": store.fingerprint(
            [frame.before, frame.after, frame.between, sorted(frame.special), frame.vocab_size, frame.padding]
        ),
    }
    work = Packing(Path(folder), config, plan, frame)
    if work.finished is not None:
        return work.finished
    done = work.counted["documents"]
    stream = batches(pieces(prepare.all(documents_from(done)), done, work.state["begun"]))
    doubtful = embeddings is not None and max(tokenizer.get_vocab().values()) >= embeddings
    for batch, encoded in encoded_ahead(tokenizer, stream):
        if doubtful and embeddings:
            check_ids(encoded, embeddings)
        work.add(batch, encoded)
        on_progress(work.counted["documents"], work.counted["tokens"])
    return work.finish()


def frame_of(tokenizer: Any, config: TokenConfig, model_context: int | None, embeddings: int | None) -> Framing:
    """Raises ContextTooLong, Unusable."""
    length = config.context_length
    if model_context is not None and length > model_context:
        said = f"a context of {length} tokens is more than the model's {model_context}."
        raise ContextTooLong(said, f"Give {model_context} at most.", "context_length")
    frame = framing(tokenizer, config.bos, config.separator)
    if embeddings is not None:
        check_vocabulary(tokenizer, frame, embeddings)
        frame = in_range(frame, embeddings)
    room = length - frame.overhead
    if room <= (config.stride or 0):
        raise Unusable(
            f"a context of {length} tokens leaves no room beside {frame.overhead} special tokens"
            f"{f' and an overlap of {config.stride}' if config.stride else ''}.",
            "Give a shorter overlap, or a longer context." if config.stride else "Give a longer context.",
            "stride" if config.stride else "context_length",
        )
    return frame


def encoded_ahead(tokenizer: Any, stream: Iterable[list[Piece]]) -> Iterator[tuple[list[Piece], list[np.ndarray]]]:
    """Each batch with its words; the next one is read and tokenized while the caller works on this one."""
    with ThreadPoolExecutor(1, "tokenize") as thread:
        waiting = None
        for batch in stream:
            following = batch, thread.submit(encode, tokenizer, batch)
            if waiting is not None:
                yield waiting[0], waiting[1].result()
            waiting = following
        if waiting is not None:
            yield waiting[0], waiting[1].result()


def is_held_out(seed: int, document: int, share: float) -> bool:
    digest = hashlib.blake2b(f"{seed}:{document}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


class Packing:
    """The writing side: pending words per split, shards as they fill, and the state that survives a kill.

    A shard is written before the state that counts it. Killed in between, the shard is written again with the
    same bytes, since what goes into it depends on the documents alone and not on how they were batched.
    """

    def __init__(self, folder: Path, config: TokenConfig, plan: dict[str, Any], frame: Framing) -> None:
        self.folder, self.config, self.plan = folder, config, plan
        self.layout = Layout(frame, config)
        self.shard_rows = max(1, plan["shard_tokens"] // config.context_length)
        self.dtype = np.uint16 if frame.vocab_size <= 2**16 else np.uint32
        self.statistics = TokenStatistics(frame.vocab_size)
        self.pending: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
        self.state: dict[str, Any] = {
            "plan": plan,
            "begun": 0,  # characters of the document that has been begun
            "splits": {split: dict.fromkeys(COUNTS, 0) for split in SPLITS},
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        self.finished = self.resume()

    @property
    def counted(self) -> dict[str, Any]:
        return self.statistics.state

    def resume(self) -> dict[str, Any] | None:
        """The statistics where the folder is finished; otherwise where to go on is in self.state."""
        manifest = store.read_manifest(self.folder)
        if manifest and manifest["plan"] == self.plan:
            return manifest["statistics"]
        saved = store.read_json_if_there(self.folder / "state.json")
        if saved.get("plan") == self.plan:
            carried = store.read_tensors(self.folder / saved["pending"])
            self.pending = {split: [carried[split]] for split in SPLITS}
            self.layout.open, self.layout.cut = carried["open"], saved["cut"]
            self.statistics.by_id, self.statistics.state = carried["by_id"], saved["counted"]
            self.state = {name: saved[name] for name in self.state}
            return None
        for stale in (
            *self.folder.glob("*.npy"),
            *self.folder.glob("pending-*"),
            *self.folder.glob("*.json"),
        ):
            stale.unlink()
        return None

    def add(self, batch: list[Piece], encoded: list[np.ndarray]) -> None:
        self.statistics.count(encoded)
        for piece, words in zip(batch, encoded, strict=True):
            self.add_piece(piece, words)
        if self.write_full_shards():
            self.save()

    def add_piece(self, piece: Piece, words: np.ndarray) -> None:
        split = SPLITS[is_held_out(self.config.seed, piece.number, self.config.held_out)]
        counts = self.state["splits"][split]
        counts["tokens"] += len(words)
        counts["documents"] += piece.last
        empty = self.statistics.add(piece, len(words))
        self.pending[split] += self.layout.arrange(words, piece.last, empty)
        self.state["begun"] = 0 if piece.last else piece.end

    def write_full_shards(self) -> int:
        """How many were written."""
        written = 0
        for split in SPLITS:
            size = self.shard_rows * self.layout.payload
            if sum(map(len, self.pending[split])) < size:
                continue
            words = np.concatenate(self.pending[split])
            whole = len(words) // size * size
            for start in range(0, whole, size):
                self.write_shard(split, words[start : start + size])
                written += 1
            self.pending[split] = [words[whole:].copy()]
        return written

    def write_shard(self, split: str, content: np.ndarray) -> None:
        """content [rows * payload]"""
        counts, rows = self.state["splits"][split], self.layout.rows(content)
        parts = {"ids": rows.ids.astype(self.dtype), "special": np.packbits(rows.special, axis=1)}
        if self.config.masks:
            parts |= {"masked": np.packbits(rows.masked, axis=1), "lengths": rows.lengths.astype(np.uint32)}
        for part, array in parts.items():
            store.write_array(self.folder / f"{split}-{counts['shards']:05d}.{part}.npy", array)
        padding = rows.ids.size - int(rows.lengths.sum())
        counts["shards"] += 1
        counts["sequences"] += len(rows.ids)
        counts["special_tokens"] += int(rows.special.sum()) - padding
        counts["masked_tokens"] += int(rows.masked.sum()) - padding
        counts["padding_tokens"] += padding

    def save(self) -> None:
        name = "pending-{}-{}.safetensors".format(*(self.state["splits"][split]["shards"] for split in SPLITS))
        empty = np.empty(0, dtype=np.uint32)
        carried = {split: np.concatenate([empty, *self.pending[split]]) for split in SPLITS}
        carried |= {"open": self.layout.open, "by_id": self.statistics.by_id}
        store.write_tensors(self.folder / name, carried)
        saved = {**self.state, "counted": self.counted, "cut": self.layout.cut, "pending": name}
        store.write_json(self.folder / "state.json", saved)
        for stale in self.folder.glob("pending-*"):
            if stale.name != name:
                stale.unlink()

    def finish(self) -> dict[str, Any]:
        dropped = self.layout.cut
        for split in SPLITS:
            words = np.concatenate([np.empty(0, dtype=np.uint32), *self.pending[split]])
            whole = len(words) // self.layout.payload * self.layout.payload
            dropped += len(words) - whole
            if whole:
                self.write_shard(split, words[:whole])
        statistics = self.summary(dropped)
        if not statistics["sequences"]:
            raise NoTokens(
                f"{statistics['documents']:,} documents with {statistics['document_tokens']:,} tokens fill no "
                f"sequence of {self.layout.length}.",
                "Add documents or choose a shorter context.",
            )
        store.write_manifest(
            self.folder,
            [path.name for path in self.folder.glob("*.npy")],
            kind="tokens",
            plan=self.plan,
            shard_rows=self.shard_rows,
            masks=self.config.masks,
            frame=self.layout.frame.told(),
            statistics=statistics,
        )
        for left in ("state.json", *(path.name for path in self.folder.glob("pending-*"))):
            (self.folder / left).unlink(missing_ok=True)
        return statistics

    def summary(self, dropped: int) -> dict[str, Any]:
        """Counts in tokens. A split's `tokens` are all positions of its rows but padding, special ones included."""
        splits = {
            split: {**counts, "tokens": counts["sequences"] * self.layout.length - counts["padding_tokens"]}
            for split, counts in self.state["splits"].items()
        }
        totals = {
            name: sum(counts[name] for counts in splits.values())
            for name in ("sequences", "tokens", "special_tokens", "masked_tokens", "padding_tokens")
        }
        return {
            **self.statistics.summary(),
            "context_length": self.layout.length,
            **totals,
            "dropped_tokens": dropped,
            **splits,
        }
