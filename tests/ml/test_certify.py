"""What is certified where no peer is installed; tests/peers asks the peers themselves."""

import sys
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file, save_file

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


def test_a_peer_that_cannot_read_the_files_says_why(tmp_path, monkeypatch) -> None:
    """This Python, which has none of them, stands in for one whose peer is broken."""
    monkeypatch.setenv(certificates.PEERS, sys.executable)
    sae = trained("topk")
    formats.write(sae, tmp_path / "sae", "sparsify", reads=["hook_embed"])
    with pytest.raises(WithHint, match="eai-sparsify cannot read what was written: .*No module named 'sparsify'"):
        certify(sae, tmp_path / "sae", "sparsify")
    monkeypatch.setenv(certificates.PEERS, "/nowhere/python")
    with pytest.raises(WithHint, match="cannot be asked") as caught:
        certify(sae, tmp_path / "sae", "sparsify")
    assert certificates.PEERS in caught.value.hint


def test_the_peer_is_not_handed_what_it_need_not_know(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret_secret")
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nenv > "$(dirname "$0")/seen"\nexit 1\n')
    python.chmod(0o755)
    monkeypatch.setenv(certificates.PEERS, str(python))
    sae = trained("topk")
    formats.write(sae, tmp_path / "sae", "saelens", reads=["hook_embed"])
    with pytest.raises(WithHint):
        certify(sae, tmp_path / "sae", "saelens")
    assert "hf_secret" not in (tmp_path / "seen").read_text()
