"""Train the small language model that miStudio ships: tokenizer, weights, figures and card in one folder.

The same documents, recipe, thread count, processor family and library versions give the same bytes.
"""

import hashlib
import json
import math
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from jobs.ml import determinism, model_card, store

BOUNDARY = "<|endoftext|>"
HELD_OUT_SHARE = 50  # one title in fifty
PROMPTS = ("The list of", "Return the", "def __init__(self", "If the file does not exist,")

Text = tuple[str, str]  # title, text
Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Recipe:
    steps: int
    seed: int = 0
    threads: int = 1
    layers: int = 4
    width: int = 192
    inner: int = 512
    heads: int = 4
    vocabulary: int = 4096
    context_length: int = 256
    rows: int = 8  # sequences in a batch
    peak_rate: float = 2.5e-3
    warm_up: int = 200
    weight_decay: float = 0.1
    export_every: int = 500


def pretrain(
    documents: Iterable[Text], folder: Path, recipe: Recipe, report: Report = print, command: str = ""
) -> dict[str, Any]:
    """Train, export to `folder` every `export_every` steps and at the end; returns what training.json says.

    `command` is how the model card says it was made. Raises ValueError where the documents do not suffice.
    """
    determinism.set_up(recipe.seed, recipe.threads)
    training, held_out = split(documents)
    if not training or not held_out:
        raise ValueError("There are too few documents to train on some and hold out others.")
    started = time.monotonic()
    tokenizer = train_tokenizer([text for _, text in training], recipe)
    streams = [token_stream(part, tokenizer) for part in (training, held_out)]
    report(f"{len(streams[0]):,} training tokens, {len(streams[1]):,} held out")
    model = new_model(recipe, tokenizer)
    facts = {"command": command, **_facts(recipe, training, held_out, streams), **_size(model), "curve": []}
    for step, loss in _steps(model, streams[0], recipe):
        seconds = time.monotonic() - started
        if step % 50 == 0 or step == recipe.steps:
            report(f"step {step}/{recipe.steps}  loss {loss:.4f}  {seconds:.0f} s")
        if step % recipe.export_every == 0 or step == recipe.steps:
            rounded = _rounded(model)
            measured = held_out_figures(rounded, streams[1], facts["held_out"]["bytes"])
            facts |= _progress(step, seconds, recipe) | {"measured_on_held_out": measured}
            facts["curve"].append([step, measured["loss"]])
            report(f"held out: {measured}")
            export(rounded, tokenizer, folder, facts)
    return facts


def split(documents: Iterable[Text]) -> tuple[list[Text], list[Text]]:
    """Training and held-out documents. The title decides, so all pieces of a module are on one side."""
    parts: tuple[list[Text], list[Text]] = [], []
    for title, text in documents:
        digest = hashlib.sha256(title.encode()).digest()
        parts[int.from_bytes(digest[:4], "big") % HELD_OUT_SHARE == 0].append((title, text))
    return parts


def train_tokenizer(texts: Sequence[str], recipe: Recipe) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=recipe.vocabulary,
            min_frequency=2,
            special_tokens=[BOUNDARY],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOUNDARY,
        eos_token=BOUNDARY,
        model_max_length=recipe.context_length,
        clean_up_tokenization_spaces=False,
    )


def token_stream(documents: Sequence[Text], tokenizer: PreTrainedTokenizerFast) -> NDArray[np.int64]:
    """All documents one after another, a boundary token before each."""
    encoded = tokenizer([text for _, text in documents], add_special_tokens=False, verbose=False)["input_ids"]
    boundary = [tokenizer.bos_token_id]
    return np.concatenate([np.array(boundary + ids, dtype=np.int64) for ids in encoded])


def new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=recipe.width,
            intermediate_size=recipe.inner,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.heads,
            max_position_embeddings=recipe.context_length,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def learning_rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then a cosine down to a hundredth of the peak. Steps count from 1."""
    warm_up = min(recipe.warm_up, max(1, recipe.steps // 10))
    if step <= warm_up:
        return recipe.peak_rate * step / warm_up
    done = (step - warm_up) / max(1, recipe.steps - warm_up)
    return recipe.peak_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


def batches(stream: NDArray[np.int64], boundary: int, recipe: Recipe) -> Iterator[Tensor]:
    """Endless batches [rows, context_length]; every row opens with the boundary token.

    Each epoch is cut at other places and ordered anew.
    """
    window, epoch = recipe.context_length - 1, 0
    while True:
        random = np.random.default_rng([recipe.seed, epoch])
        shifted = stream[random.integers(min(window, max(1, len(stream) - recipe.rows * window))) :]
        rows = shifted[: len(shifted) // window * window].reshape(-1, window)
        order = random.permutation(len(rows))
        for first in range(0, max(1, len(order) - recipe.rows + 1), recipe.rows):
            yield _with_boundary(rows[order[first : first + recipe.rows]], boundary)
        epoch += 1


def held_out_figures(model: LlamaForCausalLM, stream: NDArray[np.int64], n_bytes: int) -> dict[str, float]:
    """Mean loss in nats per token, perplexity, and bits per byte.

    Every token is predicted once, from at most one context.
    """
    tokens, window, total = stream[1:], model.config.max_position_embeddings - 1, 0.0
    padded = np.pad(tokens, (0, -len(tokens) % window), constant_values=-1).reshape(-1, window)
    with torch.no_grad():
        for first in range(0, len(padded), 8):
            targets = torch.from_numpy(padded[first : first + 8])
            rows = _with_boundary(np.maximum(padded[first : first + 8], 0), int(stream[0]))
            logits = model(input_ids=rows, use_cache=False).logits[:, :-1].float().flatten(0, 1)
            total += torch.nn.functional.cross_entropy(
                logits, targets.flatten(), ignore_index=-1, reduction="sum"
            ).item()
    loss = total / len(tokens)
    return {
        "tokens": len(tokens),
        "loss": round(loss, 4),
        "perplexity": round(math.exp(loss), 3),
        "bytes": n_bytes,
        "bits_per_byte": round(total / math.log(2) / n_bytes, 4),
    }


def sample(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompt: str, length: int = 60) -> str:
    """A continuation drawn at temperature 0.7 among the 40 likeliest tokens, with a fixed seed."""
    ids = tokenizer(BOUNDARY + prompt, return_tensors="pt", add_special_tokens=False)["input_ids"]
    random, ahead, past = torch.Generator().manual_seed(0), ids, None
    with torch.no_grad():
        for _ in range(length):
            output = model(input_ids=ahead, past_key_values=past, use_cache=True)
            top = output.logits[0, -1].float().topk(min(40, model.config.vocab_size))
            chosen = torch.multinomial((top.values / 0.7).softmax(-1), 1, generator=random)
            past, ahead = output.past_key_values, top.indices[chosen][None]
            ids = torch.cat([ids, ahead], dim=1)
    return str(tokenizer.decode(ids[0], skip_special_tokens=True))


def export(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path, facts: dict[str, Any]) -> None:
    """Half-precision weights, tokenizer, training.json, README.md; each file appears whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    samples = {prompt: sample(model, tokenizer, prompt) for prompt in PROMPTS}
    with TemporaryDirectory(prefix=".partial-", dir=folder) as name:
        partial = Path(name)
        model.half().save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        (partial / "training.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        (partial / "README.md").write_text(model_card.render(facts, samples), encoding="utf-8")
        store.sync(partial)
        for path in sorted(partial.iterdir()):
            path.chmod(0o644)
            path.replace(folder / path.name)


def _rounded(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """A copy with the values that half precision can hold: what is measured is what is shipped."""
    copy = LlamaForCausalLM(model.config).eval()
    copy.load_state_dict({name: value.half().float() for name, value in model.state_dict().items()})
    return copy


def _progress(step: int, seconds: float, recipe: Recipe) -> dict[str, int]:
    seen = step * recipe.rows * (recipe.context_length - 1)
    return {"steps_done": step, "tokens_seen": seen, "seconds": round(seconds)}


def _size(model: LlamaForCausalLM) -> dict[str, int]:
    return {"vocabulary": model.config.vocab_size, "parameters": sum(p.numel() for p in model.parameters())}


def _facts(
    recipe: Recipe, training: Sequence[Text], held_out: Sequence[Text], streams: Sequence[NDArray[np.int64]]
) -> dict[str, Any]:
    texts = [text.encode() for _, text in (*training, *held_out)]
    return {
        "recipe": asdict(recipe),
        "training": {
            "documents": len(training),
            "bytes": sum(map(len, texts[: len(training)])),
            "tokens": len(streams[0]),
        },
        "held_out": {
            "documents": len(held_out),
            "bytes": sum(map(len, texts[len(training) :])),
            "tokens": len(streams[1]),
            "titles": sorted({title for title, _ in held_out}),
        },
        "corpus_sha256": hashlib.sha256(b"\0".join(sorted(texts))).hexdigest(),
        "versions": {"python": platform.python_version()}
        | {name: store.installed(name) for name in ("torch", "transformers", "tokenizers")},
        "processor": platform.machine() + " " + torch.backends.cpu.get_cpu_capability(),
    }


def _steps(model: LlamaForCausalLM, stream: NDArray[np.int64], recipe: Recipe) -> Iterator[tuple[int, float]]:
    """Train; yields the number of steps done and the last batch's loss."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.peak_rate, betas=(0.9, 0.98), eps=1e-9, fused=True)
    supply = batches(stream, int(stream[0]), recipe)
    for step in range(1, recipe.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe)
        model.train()
        rows = next(supply)
        loss = model(input_ids=rows, labels=rows, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield step, loss.item()


def _with_boundary(rows: NDArray[np.int64], boundary: int) -> Tensor:
    return torch.from_numpy(np.pad(rows, ((0, 0), (1, 0)), constant_values=boundary))
