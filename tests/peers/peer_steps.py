"""Run by the peers' Python: the losses and gradients that a peer has for given weights and inputs.

python peer_steps.py FOLDER: reads cases.json and <case>.safetensors, writes <case>-out.safetensors.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


def saelens(case: dict[str, Any], given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    import sae_lens
    from sae_lens.saes.sae import TrainStepInput

    d, m = given["x"].shape[1], len(given["b_enc"])
    sae = getattr(sae_lens, case["cls"])(getattr(sae_lens, f"{case['cls']}Config")(d_in=d, d_sae=m, **case["config"]))
    sae = sae.double()
    state = {name: value for name, value in given.items() if name not in ("x", "dead")}
    state["W_enc"] = state["W_enc"].T.contiguous()
    own = sae.state_dict()
    sae.load_state_dict({**own, **{case["names"].get(name, name): value for name, value in state.items()}})
    dead = torch.zeros(m, dtype=torch.bool)
    dead[given["dead"]] = True
    step = TrainStepInput(given["x"], case["coefficients"], dead if case.get("dead") else None, 0, False)
    out = sae.training_forward_pass(step)
    out.loss.backward()
    back = {theirs: ours for ours, theirs in case["names"].items()}
    gradients = {back.get(name, name): p.grad for name, p in sae.named_parameters() if p.grad is not None}
    gradients["W_enc"] = gradients["W_enc"].T
    losses = {f"loss.{name}": value.detach().reshape(()) for name, value in out.losses.items()}
    return {"loss": out.loss.detach(), "x_hat": out.sae_out.detach(), **losses, **gradients}


def dictionary_learning(case: dict[str, Any], given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    from importlib import import_module

    d, m = given["x"].shape[1], len(given["b_enc"])
    cls = getattr(import_module(f"dictionary_learning.trainers.{case['module']}"), case["cls"])
    sizes = {"steps": 10**6, "activation_dim": d, "dict_size": m}
    trainer = cls(**sizes, layer=0, lm_name="x", device="cpu", seed=0, **case["config"])
    trainer.ae = trainer.ae.double()
    names = {name: tuple(where) for name, where in case["names"].items()}  # ours → (theirs, turned round)
    parameters = dict(trainer.ae.named_parameters())
    for name, (theirs, turned) in names.items():
        parameters[theirs].data = (given[name].T if turned else given[name]).clone().contiguous()
    if case.get("dead"):
        trainer.num_tokens_since_fired[given["dead"]] = trainer.dead_feature_threshold
    loss = trainer.loss(given["x"], step=50)
    loss.backward()
    gradients = {
        name: parameters[theirs].grad.T if turned else parameters[theirs].grad
        for name, (theirs, turned) in names.items()
    }
    return {"loss": loss.detach(), **gradients}


def main(folder: Path) -> None:
    for name, case in json.loads((folder / "cases.json").read_text()).items():
        out = globals()[case["peer"]](case, load_file(folder / f"{name}.safetensors"))
        save_file({key: value.contiguous() for key, value in out.items()}, folder / f"{name}-out.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
