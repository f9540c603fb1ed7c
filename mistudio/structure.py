"""A language model's modules as its page shows them, with the sites that read them; and what its weights weigh."""

from dataclasses import dataclass
from typing import Any

from mistudio.formats import block_and_hook
from mistudio.models import LanguageModel

NUMBER = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "int8": 1.0, "int4": 0.5}  # bytes of a number
REST = 2  # bytes of a number that bitsandbytes leaves in bfloat16
INT4_BLOCK = 64  # weights that share one scale
SCALE = 4  # bytes


@dataclass(frozen=True)
class Line:
    path: str
    kind: str
    shapes: list[tuple[str, str]]  # name and size of each own parameter: ("weight", "768 × 2,304")
    parameters: int
    tied: bool
    quantized: bool
    sites: list[tuple[str, str]]  # hook, and whether it is what comes in or goes out


@dataclass(frozen=True)
class Part:
    title: str
    path: str
    first: int | None
    count: int  # blocks that are alike
    parameters: int  # of one of them
    lines: list[Line]

    @property
    def total(self) -> int:
        return self.count * self.parameters


def parts(model: LanguageModel) -> list[Part]:
    """Empty for a model that was added before its structure was kept."""
    read_at: dict[str, list[tuple[str, str]]] = {}
    for site in model.sites:
        _, hook = block_and_hook(site["name"])
        read_at.setdefault(site.get("path", ""), []).append((hook, "in" if site.get("side") == "input" else "out"))
    return [part(group, read_at) for group in model.structure]


def part(group: dict[str, Any], read_at: dict[str, list[tuple[str, str]]]) -> Part:
    start = f"{group['path']}.{group['first']}" if group["path"] else ""
    return Part(
        title=group["title"],
        path=group["path"],
        first=group["first"],
        count=blocks(group),
        parameters=sum(module["parameters"] for module in group["modules"]),
        lines=[line(module, read_at.get(f"{start}.{module['path']}".strip("."), [])) for module in group["modules"]],
    )


def line(module: dict[str, Any], sites: list[tuple[str, str]]) -> Line:
    return Line(
        path=module["path"],
        kind=module["kind"],
        shapes=[(name, " × ".join(f"{n:,}" for n in shape)) for name, shape in module["shapes"].items()],
        parameters=module["parameters"],
        tied=module["tied"],
        quantized=module["quantized"],
        sites=sites,
    )


def blocks(group: dict[str, Any]) -> int:
    return 1 if group["first"] is None else group["last"] - group["first"] + 1


def weight_bytes(model: LanguageModel, dtype: str) -> int | None:
    """An estimate, from the shapes: None where it takes a structure that was not kept."""
    if dtype not in ("int8", "int4"):
        return None if model.n_parameters is None else int(NUMBER[dtype] * model.n_parameters)
    if not model.structure:
        return None
    return sum(
        blocks(group) * sum(module_bytes(module, dtype) for module in group["modules"]) for group in model.structure
    )


def module_bytes(module: dict[str, Any], dtype: str) -> int:
    """bitsandbytes makes the weights of linear layers small; embeddings, norms, biases and the head stay as they
    were."""
    if not module["quantized"]:
        return REST * module["parameters"]
    weight = module["shapes"]["weight"]
    n = weight[0] * weight[1]
    outputs = weight[1] if module["kind"] == "Conv1D" else weight[0]  # GPT-2's Conv1D is [in, out]
    scales = outputs if dtype == "int8" else -(-n // INT4_BLOCK)
    return int(NUMBER[dtype] * n) + SCALE * scales + REST * (module["parameters"] - n)
