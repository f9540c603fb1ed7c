"""What a config.json says of a model, as plain JSON: no library of models is imported, nothing in it is believed."""

import ast
import importlib.metadata
import importlib.util
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jobs.ml.errors import CorruptData, Unusable

LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
WIDTH = ("hidden_size", "n_embd", "d_model", "dim")
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
INNER = ("text_config", "llm_config", "language_config")  # the language model in one that also sees or hears
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}


@dataclass(frozen=True)
class ConfigFacts:
    """Empty and None: not stated."""

    model_type: str
    class_name: str
    n_layers: int | None
    d_model: int | None
    n_heads: int | None
    vocab_size: int | None
    context_length: int | None
    dtype: str


def parse(text: bytes | str) -> dict[str, Any]:
    """Raises CorruptData."""
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorruptData(f"config.json is not JSON: {error}.") from error
    if not isinstance(config, dict):
        raise CorruptData("config.json does not hold an object.")
    return config


def facts(config: dict[str, Any]) -> ConfigFacts:
    inner = [config[name] for name in INNER if isinstance(config.get(name), dict)]
    said = {**config, **(inner[0] if inner else {})}
    classes = config.get("architectures")
    return ConfigFacts(
        model_type=word(config.get("model_type")),
        class_name=word(classes[0]) if isinstance(classes, list) and classes else "",
        n_layers=count(said, LAYERS),
        d_model=count(said, WIDTH),
        n_heads=count(said, HEADS),
        vocab_size=count(said, ("vocab_size",)),
        context_length=count(said, POSITIONS),
        dtype=(word(said.get("dtype")) or word(said.get("torch_dtype"))).removeprefix("torch."),
    )


def word(value: Any) -> str:
    return value[:120] if isinstance(value, str) else ""


def count(said: dict[str, Any], names: tuple[str, ...]) -> int | None:
    found = (said.get(name) for name in names)
    return next((value for value in found if type(value) is int and 0 < value < 2**40), None)


def require_known(config: dict[str, Any]) -> None:
    """Raises Unusable for a model that the installed transformers cannot build without running foreign code."""
    model_type, version = word(config.get("model_type")), transformers_version()
    if config.get("is_encoder_decoder") is True:
        raise Unusable(
            f"{model_type or 'it'} is an encoder-decoder: only decoders and encoders are supported", "Choose another."
        )
    if not known_types() or model_type in known_types():
        return
    if code := foreign_code(config):
        raise Unusable(
            f"the model is a program of its own ({code}), which is never run: transformers {version} "
            f"has no model type “{model_type}”",
            "Choose a model of a family that transformers has, or a copy of this one converted to such a family.",
        )
    named = f"knows no model type “{model_type}”" if model_type else "cannot tell: config.json names no model_type"
    raise Unusable(f"transformers {version} {named}", "A newer transformers may know it.")


def foreign_code(config: dict[str, Any]) -> str:
    """The file of Python that `auto_map` names, "" where it names none."""
    named = config.get("auto_map")
    first = next(iter(named.values()), "") if isinstance(named, dict) else ""
    first = first[0] if isinstance(first, list) and first else first
    path = word(first).rpartition("--")[2].partition(".")[0]
    return f"{path}.py" if path else ""


def transformers_version() -> str:
    try:
        return importlib.metadata.version("transformers")
    except importlib.metadata.PackageNotFoundError:
        return ""


@cache
def known_types() -> frozenset[str]:
    """Of the installed transformers, read from its source: importing it takes seconds. Empty: cannot be told."""
    spec = importlib.util.find_spec("transformers")
    auto = Path(spec.origin).parent / "models" / "auto" if spec and spec.origin else Path("/nowhere")
    found: set[str] = set()
    for path in (auto / "auto_mappings.py", auto / "configuration_auto.py"):
        if path.exists():
            found |= keys_of_mapping(ast.parse(path.read_text(encoding="utf-8")))
    return frozenset(found)


def keys_of_mapping(tree: ast.Module) -> set[str]:
    """Keys of what is assigned to CONFIG_MAPPING_NAMES or added to it."""
    found: set[Any] = set()
    for statement in tree.body:
        if "CONFIG_MAPPING_NAMES" not in ast.unparse(statement).partition("(")[0]:
            continue
        for node in ast.walk(statement):
            if isinstance(node, ast.Dict):
                found |= {key.value for key in node.keys if isinstance(key, ast.Constant)}
            elif isinstance(node, ast.Tuple) and node.elts and isinstance(node.elts[0], ast.Constant):
                found.add(node.elts[0].value)
    return found
