"""Tokens per second of forward passes that bring the activations of a site, against other ways to get the same tensors.

All run in turns on the same tokens, each figure is the best of `--rounds`: python -m bench.forward --help
"""

import argparse
import copy
import importlib.util
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import PreTrainedModel

from jobs.ml.language_model import load_model
from jobs.ml.saelens import hook_of
from jobs.ml.sites import capture_all, resolve

MODEL_FOLDER = Path(__file__).parent.parent / "mistudio/demo/model"
Ways = dict[str, Callable[[], object]]


def own(model: PreTrainedModel, names: list[str], ids: torch.Tensor) -> Callable[[], object]:
    sites = [resolve(model, name) for name in names]
    return lambda: capture_all(model, sites, ids)


def plain(model: PreTrainedModel, ids: torch.Tensor) -> Callable[[], object]:
    """All blocks, without the head that predicts."""
    return torch.no_grad()(lambda: model.base_model(input_ids=ids, output_hidden_states=True).hidden_states)


def transformer_lens(model: PreTrainedModel, names: list[str], ids: torch.Tensor, block: int) -> Callable[[], object]:
    """On a copy: it changes the model that it is given."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    theirs = copy.deepcopy(model)
    theirs.set_attn_implementation("eager")  # as it needs it
    bridge = build_bridge_from_module(theirs, type(model).__name__, hf_config=theirs.config)
    hooks = [hook_of(name)["hook_name"] for name in names]
    return torch.no_grad()(lambda: bridge.run_with_cache(ids, names_filter=hooks, stop_at_layer=block + 1))


def best_seconds(ways: Ways, rounds: int, device: str) -> dict[str, float]:
    best = dict.fromkeys(ways, float("inf"))
    for n in range(rounds + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if device == "cuda":
                torch.cuda.synchronize()
            if n:  # the first round warms up
                best[name] = min(best[name], time.perf_counter() - started)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=str(MODEL_FOLDER), help="folder of a language model")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    for name, value in {"context": 128, "rows": 8, "rounds": 10, "threads": torch.get_num_threads()}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = load_model(options.model, options.device, options.dtype)
    text = model.config.get_text_config()
    ids = torch.randint(text.vocab_size, (options.rows, options.context), device=options.device)
    block = text.num_hidden_layers // 2
    one = [f"blocks.{block}.hook_resid_pre"]
    three = [*one, f"blocks.{block}.hook_z", f"blocks.{block}.mlp.hook_post"]
    ways: Ways = {
        "one site": own(model, one, ids),
        "three sites": own(model, three, ids),
        "transformers, all hidden states": plain(model, ids),
    }
    lens = {"TransformerLens, one site": one, "TransformerLens, three sites": three}
    if importlib.util.find_spec("transformer_lens"):
        ways |= {name: transformer_lens(model, names, ids, block) for name, names in lens.items()}
    print(
        f"{type(model).__name__}, {options.dtype} on {options.device}, {options.threads} threads, block {block} of "
        f"{text.num_hidden_layers}, {options.rows} sequences of {options.context} tokens, best of {options.rounds}"
    )
    report(
        best_seconds(ways, options.rounds, options.device), [*ways, *(name for name in lens if name not in ways)], ids
    )


def report(seconds: dict[str, float], names: list[str], ids: torch.Tensor) -> None:
    for name in names:
        if name not in seconds:
            print(f"{name:34s} not installed")
            continue
        times = seconds[name] / seconds["three sites" if "three" in name else "one site"]
        print(f"{name:34s} {ids.numel() / seconds[name]:12,.0f} tokens/s, takes {times:5.2f} times as long as here")


if __name__ == "__main__":
    main()
