"""Which files of a model are taken: text that describes it and safetensors. Never code, never pickles."""

import re
from collections.abc import Collection
from pathlib import Path

from jobs.ml.errors import Unusable

DESCRIBING = {
    "config.json",
    "generation_config.json",
    "README.md",
    "LICENSE",
    "LICENSE.md",
    "LICENSE.txt",
    "NOTICE",
}
TOKENIZER = {
    "added_tokens.json",
    "chat_template.jinja",
    "merges.txt",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
}
# One of these holds the tokens themselves.
VOCABULARIES = {
    "sentencepiece.bpe.model",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
}
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD = re.compile(r"model-\d{5,}-of-\d{5,}\.safetensors")
NOT_NEEDED = "not needed"
UNSAFE = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
FOREIGN = (".h5", ".msgpack")  # of TensorFlow and Flax


def choose_files(names: Collection[str]) -> list[str]:
    """Those of the file names that are taken; files in subfolders never are. Raises Unusable."""
    if "config.json" not in names:
        raise Unusable("not a model folder: no config.json", other_formats(names))
    weights = choose_weights(names)
    if not VOCABULARIES & set(names):
        raise Unusable(
            "the model has no tokenizer: none of " + ", ".join(sorted(VOCABULARIES)),
            "Save the tokenizer beside the model: AutoTokenizer.from_pretrained(…).save_pretrained(folder).",
        )
    return sorted((DESCRIBING | TOKENIZER) & set(names)) + weights


def is_taken(name: str) -> bool:
    return name in DESCRIBING | TOKENIZER | {WHOLE, INDEX} or bool(SHARD.fullmatch(name))


def why_left(name: str) -> str:
    """Why a file that `choose_files` did not choose is left where it is."""
    if "/" in name:
        return "in a subfolder"
    if name.endswith(".py"):
        return "a program; never run"
    if name.endswith(UNSAFE):
        return "can run code when opened"
    if name.endswith(FOREIGN):
        return "weights for another library"
    if name.endswith((".safetensors", ".safetensors.index.json")):
        return "the same weights another time, or an adapter"
    if name.endswith((".gguf", ".onnx", ".tflite", ".mlmodel")):
        return "weights for another program"
    return NOT_NEEDED


def weight_formats(names: Collection[str]) -> list[str]:
    """In which formats a repository has weights, the readable one first."""
    endings = {
        "safetensors": (".safetensors",),
        "pickle": UNSAFE,
        "HDF5": (".h5",),
        "Flax": (".msgpack",),
        "GGUF": (".gguf",),
        "ONNX": (".onnx",),
    }
    return [label for label, ends in endings.items() if any(name.endswith(ends) for name in names)]


def choose_weights(names: Collection[str]) -> list[str]:
    """One file where there is one, as transformers does, else the shards with their index."""
    if WHOLE in names:
        return [WHOLE]
    shards = sorted(name for name in names if SHARD.fullmatch(name))
    if INDEX in names and shards:
        return [INDEX, *shards]
    if shards:
        raise Unusable(f"the weights are in {len(shards)} files, but {INDEX} is missing", "Copy it from the original.")
    raise no_weights(names)


def no_weights(names: Collection[str]) -> Unusable:
    top = sorted(name for name in names if "/" not in name)
    if "adapter_model.safetensors" in top:
        return Unusable(
            "this is an adapter, not a model: adapter_model.safetensors",
            "Merge it into its base model with peft (merge_and_unload, then save_pretrained).",
        )
    if pickles := [name for name in top if name.endswith(UNSAFE)]:
        return Unusable(
            f"the weights are in {', '.join(pickles[:3])} alone, a format that can run code when opened",
            "miStudio reads only safetensors. Choose a revision that has model.safetensors, or convert it "
            "where you trust it: AutoModelForCausalLM.from_pretrained(…).save_pretrained(folder).",
        )
    other = [name for name in top if name.endswith((".safetensors", ".gguf", ".onnx", *FOREIGN))]
    found = f"; there is {', '.join(other[:3])}" if other else ""
    return Unusable(f"no weights: model.safetensors is missing{found}", "Give the folder that save_pretrained wrote.")


def other_formats(names: Collection[str]) -> str:
    if gguf := next((name for name in sorted(names) if name.endswith(".gguf")), ""):
        return f"{gguf} is for llama.cpp. Give the model it was made from, in safetensors."
    if inner := next((name for name in sorted(names) if name.endswith("/config.json")), ""):
        return f"There is one in {Path(inner).parent}: give that folder."
    return "Give the folder that save_pretrained wrote, with config.json and model.safetensors."
