"""Language models from a local folder: what they are, whether their files are whole, and loading them.

Nothing here runs code or unpickles anything from the folder: `trust_remote_code` stays off, weights are
safetensors.
"""

import json
import logging
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from jobs.ml.blocks import UnsupportedModel
from jobs.ml.errors import CorruptData
from jobs.ml.model_config import POSITIONS
from jobs.ml.model_files import INDEX, WHOLE, choose_weights
from jobs.ml.sites import Site, list_sites
from jobs.ml.structure import Group, describe
from jobs.ml.whole import require_whole

LARGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors format
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
QUANTIZED = ("int8", "int4")  # by bitsandbytes, on a CPU too
# Positions count from padding_idx + 1 in these, so that many of the embeddings are never used.
OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "roberta-prelayernorm")


@dataclass(frozen=True)
class Loaded:
    """What the loading of a model was measured to take."""

    seconds: float
    weight_bytes: int
    dtype: str  # the precision that was asked for


LOADED: WeakKeyDictionary[PreTrainedModel, Loaded] = WeakKeyDictionary()  # of the models that are in memory


@dataclass(frozen=True)
class Architecture:
    """What a config.json says, and the sites of the model that it describes."""

    model_type: str
    class_name: str
    causal: bool  # predicts the next token, so that cross-entropy and logits can be measured
    n_layers: int | None  # None, as below, where the config does not say: single modules can still be read
    d_model: int | None
    n_heads: int | None
    vocab_size: int
    context_length: int | None  # positions; None where the model sets no limit
    n_parameters: int
    dtype: str
    sites: tuple[Site, ...]
    structure: tuple[Group, ...]


def read_architecture(folder: Path | str) -> Architecture:
    """From config.json alone: the model is built without memory for its weights. Raises UnsupportedModel,
    CorruptData.
    """
    config = read_config(Path(folder))
    text = config.get_text_config()
    if not getattr(text, "vocab_size", None):
        raise UnsupportedModel(f"config.json of this {config.model_type} model says no vocab_size: it reads no tokens.")
    model = build_empty(config)
    return Architecture(
        model_type=config.model_type,
        class_name=(config.architectures or [type(model).__name__])[0],
        causal=is_causal(config),
        n_layers=getattr(text, "num_hidden_layers", None),
        d_model=getattr(text, "hidden_size", None),
        n_heads=getattr(text, "num_attention_heads", None),
        vocab_size=text.vocab_size,
        context_length=context_length(text),
        n_parameters=sum(parameter.numel() for parameter in model.parameters()),
        dtype=str(config.dtype or torch.float32).removeprefix("torch."),
        sites=tuple(list_sites(model)),
        structure=tuple(describe(model)),
    )


def read_config(folder: Path) -> Any:
    if not (folder / "config.json").is_file():
        raise CorruptData(f"{folder} has no config.json: it is not a folder of a transformers model.")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # what is wrong in a file that anyone may have written shows in any way
        raise UnsupportedModel(
            f"config.json cannot be read as a model that transformers knows: {first_line(error)}"
        ) from error
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModel(f"{config.model_type} is an encoder-decoder: only decoders and encoders are supported.")
    return config


def build_empty(config: Any) -> PreTrainedModel:
    """The model on the meta device: shapes without storage."""
    try:
        with torch.device("meta"), quiet():
            return auto_class(config).from_config(config, trust_remote_code=False)
    except Exception as error:  # likewise
        raise UnsupportedModel(
            f"no {config.model_type} model can be built from config.json: {first_line(error)}"
        ) from error


def is_causal(config: Any) -> bool:
    """Decided by the class the weights were saved from; where config.json names none, by the model type."""
    known = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    if config.architectures:
        return config.architectures[0] in known
    own = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type, "")
    return own.endswith("ForCausalLM") or own == "GPT2LMHeadModel"


def auto_class(config: Any) -> Any:
    return AutoModelForCausalLM if is_causal(config) else AutoModel


def context_length(text: Any) -> int | None:
    found = next((getattr(text, name) for name in POSITIONS if getattr(text, name, None)), None)
    if found and text.model_type in OFFSET_POSITIONS:
        return found - text.pad_token_id - 1
    return found


def verify_weights(folder: Path | str) -> None:
    """Reads the headers of the safetensors files and compares them with the files' lengths.

    Raises Unusable where the folder has weights in other formats alone, CorruptData where something is missing
    or torn.
    """
    folder = Path(folder)
    if choose_weights([path.name for path in folder.iterdir()]) == [WHOLE]:
        read_header(folder / WHOLE)
    else:
        verify_shards(folder, folder / INDEX)


def verify_shards(folder: Path, index: Path) -> None:
    try:
        places: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptData(f"{index.name} is not the index of a sharded model.") from error
    for shard in sorted(set(places.values())):
        if Path(shard).name != shard or not (folder / shard).is_file():
            raise CorruptData(f"{shard} is named in {index.name} but is not in the folder.")
        absent = {name for name, place in places.items() if place == shard} - read_header(folder / shard).keys()
        if absent:
            raise CorruptData(
                f"{shard} lacks {len(absent)} tensors that {index.name} places there, such as {min(absent)}."
            )


def read_header(path: Path) -> dict[str, Any]:
    """Tensor name -> {dtype, shape, data_offsets}. Raises CorruptData if the file is shorter or longer than
    it says.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(LARGEST_HEADER, size - 8):
            raise CorruptData(f"{path.name} is not a safetensors file, or only its beginning: {size} bytes.")
        try:
            header = json.loads(file.read(length))
            tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
            end = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise CorruptData(f"{path.name} has a damaged header.") from error
    if size != 8 + length + end:
        raise CorruptData(f"{path.name} is torn: {size:,} bytes where its header speaks of {8 + length + end:,}.")
    return tensors


def load_model(folder: Path | str, device: str = "cpu", dtype: str = "float32") -> PreTrainedModel:
    """In evaluation mode, without gradients or a key-value cache; with its head where the architecture is
    causal. dtype: one of jobs.ml.config.PRECISIONS.

    Raises UnsupportedModel, Unusable, CorruptData (also where weights that the model needs are not in the files).
    """
    folder, started = Path(folder), time.monotonic()
    require_whole(folder)
    config = read_config(folder)
    verify_weights(folder)
    with quiet():
        model, found = auto_class(config).from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **precision(dtype, device),
        )
    missing = [name for name in found["missing_keys"] if "pooler" not in name]  # no site lies behind a pooler
    if missing:
        raise CorruptData(f"the weights lack {len(missing)} tensors of {type(model).__name__}, such as {min(missing)}.")
    model.config.use_cache = False
    model = model.eval().requires_grad_(False)
    if dtype in QUANTIZED:
        plain_where_odd(model)
    else:
        model = model.to(device)
    LOADED[model] = Loaded(time.monotonic() - started, weight_bytes(model), dtype)
    return model


def precision_of(model: PreTrainedModel) -> str:
    """One of PRECISIONS; of quantized models the dtype alone would not tell."""
    loaded = LOADED.get(model)
    return loaded.dtype if loaded else str(model.dtype).removeprefix("torch.")


def weight_bytes(model: PreTrainedModel) -> int:
    """Of the parameters as they lie in memory, with the scales that bitsandbytes keeps beside them until the first
    pass."""
    return sum(held(parameter) for parameter in model.parameters())


def held(parameter: Any) -> int:
    scales = [getattr(parameter, "SCB", None), getattr(getattr(parameter, "quant_state", None), "absmax", None)]
    return sum(tensor.nbytes for tensor in (parameter, *scales) if tensor is not None)


def precision(dtype: str, device: str) -> dict[str, Any]:
    """What from_pretrained is given. What bitsandbytes leaves as it is (embeddings, norms, biases, the head) is in
    bfloat16: its range is that of float32, so that nothing overflows."""
    if dtype not in QUANTIZED:
        return {"dtype": DTYPES[dtype]}
    config = (
        BitsAndBytesConfig(load_in_8bit=True)
        if dtype == "int8"
        else BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    )
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of bfloat16 at every layer of every pass
    return {"dtype": torch.bfloat16, "quantization_config": config, "device_map": {"": device}}


def plain_where_odd(model: PreTrainedModel) -> None:
    """On CPUs with AVX512-BF16 the fast path of bitsandbytes' 4-bit layers takes whole blocks alone, and fails on
    others."""
    modules: Iterator[Any] = model.modules()
    for module in modules:
        if getattr(module, "support_avx512bf16_for_cpu", False) and (
            module.out_features % 32 or module.in_features % 64
        ):
            module.support_avx512bf16_for_cpu = False


class quiet:
    """transformers prints load reports and bars; a worker's log wants none of them."""

    def __enter__(self) -> None:
        self.level = transformers_logging.get_verbosity()
        self.bars = transformers_logging.is_progress_bar_enabled()
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        transformers_logging.set_verbosity(self.level)
        if self.bars:
            transformers_logging.enable_progress_bar()


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
