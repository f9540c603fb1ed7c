"""Documents as token ids, packed to sequences of one length, on disk in shards of one size.

A folder holds `<split>-00000.ids.npy` (uint16, or uint32 for large vocabularies, [rows, T]) and
`<split>-00000.special.npy` (one bit per token) for the splits train and held_out, and a manifest.json when it
is finished. Until then `state.json` says how far the finished shards go: packing killed at any moment goes on
from there, and ends with the same bytes as if it had never stopped.
"""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from jobs.ml import store
from jobs.ml.errors import WithHint
from jobs.ml.framing import Framing, framing
from jobs.ml.pieces import Piece, batches, pieces
from jobs.ml.tokens import SPLITS

SHARD_TOKENS = 2**20


class ContextTooLong(WithHint):
    pass


class NoTokens(WithHint):
    pass


def pack(
    documents_from: Callable[[int], Iterable[str]],
    tokenizer: Any,
    folder: Path | str,
    *,
    context_length: int,
    seed: int,
    held_out: float = 0.1,
    add_bos: bool = True,
    model_context: int | None = None,
    shard_tokens: int = SHARD_TOKENS,
    on_progress: Callable[[int, int], None] = lambda documents, tokens: None,
) -> dict[str, Any]:
    """Tokenize and pack; returns the statistics that the manifest keeps.

    documents_from(n): the documents from number n on, the same ones at every call on this folder. Each goes to
    held_out with that probability, decided by (seed, its number). Tokens that fill no whole sequence at the end
    are dropped and counted.
    on_progress(documents, tokens) is called after every batch and may raise: finished shards are kept.
    Raises ContextTooLong, NoTokens, ValueError.
    """
    frame = framing(tokenizer, add_bos)
    check(context_length, held_out, frame, model_context)
    plan = {
        "context_length": context_length,
        "seed": seed,
        "held_out": held_out,
        "add_bos": add_bos,
        "shard_tokens": shard_tokens,
        "vocabulary": store.fingerprint(
            [frame.before, frame.after, frame.between, sorted(frame.special), frame.vocab_size]
        ),
    }
    work = Packing(Path(folder), plan, frame)
    if work.finished is not None:
        return work.finished
    done = work.state["documents"]
    for batch in batches(pieces(documents_from(done), done, work.state["characters"])):
        work.add(batch, encode(tokenizer, [piece.text for piece in batch]))
        on_progress(work.state["documents"], work.state["tokens"])
    return work.finish()


def check(context_length: int, held_out: float, frame: Framing, model_context: int | None) -> None:
    if model_context is not None and context_length > model_context:
        raise ContextTooLong(f"a context of {context_length} tokens is more than the model's {model_context}.")
    if context_length <= frame.overhead:
        raise ValueError(f"a context of {context_length} tokens leaves no room beside {frame.overhead} special tokens.")
    if not 0 <= held_out < 1:
        raise ValueError(f"held_out is a share from 0 to below 1, not {held_out}.")


def encode(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return tokenizer(
        texts,
        add_special_tokens=False,
        padding=False,
        truncation=False,
        return_attention_mask=False,
        verbose=False,
    )["input_ids"]


def is_held_out(seed: int, document: int, share: float) -> bool:
    digest = hashlib.blake2b(f"{seed}:{document}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


class Packing:
    """The writing side: pending tokens per split, shards as they fill, and the state that survives a kill.

    A shard is written before the state that counts it. Killed in between, the shard is written again with the
    same bytes, since what goes into it depends on the documents alone and not on how they were batched.
    """

    def __init__(self, folder: Path, plan: dict[str, Any], frame: Framing) -> None:
        self.folder, self.plan, self.frame = folder, plan, frame
        self.length = plan["context_length"]
        self.payload = self.length - frame.overhead
        self.shard_rows = max(1, plan["shard_tokens"] // self.length)
        self.dtype = np.uint16 if frame.vocab_size <= 2**16 else np.uint32
        self.special = frame.mask_table()
        self.pending: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
        self.folder.mkdir(parents=True, exist_ok=True)
        self.finished = self.resume()

    def resume(self) -> dict[str, Any] | None:
        """The statistics where the folder is finished; otherwise where to go on is in self.state."""
        manifest = store.read_manifest(self.folder)
        if manifest and manifest["plan"] == self.plan:
            return manifest["statistics"]
        path = self.folder / "state.json"
        if path.is_file() and (state := store.read_json(path))["plan"] == self.plan:
            self.state = state
            carried = store.read_tensors(self.folder / state["pending"])
            self.pending = {split: [carried[split]] for split in SPLITS}
            return None
        for stale in (
            *self.folder.glob("*.npy"),
            *self.folder.glob("pending-*"),
            *self.folder.glob("*.json"),
        ):
            stale.unlink()
        counts = {"documents": 0, "tokens": 0, "shards": 0, "sequences": 0, "special_tokens": 0}
        self.state = {
            "plan": self.plan,
            "documents": 0,
            "characters": 0,  # of the document that has been begun
            "document_tokens": 0,
            "empty_documents": 0,
            "tokens": 0,
            "splits": {split: dict(counts) for split in SPLITS},
        }
        return None

    def add(self, batch: list[Piece], encoded: list[list[int]]) -> None:
        for piece, ids in zip(batch, encoded, strict=True):
            self.add_piece(piece, np.asarray(ids, dtype=self.dtype))
        if self.write_full_shards():
            self.save()

    def add_piece(self, piece: Piece, ids: np.ndarray) -> None:
        state = self.state
        split = SPLITS[is_held_out(self.plan["seed"], piece.document, self.plan["held_out"])]
        self.pending[split].append(ids)
        state["tokens"] += len(ids)
        state["document_tokens"] += len(ids)
        state["splits"][split]["tokens"] += len(ids)
        state["characters"] = piece.end
        if piece.last:
            if state["document_tokens"]:
                self.pending[split].append(np.asarray(self.frame.between, dtype=self.dtype))
            state["empty_documents"] += not state["document_tokens"]
            state["documents"] += 1
            state["splits"][split]["documents"] += 1
            state["document_tokens"] = state["characters"] = 0

    def write_full_shards(self) -> int:
        """How many were written."""
        written = 0
        for split in SPLITS:
            size = self.shard_rows * self.payload
            while sum(map(len, self.pending[split])) >= size:
                tokens = np.concatenate(self.pending[split])
                self.write_shard(split, tokens[:size])
                self.pending[split] = [tokens[size:]]
                written += 1
        return written

    def write_shard(self, split: str, tokens: np.ndarray) -> None:
        """tokens [rows * payload]"""
        counts = self.state["splits"][split]
        content = tokens.reshape(-1, self.payload)
        rows = np.empty((len(content), self.length), dtype=self.dtype)
        start = len(self.frame.before)
        rows[:, :start] = self.frame.before
        rows[:, start : start + self.payload] = content
        rows[:, start + self.payload :] = self.frame.after
        special = self.special[rows]
        store.write_array(self.folder / f"{split}-{counts['shards']:05d}.ids.npy", rows)
        store.write_array(self.folder / f"{split}-{counts['shards']:05d}.special.npy", np.packbits(special, axis=1))
        counts["shards"] += 1
        counts["sequences"] += len(rows)
        counts["special_tokens"] += int(special.sum())

    def save(self) -> None:
        name = "pending-{}-{}.safetensors".format(*(self.state["splits"][split]["shards"] for split in SPLITS))
        empty = np.empty(0, dtype=self.dtype)
        carried = {split: np.concatenate([empty, *self.pending[split]]) for split in SPLITS}
        store.write_tensors(self.folder / name, carried)
        store.write_json(self.folder / "state.json", {**self.state, "pending": name})
        for stale in self.folder.glob("pending-*"):
            if stale.name != name:
                stale.unlink()

    def finish(self) -> dict[str, Any]:
        dropped = 0
        for split in SPLITS:
            tokens = np.concatenate([np.empty(0, dtype=self.dtype), *self.pending[split]])
            whole = len(tokens) // self.payload * self.payload
            dropped += len(tokens) - whole
            if whole:
                self.write_shard(split, tokens[:whole])
        statistics = self.statistics(dropped)
        if not statistics["sequences"]:
            raise NoTokens(
                f"{statistics['documents']:,} documents with {statistics['document_tokens']:,} tokens fill no "
                f"sequence of {self.length}.",
                "Add documents or choose a shorter context.",
            )
        shards = [path.name for path in self.folder.glob("*.npy")]
        store.write_manifest(
            self.folder,
            shards,
            kind="tokens",
            plan=self.plan,
            shard_rows=self.shard_rows,
            statistics=statistics,
        )
        for left in ("state.json", *(path.name for path in self.folder.glob("pending-*"))):
            (self.folder / left).unlink(missing_ok=True)
        return statistics

    def statistics(self, dropped: int) -> dict[str, Any]:
        """Counts in tokens. A split's `tokens` are all positions of its sequences, special ones included."""
        state = self.state
        splits = {
            split: {
                "documents": counts["documents"],
                "shards": counts["shards"],
                "sequences": counts["sequences"],
                "tokens": counts["sequences"] * self.length,
                "special_tokens": counts["special_tokens"],
            }
            for split, counts in state["splits"].items()
        }
        filled = state["documents"] - state["empty_documents"]
        return {
            "documents": state["documents"],
            "empty_documents": state["empty_documents"],
            "document_tokens": state["tokens"],
            "mean_tokens_per_document": state["tokens"] / filled if filled else 0.0,
            "context_length": self.length,
            "sequences": sum(counts["sequences"] for counts in splits.values()),
            "tokens": sum(counts["tokens"] for counts in splits.values()),
            "special_tokens": sum(counts["special_tokens"] for counts in splits.values()),
            "dropped_tokens": dropped,
            **splits,
        }
