"""Every format, out and in, against the library whose format it is:

MISTUDIO_PEERS=/path/to/python pytest -m peers tests/peers/test_formats.py
"""

import pytest
import torch

from jobs.ml import formats
from jobs.ml.formats.certify import ask_peer, certify, copied
from tests.ml import foreign
from tests.ml.foreign import D, difference, inputs
from tests.ml.test_formats import WRITTEN, trained

pytestmark = pytest.mark.peers
CLOSE = 1e-5
NOT_THEIRS = {  # what is read here, and by no peer of today
    "saelens-flat-scaled": "SAELens 6 reads no factors of codes",
    "llamascopium-uneven": "SAELens leaves the norms of the decoder rows out",
    **dict.fromkeys(foreign.LETTERS, "SAELens does not know these names"),
}


@pytest.mark.parametrize(("name", "architecture"), WRITTEN)
def test_the_peer_loads_what_is_exported_and_computes_the_same(peers, tmp_path, name, architecture) -> None:
    sae = trained(architecture)
    formats.write(sae, tmp_path / "layers.3", name, reads=["blocks.3.hook_resid_post"], model_name="gpt2")
    certificate = certify(sae, tmp_path / "layers.3", name)
    assert certificate.by_peer and certificate.version
    assert certificate.holds, certificate
    assert certificate.at_threshold == 0


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize(
    ("name", "architecture"), [("sparsify", "topk"), ("saelens", "jumprelu"), ("saelens", "standard")]
)
def test_the_peer_loads_an_exported_transcoder(peers, tmp_path, name, architecture, skip) -> None:
    sae = trained(architecture, centred=False, skip=skip)
    sites = {"reads": ["module:model.layers.3.mlp:input"], "writes": ["blocks.3.hook_mlp_out"]}
    formats.write(sae, tmp_path / "layers.3.mlp", name, **sites)
    assert certify(sae, tmp_path / "layers.3.mlp", name).holds


@pytest.mark.parametrize("site", ["blocks.3.hook_z", "blocks.3.hook_z.1", "module:model.layers.3.mlp"])
def test_saelens_loads_an_export_of_any_site(peers, tmp_path, site) -> None:
    sae = trained("topk")
    formats.write(sae, tmp_path / "sae", "saelens", reads=[site])
    assert certify(sae, tmp_path / "sae", "saelens").holds


@pytest.mark.parametrize("name", [name for name in foreign.MADE if name not in NOT_THEIRS])
def test_a_foreign_sae_computes_here_what_it_computes_in_its_own_library(peers, tmp_path, name) -> None:
    """Up to the norms of the decoder rows, which are ones here."""
    foreign.MADE[name](tmp_path / "sae")
    sae, facts = formats.read(tmp_path / "sae")
    x = inputs(D).double()
    codes, x_hat, _ = ask_peer(peers, tmp_path / "sae", facts.format, x)
    ours = copied(sae)
    assert difference(ours(x), x_hat) < CLOSE
    mine = ours.encode(x)
    assert torch.equal(mine != 0, codes != 0)
    norms = (mine.sum(0) / codes.sum(0)).nan_to_num(1.0)
    assert difference(codes * norms, mine) < CLOSE
