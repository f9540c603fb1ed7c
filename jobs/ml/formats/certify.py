"""A certificate of an export: what the peer itself, or failing that its documented formula, computes from the files."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from jobs.ml.errors import WithHint
from jobs.ml.formats import FORMATS
from jobs.ml.formats.formula import FORMULAS
from jobs.ml.sae import Sae

VECTORS, MOST_CODES = 256, 2**25
LIMIT = 1e-5  # of the largest value
AT_THRESHOLD = 0.01  # of the vectors, at most, may have a latent so near to its threshold that rounding decides
BASE, PER_NUMBER, PER_CODE = 2**30, 36, 64  # bytes; a little above what was seen
SECONDS, LOOK = 600, 0.2
HAS = "import importlib.util, sys; sys.exit(importlib.util.find_spec(sys.argv[1]) is None)"
HANDED_ON = ("PATH", "HOME", "LANG", "TMPDIR", "OMP_NUM_THREADS", "LD_LIBRARY_PATH")  # of the environment: no secrets
OWN = {"HF_HUB_OFFLINE": "1", "SPARSIFY_DISABLE_TRITON": "1", "CUDA_VISIBLE_DEVICES": ""}  # sparsify has it for CUDA
PEERS = "MISTUDIO_PEERS"  # a Python in which peers are installed
Check = Callable[[], None]  # raises where the work shall end
MODULES = {"sae-lens": "sae_lens", "eai-sparsify": "sparsify", "dictionary-learning": "dictionary_learning"}


@dataclass(frozen=True)
class Certificate:
    """Differences are the largest, as a part of the largest value."""

    format: str
    by_peer: bool  # False: by the peer's documented formula, since it is not installed
    package: str
    version: str | None  # of the peer, where it was asked
    vectors: int
    at_threshold: int  # vectors left out, since rounding decides whether a latent is active
    active: float  # latents on a vector, on average
    codes: float
    x_hat: float
    limit: float = LIMIT

    @property
    def holds(self) -> bool:
        few = self.at_threshold <= AT_THRESHOLD * self.vectors
        return few and self.active > 0 and max(self.codes, self.x_hat) < self.limit

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "holds": self.holds}


@dataclass(frozen=True)
class Uncertified:
    """Nothing was compared, since that would need more memory than there is."""

    format: str
    package: str
    needed: int  # bytes
    available: int

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "holds": False}


def certify(sae: Sae, folder: Path | str, name: str, check: Check = lambda: None) -> Certificate | Uncertified:
    """Of the SAE that was written to the folder. Raises WithHint where the peer cannot read what was written, and what
    `check` raises."""
    folder, package = Path(folder), FORMATS[name].peer
    needed, available = memory_needed(sae), psutil.virtual_memory().available
    if needed > available:
        return Uncertified(name, package, needed, available)
    sae = copied(sae)
    x = vectors(sae)
    check()
    python = python_with(package, check)
    if python:
        codes, x_hat, version = ask_peer(python, folder, name, x, check)
    else:
        theirs = FORMULAS[name](folder, x.numpy())
        codes, x_hat, version = *map(torch.from_numpy, theirs), None
    check()
    active = sae.active(x)
    ours = x.new_zeros(len(x), sae.width).index_put_((active.rows, active.latents), active.values)
    same = ((ours != 0) == (codes != 0)).all(dim=1)
    return Certificate(
        name,
        bool(python),
        package,
        version,
        len(x),
        int((~same).sum()),
        float((ours != 0).sum() / len(x)),
        difference(ours[same], codes[same]),
        difference(sae.decode_active(active, x)[same], x_hat[same]),
    )


def memory_needed(sae: Sae) -> int:
    """Bytes, beside the SAE itself, at the peak: here and in the peer together."""
    numbers = sum(value.numel() for value in sae.state_dict().values())
    return BASE + PER_NUMBER * numbers + PER_CODE * n_vectors(sae) * sae.width


def copied(sae: Sae) -> Sae:
    same = type(sae)(sae.d_in, sae.width, **sae.options(), **sae.shape)
    same.load_state_dict(sae.state_dict())
    return same.double().eval().requires_grad_(False)


def difference(ours: Tensor, theirs: Tensor) -> float:
    """1 where nothing is left to compare."""
    largest = float(theirs.abs().max()) if theirs.numel() else 0.0
    return float((ours - theirs).abs().max()) / largest if largest else 1.0


def n_vectors(sae: Sae) -> int:
    return max(16, min(VECTORS, MOST_CODES // sae.width))


@torch.no_grad()
def vectors(sae: Sae) -> Tensor:
    """float64 [N, D]: random around the centre, as far from it as makes at least one latent active on average."""
    n = n_vectors(sae)
    noise = torch.randn(n, sae.d_in, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    centre = sae.b_dec.double() if sae.centred else torch.zeros(sae.d_in, dtype=torch.float64)
    x = noise
    for scale in (1.0, 10.0, 100.0, 1000.0):
        x = centre + scale * noise
        if (sae.encode(x) != 0).sum() >= n:
            break
    return x


def python_with(package: str, check: Check = lambda: None) -> str:
    """A Python that can import the peer, as it says itself; "" where there is none. Raises WithHint."""
    candidates = (python for python in (os.environ.get(PEERS, ""), sys.executable) if python)
    return next((one for one in candidates if not run([one, "-Ic", HAS, MODULES[package]], package, check)[0]), "")


def ask_peer(
    python: str, folder: Path, name: str, x: Tensor, check: Check = lambda: None
) -> tuple[Tensor, Tensor, str]:
    """Codes, reconstructions and the version of the peer. Raises WithHint, and what `check` raises."""
    script, package = Path(__file__).with_name("in_peer.py"), FORMATS[name].peer
    with tempfile.TemporaryDirectory() as room:
        given, out = Path(room, "x.safetensors"), Path(room, "out.safetensors")
        save_file({"x": x}, given)
        code, errors = run([python, "-I", str(script), name, str(folder), str(given), str(out)], package, check)
        if code:
            said = (errors.strip().splitlines() or ["no message"])[-1][:300]
            raise WithHint(f"{package} cannot read what was written: {said}")
        with safe_open(out, framework="pt") as file:
            version = file.metadata()["version"]
        found = load_file(out)
    return found["codes"], found["x_hat"], version


def run(words: list[str], package: str, check: Check) -> tuple[int, str]:
    """The exit code and what was said on stderr. Killed where `check` raises, or after SECONDS. Raises WithHint."""
    env = {key: os.environ[key] for key in HANDED_ON if key in os.environ} | OWN
    until = time.monotonic() + SECONDS
    try:
        child = subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)  # noqa: S603
    except OSError as error:
        raise WithHint(f"{package} cannot be asked: {error}.", f"Set {PEERS} to a Python that has it.") from error
    with child:
        try:
            while time.monotonic() < until:
                check()
                with suppress(subprocess.TimeoutExpired):
                    errors = child.communicate(timeout=LOOK)[1]
                    return child.returncode, errors
        finally:
            child.kill()
    raise WithHint(f"{package} did not answer in {SECONDS} seconds.", "Try again when the machine has less to do.")
