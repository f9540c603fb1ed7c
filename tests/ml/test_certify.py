"""What is certified where no peer is installed; tests/peers asks the peers themselves."""

import sys
from types import SimpleNamespace

import psutil
import pytest
from safetensors.torch import load_file, save_file

from jobs.errors import Cancelled
from jobs.ml import formats
from jobs.ml.errors import WithHint
from jobs.ml.formats import certify as certificates
from jobs.ml.formats.card import sentence
from jobs.ml.formats.certify import certify
from tests.ml.test_formats import WRITTEN, trained


@pytest.fixture(autouse=True)
def without_peers(monkeypatch) -> None:
    monkeypatch.delenv(certificates.PEERS, raising=False)


@pytest.mark.parametrize(("name", "architecture"), WRITTEN)
def test_a_certificate_by_the_formula_holds_and_says_that_no_peer_was_asked(tmp_path, name, architecture) -> None:
    sae = trained(architecture)
    formats.write(sae, tmp_path / "layers.3", name, reads=["blocks.3.hook_resid_post"])
    certificate = certify(sae, tmp_path / "layers.3", name)
    assert certificate.holds, certificate
    assert (certificate.by_peer, certificate.version, certificate.vectors) == (False, None, 256)
    assert certificate.active >= 1 and certificate.at_threshold == 0


def test_what_would_not_fit_into_memory_is_not_compared_and_says_what_it_would_need(tmp_path, monkeypatch) -> None:
    """A machine with too little is the one thing that no test can have."""
    sae = trained("jumprelu")
    formats.write(sae, tmp_path / "sae", "saelens", reads=["hook_embed"])
    needed = certificates.memory_needed(sae)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=needed - 1))
    found = certify(sae, tmp_path / "sae", "saelens")
    assert isinstance(found, certificates.Uncertified)
    assert found.as_json() == {
        "format": "saelens", "package": "sae-lens", "needed": needed, "available": needed - 1, "holds": False,
    }  # fmt: skip
    assert "not certified: comparing them in sae-lens would need" in sentence(found.as_json())
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=needed))
    assert certify(sae, tmp_path / "sae", "saelens").holds


@pytest.mark.parametrize("name", ["b_dec", "W_enc", "threshold"])
def test_files_that_compute_something_else_are_not_certified(tmp_path, name) -> None:
    sae = trained("jumprelu")
    formats.write(sae, tmp_path / "sae", "saelens", reads=["hook_embed"])
    path = tmp_path / "sae/sae_weights.safetensors"
    tensors = load_file(path)
    save_file(tensors | {name: tensors[name] * 1.01 + 1e-3}, path)
    assert not certify(sae, tmp_path / "sae", "saelens").holds


def test_an_sae_without_a_single_active_latent_is_not_certified(tmp_path) -> None:
    sae = trained("jumprelu")
    sae.threshold.data.fill_(1e30)
    formats.write(sae, tmp_path / "sae", "saelens", reads=["hook_embed"])
    assert not certify(sae, tmp_path / "sae", "saelens").holds


@pytest.fixture
def peers(tmp_path, monkeypatch):
    """A Python that says it has them, and then does as the test wishes."""

    def make(does: str) -> None:
        python = tmp_path / "python"
        python.write_text(f'#!/bin/sh\ncd "$(dirname "$0")"; env >> seen\n[ "$1" = -Ic ] && exit 0\n{does}\n')
        python.chmod(0o755)
        monkeypatch.setenv(certificates.PEERS, str(python))

    return make


@pytest.fixture
def topk(tmp_path):
    sae = trained("topk")
    formats.write(sae, tmp_path / "sae", "sparsify", reads=["hook_embed"])
    return sae


def test_a_peer_that_cannot_read_the_files_says_why(tmp_path, topk, peers, monkeypatch) -> None:
    peers("echo 'ValueError: no such thing' >&2; exit 1")
    with pytest.raises(WithHint, match="eai-sparsify cannot read what was written: ValueError: no such thing"):
        certify(topk, tmp_path / "sae", "sparsify")
    monkeypatch.setenv(certificates.PEERS, "/nowhere/python")
    with pytest.raises(WithHint, match="cannot be asked") as caught:
        certify(topk, tmp_path / "sae", "sparsify")
    assert certificates.PEERS in caught.value.hint


def test_where_the_named_python_has_no_such_peer_the_formula_is_used(tmp_path, topk, monkeypatch) -> None:
    """This Python has none of them. A folder of that name where it looks is none either."""
    (tmp_path / "sparsify").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    for named in (sys.executable, ""):
        monkeypatch.setenv(certificates.PEERS, named)
        certificate = certify(topk, tmp_path / "sae", "sparsify")
        assert certificate.holds and not certificate.by_peer


def test_a_peer_is_asked_no_longer_than_the_job_is_wanted(tmp_path, topk, peers) -> None:
    peers("echo $$ > mine; mv mine pid; exec sleep 60")

    def check() -> None:
        if (tmp_path / "pid").exists():
            raise Cancelled

    with pytest.raises(Cancelled):
        certify(topk, tmp_path / "sae", "sparsify", check)
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


def test_a_peer_that_does_not_answer_is_given_up(tmp_path, topk, peers, monkeypatch) -> None:
    monkeypatch.setattr(certificates, "SECONDS", 0.3)
    peers("exec sleep 60")
    with pytest.raises(WithHint, match="eai-sparsify did not answer"):
        certify(topk, tmp_path / "sae", "sparsify")


def test_the_peer_is_not_handed_what_it_need_not_know(tmp_path, topk, peers, monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret_secret")
    peers("exit 1")
    with pytest.raises(WithHint):
        certify(topk, tmp_path / "sae", "sparsify")
    seen = (tmp_path / "seen").read_text()
    assert seen.count("HF_HUB_OFFLINE") == 2 and "hf_secret" not in seen
