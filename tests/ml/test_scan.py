import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.ml import feature_statistics
from jobs.ml import scan as scan_module
from jobs.ml.architectures import build
from jobs.ml.directions import final_norm, logits
from jobs.ml.evidence import Evidence
from jobs.ml.sae import Sae
from jobs.ml.scan import scan
from jobs.ml.sites import capture, resolve
from jobs.ml.tokens import TokenShards
from tests.files import contents
from tests.ml.test_evaluate import SITE, D, M, everything, random_sae
from tests.ml.tiny import DECODERS, killed_at, tiny_model

T = 16


@pytest.fixture(scope="module")
def shards(tokens) -> TokenShards:
    return TokenShards(tokens, "held_out")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch) -> None:
    monkeypatch.setattr("jobs.ml.scan.CHUNK_TOKENS", 500)
    monkeypatch.setattr("jobs.ml.feature_statistics.BLOCK", 700)


def quickly(shards: TokenShards, folder: Path, sae: Sae | None = None, model=None, **options) -> dict:
    options = {"tokens": 10**6, "reads": SITE, "shards": shards, "folder": folder} | options
    return scan(model or tiny_model("gpt2"), sae or random_sae(), **options)


def dense(shards: TokenShards, sae: Sae) -> torch.Tensor:
    """f [sequences, T, M], zero at special tokens"""
    ids, special = everything(None, shards)
    x = torch.cat([capture(tiny_model("gpt2"), SITE, part) for part in ids.split(8)])
    f = sae.encode(x.flatten(0, 1)).view(*ids.shape, M)
    f[special] = 0
    return f


@pytest.fixture(scope="module")
def found(shards, tmp_path_factory) -> tuple[Evidence, torch.Tensor, dict]:
    folder = tmp_path_factory.mktemp("scan") / "scan"
    chunk, scan_module.CHUNK_TOKENS = scan_module.CHUNK_TOKENS, 500
    counts = quickly(shards, folder)
    scan_module.CHUNK_TOKENS = chunk
    return Evidence(folder), dense(shards, random_sae()), counts


def test_the_evidence_is_the_codes_of_all_tokens_feature_by_feature(found) -> None:
    evidence, f, _ = found
    flat = f.flatten(0, 1)
    for index in range(M):
        positions, values = evidence.activations(index)
        wanted = flat[:, index].nonzero().flatten()
        assert positions.tolist() == wanted.tolist()
        assert np.allclose(values, flat[wanted, index], rtol=1e-4, atol=1e-4)
    assert evidence.positions.dtype == np.uint32
    assert len(evidence.positions) == (f > 0).sum()


def test_the_statistics_are_those_of_the_codes(found) -> None:
    evidence, f, counts = found
    flat = f.flatten(0, 1)
    fired = (flat > 0).sum(0)
    assert evidence.n_fired.tolist() == fired.tolist()
    assert np.allclose(evidence.max, flat.max(0).values, rtol=1e-4)
    assert np.allclose(evidence.mean, flat.sum(0) / fired.clamp_min(1), rtol=1e-4)
    assert np.allclose(evidence.density, fired / evidence.n_tokens)
    assert counts["alive"] == (fired > 0).sum()
    assert counts["dead"] == (fired == 0).sum() > 0
    assert counts["dense"] == (fired > 0.1 * evidence.n_tokens).sum() > 0
    assert counts["activations"] == fired.sum()


def test_special_tokens_are_not_counted(found, shards) -> None:
    evidence, _, counts = found
    ids, special = everything(None, shards)
    assert evidence.n_tokens == counts["tokens"] == (~special).sum()
    assert not special.flatten()[torch.from_numpy(evidence.positions.astype(np.int64))].any()


def test_a_histogram_has_every_activation_once_between_zero_and_the_maximum(found) -> None:
    evidence, f, _ = found
    for index in range(M):
        counts, edges = evidence.histogram(index)
        own = f[..., index][f[..., index] > 0]
        assert counts.sum() == len(own) == evidence.n_fired[index]
        if len(own):
            assert counts[-1] >= 1
            wanted = np.histogram(evidence.activations(index)[1], bins=edges.astype(np.float64))[0]
            assert np.abs(counts - wanted).sum() <= 2  # a value on an edge may fall on either side


def test_the_top_sequences_are_those_with_the_largest_activations(found) -> None:
    evidence, f, _ = found
    peaks = f.max(1).values  # [sequences, M]
    for index in range(M):
        examples = evidence.examples(index)
        shown = [example.sequence for example in examples]
        assert len(set(shown)) == len(shown) == min(20, (peaks[:, index] > 0).sum())
        wanted = peaks[:, index].sort(descending=True).values[: len(shown)]
        assert np.allclose([example.peak for example in examples], wanted, rtol=1e-4)
        for example in examples[:3]:
            row = f[example.sequence, :, index]
            assert example.places.tolist() == row.nonzero().flatten().tolist()
            assert np.allclose(example.values, row[row > 0], rtol=1e-4, atol=1e-4)


def test_quantile_examples_peak_in_their_part_of_the_range(found) -> None:
    evidence, f, _ = found
    peaks = f.max(1).values
    for index in range(M):
        parts = evidence.quantile_examples(index)
        assert len(parts) == 5
        most = float(evidence.max[index])
        share = peaks[:, index] / max(most, 1e-9)
        for q, part in enumerate(parts):
            assert all(q / 5 - 1e-4 <= example.peak / most <= (q + 1) / 5 + 1e-4 for example in part)
            there = ((share > q / 5 + 1e-4) & (share < (q + 1) / 5 - 1e-4)).sum()
            assert len(part) >= min(5, there)
            assert len({example.sequence for example in part}) == len(part)


def test_reading_a_scan_needs_no_torch(found) -> None:
    evidence, _, _ = found
    code = (
        "import sys; from jobs.ml.evidence import Evidence; from jobs.ml.tokens import TokenShards; "
        f"e = Evidence({str(evidence.folder)!r}); e.examples(0); e.neighbours(0); e.logits(0); e.histogram(0); "
        "assert not {'torch', 'transformers', 'django'} & set(sys.modules), 'imported'"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_feature_that_does_not_exist_is_an_index_error(found) -> None:
    with pytest.raises(IndexError, match=f"from 0 to {M - 1}"):
        found[0].activations(M)


class Stop(Exception):
    pass


def test_a_scan_interrupted_anywhere_ends_with_the_same_bytes(shards, tmp_path) -> None:
    quickly(shards, tmp_path / "whole")
    attempts = 0

    def stop_after(n: int):
        calls = iter(range(n))

        def on_progress(done: int, total: int) -> None:
            if next(calls, None) is None:
                raise Stop

        return on_progress

    for attempts in range(20):
        try:
            quickly(shards, tmp_path / "broken", on_progress=stop_after(2 + 5 * attempts))
            break
        except Stop:
            continue
    assert attempts > 2
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


@pytest.mark.parametrize("calls", [1, 7], ids=["in the merge", "in the statistics"])
def test_a_scan_interrupted_while_it_sorts_reads_nothing_again(shards, tmp_path, calls) -> None:
    quickly(shards, tmp_path / "whole")
    shares: list[float] = []

    def stop_later(share: float) -> None:
        shares.append(share)
        if len(shares) == calls:
            raise Stop

    with pytest.raises(Stop):
        quickly(shards, tmp_path / "broken", on_sort=stop_later)
    assert shares == sorted(shares) and 0 < shares[-1] < 1
    kept = len(list((tmp_path / "broken" / "chunks").glob("chunk-*")))
    passes: list[int] = []
    quickly(shards, tmp_path / "broken", on_progress=lambda done, total: passes.append(done))
    assert len(passes) == kept > 1, "each chunk is passed over once"
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


def in_small_chunks(tokens: Path, folder: Path) -> None:
    scan_module.CHUNK_TOKENS, feature_statistics.BLOCK = 500, 700
    quickly(TokenShards(tokens, "held_out"), folder)


@pytest.mark.parametrize(
    ("name", "left"), [("write_tensors", 2), ("write_array", 3)], ids=["in the pass", "in the merge"]
)
def test_a_scan_killed_with_no_warning_ends_with_the_same_bytes(tokens, shards, tmp_path, name, left) -> None:
    whole_calls, calls = [], []
    quickly(shards, tmp_path / "whole", on_progress=lambda done, total: whole_calls.append(done))
    broken = tmp_path / "broken"
    assert killed_at(left, name, in_small_chunks, tokens, broken)
    kept = list((broken / "chunks").glob("chunk-*.safetensors"))
    assert len(kept) >= 2
    quickly(shards, broken, on_progress=lambda done, total: calls.append(done))
    assert len(calls) == len(whole_calls) - 3 * len(kept)  # the chunks that were there were not read again
    whole = contents(tmp_path / "whole")
    assert {name: data for name, data in contents(broken).items() if name in whole} == whole


def test_a_finished_scan_is_left_as_it_is_and_another_one_starts_clean(shards, tmp_path) -> None:
    first = quickly(shards, tmp_path)
    stamp = (tmp_path / "manifest.json").stat().st_mtime_ns
    assert quickly(shards, tmp_path) == first
    assert (tmp_path / "manifest.json").stat().st_mtime_ns == stamp
    assert quickly(shards, tmp_path, sae=random_sae(1), sae_sha256="other") != first


def test_a_dead_sae_gives_empty_evidence(shards, tmp_path) -> None:
    counts = quickly(shards, tmp_path, sae=build("topk", D, M, k=6).folded())
    assert (counts["alive"], counts["dead"], counts["dense"]) == (0, M, 0)
    evidence = Evidence(tmp_path)
    assert evidence.examples(5) == []
    assert evidence.quantile_examples(5) == [[]] * 5
    assert evidence.histogram(5)[0].sum() == 0
    assert len(evidence.activations(5)[0]) == 0


def test_neighbours_are_the_most_similar_decoder_rows_but_not_the_row_itself(found) -> None:
    evidence, _, _ = found
    rows = random_sae().W_dec
    cosines = rows @ rows.T
    for index in range(M):
        near = evidence.neighbours(index)
        assert index not in [other for other, _ in near]
        wanted = cosines[index].clone()
        wanted[index] = -2
        assert [cosine for _, cosine in near] == pytest.approx(wanted.topk(10).values.tolist(), abs=1e-5)


@pytest.mark.parametrize("kind", DECODERS)
def test_logits_are_what_a_small_step_in_the_last_stream_does(kind) -> None:
    """Measured on the model: a step along a decoder row, from where it does not change the norm's own scale."""
    model, sae = tiny_model(kind), random_sae()
    found = logits(model, sae, [resolve(model, "blocks.2.hook_resid_post")], n=300)
    norm, unembed = final_norm(model), model.get_output_embeddings()
    for index in (0, 50):
        row = sae.W_dec[index]
        across = row - row.mean()
        x = torch.randn(D, generator=torch.Generator().manual_seed(9))
        x = x - x.mean()
        x = x - (x @ across) / (across @ across) * across
        x = x / x.square().mean().sqrt()
        step = (unembed(norm(x + 0.01 * row)) - unembed(norm(x - 0.01 * row))) / 0.02
        ids, values = found["top"]
        ours = torch.zeros(300).scatter(0, ids[index], values[index])
        assert torch.allclose(ours, step - step.mean(), atol=1e-3 * step.abs().max().item())


def test_top_and_bottom_logits_are_the_ends_of_one_list(found) -> None:
    evidence, _, _ = found
    for index in range(5):
        ends = evidence.logits(index)
        top, bottom = ([value for _, value in ends[end]] for end in ("top", "bottom"))
        assert top == sorted(top, reverse=True)
        assert bottom == sorted(bottom)
        assert bottom[-1] < top[-1]


@pytest.mark.parametrize(("kind", "site"), [("gpt2", "blocks.1.hook_z"), ("bert", SITE)])
def test_logits_are_absent_where_they_mean_nothing(shards, tmp_path, kind, site) -> None:
    quickly(shards, tmp_path, model=tiny_model(kind), reads=site)
    assert Evidence(tmp_path).logits(0) is None
    assert Evidence(tmp_path).neighbours(0)


def test_all_tokens_can_be_counted(shards, tmp_path) -> None:
    counts = quickly(shards, tmp_path, skip_special=False)
    assert counts["tokens"] == shards.n_tokens


def test_fewer_tokens_are_read_when_fewer_are_asked_for(shards, tmp_path) -> None:
    assert quickly(shards, tmp_path, tokens=100)["sequences"] == 7
