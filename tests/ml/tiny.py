"""Small models, tokenizers and tokenizations, made where they are needed."""

import itertools
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from jobs.ml import store
from jobs.ml.packing import pack

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
GROUPED = {**SIZES, "num_key_value_heads": 2}
DECODERS = {
    "llama": GROUPED,
    "mistral": GROUPED,
    "qwen2": GROUPED,
    "qwen3": {**GROUPED, "head_dim": 12},  # z is wider than the residual stream
    "gemma2": {**GROUPED, "head_dim": 12, "query_pre_attn_scalar": 12},
    "gemma3_text": {**GROUPED, "head_dim": 12, "query_pre_attn_scalar": 12, "sliding_window": 4},
    "phi": SIZES,
    "phi3": GROUPED,
    "gpt_neox": SIZES,
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4},
    "opt": {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "ffn_dim": 48,
        "word_embed_proj_dim": 32,
    },
    "bloom": {"hidden_size": 32, "n_layer": 3, "n_head": 4},
}
ENCODERS = {
    "bert": SIZES,
    "distilbert": {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48},
}
TEXT = "the cat sat on a mat and saw another dog run over green hills while rain fell softly upon old stones"
WORDS = TEXT.split()


def tiny_model(kind: str, seed: int = 0, vocab_size: int = 300, **options: object) -> PreTrainedModel:
    """Random weights, with norms and biases that are not the identity."""
    torch.manual_seed(seed)
    sizes = {**DECODERS, **ENCODERS}[kind] | options
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    config = AutoConfig.for_model(kind, vocab_size=vocab_size, max_position_embeddings=64, **special, **sizes)
    auto = AutoModelForCausalLM if kind in DECODERS else AutoModel
    model = auto.from_config(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    model.config.architectures = [type(model).__name__]
    model.config.use_cache = False
    return model


def byte_tokenizer(special: tuple[str, ...] = ("<s>", "</s>", "<pad>"), **roles: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE of 300 ids. Roles such as bos_token="<s>"."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=list(special), initial_alphabet=sorted(alphabet))
    tokenizer.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles)


def decoder_tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer(bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def documents(n: int = 200, seed: int = 0) -> list[str]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 60, (n,), generator=generator).tolist()
    return [" ".join(WORDS[i] for i in torch.randint(len(WORDS), (k,), generator=generator)) for k in lengths]


def tiny_tokens(folder: Path, context_length: int = 16, n: int = 300, shard_tokens: int = 2048) -> Path:
    """A finished tokenization of some documents with the decoder's tokenizer."""
    texts = documents(n)
    pack(
        lambda start: texts[start:],
        decoder_tokenizer(),
        folder,
        context_length=context_length,
        seed=0,
        held_out=0.3,
        shard_tokens=shard_tokens,
    )
    return folder


def killed_at(count: int, name: str, work: Callable[..., object], *arguments: object) -> bool:
    """Whether `work(*arguments)`, in a process of its own, was killed at its call number `count` of `store.<name>`."""
    processes = multiprocessing.get_context("forkserver")  # a fork of this one would lack the threads of its libraries
    processes.set_forkserver_preload([__name__])
    process = processes.Process(target=_die_at, args=(count, name, work, *arguments))
    process.start()
    process.join(120)
    process.kill()
    return process.exitcode == -signal.SIGKILL


def _die_at(count: int, name: str, work: Callable[..., object], *arguments: object) -> None:
    """The fatal call leaves a torn file under a temporary name."""
    function, calls = getattr(store, name), itertools.count()

    def dying(path: Path, *arguments: object) -> object:
        if next(calls) == count:
            path.with_name(f".{path.name}.0.tmp").write_bytes(b"torn")
            os.kill(os.getpid(), signal.SIGKILL)
        return function(path, *arguments)

    setattr(store, name, dying)
    work(*arguments)


def save_model(model: PreTrainedModel, folder: Path) -> Path:
    transformers.logging.disable_progress_bar()
    model.save_pretrained(folder)
    decoder_tokenizer().save_pretrained(folder)
    return folder
