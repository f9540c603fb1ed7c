"""What a model is built of: its modules with their own parameters, blocks that are alike told once."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.quantizers.quantizers_utils import should_convert_module

from jobs.ml.blocks import UnsupportedModel, find_blocks
from jobs.ml.sites import list_sites

EMBEDDINGS, HEAD, NORM, OTHER = "Embeddings", "Head", "Final norm", "Other modules"


@dataclass(frozen=True)
class Module:
    path: str  # below its block, or below the model; "" is the block itself
    kind: str  # its class
    shapes: dict[str, list[int]]  # of its own parameters, not of those of modules below it
    parameters: int  # that no module before it has
    tied: bool  # shares a parameter with a module before it
    quantized: bool  # bitsandbytes keeps its weight in 8 or 4 bits when asked to


@dataclass(frozen=True)
class Group:
    title: str
    path: str  # of the list of blocks, else ""
    first: int | None  # number of the first and the last block of a run of blocks that are alike
    last: int | None
    modules: list[Module]


def describe(model: PreTrainedModel) -> list[Group]:
    """In the order embeddings, blocks, what follows them, head. Works on the meta device."""
    reader = Reader(model)
    outside = [(title_of(model, path, module), reader.read(path, path, module)) for path, module in reader.outside()]
    blocks = [(n, [reader.read(path, full, m) for path, full, m in reader.block(n)]) for n in range(len(reader.blocks))]

    def rest(name: str) -> Group:
        return Group(name, "", None, None, [module for title, module in outside if title == name])

    groups = [rest(EMBEDDINGS), *runs(reader.path, blocks), rest(NORM), rest(OTHER), rest(HEAD)]
    return [group for group in groups if group.modules]


def blocks_of(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """No block in a model of another build: all of its modules stand side by side."""
    try:
        return find_blocks(model)
    except UnsupportedModel:
        return "", nn.ModuleList()


class Reader:
    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.path, self.blocks = blocks_of(model)
        self.full = get_keys_to_not_convert(model)  # what bitsandbytes leaves as it is
        self.read_at = {site.path for site in list_sites(model)}
        self.counted: set[int] = set()

    def outside(self) -> Iterator[tuple[str, nn.Module]]:
        for path, module in self.model.named_modules():
            if not path.startswith(f"{self.path}.") and self.worth_a_line(path, module):
                yield path, module

    def block(self, n: int) -> Iterator[tuple[str, str, nn.Module]]:
        for path, module in self.blocks[n].named_modules():
            full = f"{self.path}.{n}.{path}".rstrip(".")
            if self.worth_a_line(full, module):
                yield path, full, module

    def worth_a_line(self, path: str, module: nn.Module) -> bool:
        return any(True for _ in module.parameters(recurse=False)) or path in self.read_at

    def read(self, path: str, full: str, module: nn.Module) -> Module:
        own = dict(module.named_parameters(recurse=False))
        new = [parameter for parameter in own.values() if id(parameter) not in self.counted]
        self.counted |= {id(parameter) for parameter in new}
        linear = isinstance(module, Conv1D) or type(module) is nn.Linear
        return Module(
            path=path,
            kind=type(module).__name__,
            shapes={name: list(parameter.shape) for name, parameter in own.items()},
            parameters=sum(parameter.numel() for parameter in new),
            tied=len(new) < len(own),
            quantized=linear and should_convert_module(full, self.full),
        )


def title_of(model: Any, path: str, module: nn.Module) -> str:
    if module is model.get_output_embeddings():
        return HEAD
    if isinstance(module, nn.Embedding) or "emb" in path:
        return EMBEDDINGS
    return NORM if "norm" in type(module).__name__.lower() else OTHER


def runs(path: str, blocks: list[tuple[int, list[Module]]]) -> list[Group]:
    """Neighbours that are alike as one group."""
    found: list[Group] = []
    for n, modules in blocks:
        if found and found[-1].modules == modules:
            found[-1] = Group(title(found[-1].first, n), path, found[-1].first, n, modules)
        else:
            found.append(Group(title(n, n), path, n, n, modules))
    return found


def title(first: int | None, last: int) -> str:
    return f"Block {last}" if first == last else f"Blocks {first}–{last}"
