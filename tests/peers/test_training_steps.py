"""One training step of each architecture against the peers that have it, in float64:

MISTUDIO_PEERS=/path/to/python pytest -m peers tests/peers/test_training_steps.py

Where they differ on purpose, a test says which correction it is.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from jobs.ml.architectures import ARCHITECTURES
from jobs.ml.config import TrainConfig
from jobs.ml.revival import revive
from jobs.ml.sae import Moment, Sae
from tests.ml.foreign import difference
from tests.ml.test_architectures import DEAD, K, batch, config_of, trained_like

pytestmark = pytest.mark.peers
SAME = 1e-6
UNIT = {"W_dec": ("decoder.weight", True), "W_enc": ("encoder.weight", False), "b_enc": ("encoder.bias", False)}
JUMP = {"jumprelu_bandwidth": 0.8, "l0_coefficient": 1.0}


def saelens(cls: str, names: dict[str, str] | None = None, coefficients: dict[str, float] | None = None, **config: Any):
    cls = f"{cls}TrainingSAE"
    return {"peer": "saelens", "cls": cls, "names": names or {}, "coefficients": coefficients or {}, "config": config}


def jump(loss: str, to_input: int) -> dict[str, Any]:
    mode = {"jumprelu_sparsity_loss_mode": loss, "jumprelu_ste_to_input": bool(to_input)}
    target = {"target_l0": 6.0} if loss == "quadratic" else {}
    return saelens("JumpReLU", coefficients={"l0": 1.0}, **JUMP, **mode, **target)


# name → (architecture, options of ours, the peer's case)
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "topk": ("topk", {}, saelens("TopK", k=K)),
    "abstopk": ("abstopk", {}, saelens("AbsTopK", k=K)),
    "batchtopk": ("batchtopk", {}, saelens("BatchTopK", k=K)),
    "matryoshka": (
        "matryoshka", {"levels": 5},
        saelens("MatryoshkaBatchTopK", k=K, matryoshka_widths=[3, 5, 10, 20, 40]),
    ),
    "standard": ("standard", {}, saelens("Standard", coefficients={"l1": 0.7}, l1_coefficient=0.7)),
    **{
        f"jumprelu-{loss}-{to_input}": (
            "jumprelu", {"l0_loss": loss, "ste_to_input": to_input, "dead_coefficient": 0.0}, jump(loss, to_input),
        )
        for loss in ("step", "tanh", "quadratic")
        for to_input in (0, 1)
    },
    "unit-topk": (
        "topk", {"unit": True},
        {
            "peer": "dictionary_learning", "module": "top_k", "cls": "TopKTrainer",
            "names": {**UNIT, "b_dec": ("b_dec", False)}, "config": {"k": K},
        },
    ),
    "unit-aux": (
        "topk", {"unit": True},
        {
            "peer": "dictionary_learning", "module": "top_k", "cls": "TopKTrainer", "dead": True,
            "names": {**UNIT, "b_dec": ("b_dec", False)}, "config": {"k": K, "auxk_alpha": 0.5},
        },
    ),
    "unit-batchtopk": (
        "batchtopk", {"unit": True},
        {
            "peer": "dictionary_learning", "module": "batch_top_k", "cls": "BatchTopKTrainer",
            "names": {**UNIT, "b_dec": ("b_dec", False)}, "config": {"k": K},
        },
    ),
    "unit-gated": (
        "gated", {"unit": True, "gate_coefficient": 1.0},
        {
            "peer": "dictionary_learning", "module": "gdm", "cls": "GatedSAETrainer",
            "names": {
                "W_dec": ("decoder.weight", True), "W_enc": ("encoder.weight", False), "b_enc": ("gate_bias", False),
                "r_mag": ("r_mag", False), "b_mag": ("mag_bias", False), "b_dec": ("decoder_bias", False),
            },
            "config": {"l1_penalty": 0.7, "sparsity_warmup_steps": None, "decay_start": None},
        },
    ),
}  # fmt: skip


def ours(name: str) -> tuple[Sae, TrainConfig, torch.Tensor]:
    architecture, options, _ = CASES[name]
    own = {option: value for option, value in options.items() if option != "unit"}
    sae = trained_like(architecture, **own).double()
    if options.get("unit"):
        sae.W_dec.data /= sae.W_dec.data.norm(dim=1, keepdim=True)
    if CASES[name][2].get("dead"):  # too weak to be chosen, so that the peer takes them for dead as well
        sae.W_enc.data[DEAD] *= 1e-3
        sae.b_enc.data[DEAD] *= 1e-3
    x = batch(sae, torch.float64)[0]
    if own.get("l0_loss") == "quadratic":  # of many rows we hold the mean to the target, SAELens each of them
        x = x[:1]
    warm = {"sparsity_warmup_share": 0.0} if "sparsity_warmup_share" in ARCHITECTURES[architecture].presets else {}
    return sae, config_of(architecture, **own, **warm), x


@pytest.fixture(scope="module")
def theirs(peers: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("steps")
    for name in CASES:
        sae, _, x = ours(name)
        tensors = {key: value for key, value in sae.state_dict().items() if value.ndim}
        save_file({**tensors, "x": x, "dead": DEAD}, folder / f"{name}.safetensors")
    (folder / "cases.json").write_text(json.dumps({name: case for name, (_, _, case) in CASES.items()}))
    script = Path(__file__).parent / "peer_steps.py"
    ran = subprocess.run([peers, "-I", str(script), str(folder)], check=False, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return {name: load_file(folder / f"{name}-out.safetensors") for name in CASES}


@pytest.mark.parametrize("name", CASES)
def test_a_step_has_the_loss_and_the_gradients_that_the_peer_has(theirs, name) -> None:
    sae, config, x = ours(name)
    support, moment = sae.support(x), Moment(config, 3, torch.empty(0, dtype=torch.long))
    sae.observe(x, support, moment)
    fit = sae.fit(x, x, support, moment)
    loss = fit.loss
    if CASES[name][2].get("dead"):
        loss = loss + 0.5 * revive(sae, x, (x - fit.x_hat).detach(), DEAD)
    loss.backward()
    found = theirs[name]
    assert difference(loss, found["loss"]) < SAME
    gradients = dict(sae.named_parameters())
    assert gradients.keys() <= found.keys()
    for parameter_name, parameter in gradients.items():
        assert difference(parameter.grad, found[parameter_name]) < SAME, parameter_name
