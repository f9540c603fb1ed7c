import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from jobs.context import Context
from jobs.kinds import export_sae
from jobs.ml import disk, neuronpedia
from jobs.ml.errors import CorruptData
from jobs.ml.saelens import load_sae, save_sae
from tests.ml.test_evaluate import SITE, random_sae
from tests.ml.test_scan import found, shards  # noqa: F401  fixtures

ABOUT = {"name": "My SAE", "model": "openai-community/GPT2", "reads": ["blocks.1.hook_resid_post"], "dataset": "texts"}


@pytest.fixture(scope="module")
def written(found, shards, tmp_path_factory):  # noqa: F811
    home = tmp_path_factory.mktemp("neuronpedia")
    save_sae(random_sae().folded(), home / "sae", reads=[SITE] if isinstance(SITE, str) else SITE)
    (home / "vocabulary.json").write_text(json.dumps([f"<{n}>" for n in range(300)]))
    neuronpedia.BATCH, old = 16, neuronpedia.BATCH
    source = neuronpedia.opened(found[0].folder, shards.folder, home / "sae", home, about=ABOUT)
    inner = neuronpedia.write_batches(home / "out", source, ABOUT)
    neuronpedia.BATCH = old
    return home / "out" / inner, found[0], shards


def features(folder: Path) -> list[dict]:
    batches = sorted(folder.glob("batch-*.json"), key=lambda path: int(path.stem[6:]))
    return [feature for path in batches for feature in json.loads(path.read_text())["features"]]


def test_batches_hold_the_features_that_fire_and_name_those_that_do_not(written) -> None:
    folder, evidence, _ = written
    assert folder.parts[-2:] == ("gpt2", "1-my-sae")
    fired = np.flatnonzero(np.asarray(evidence.n_fired)).tolist()
    assert [feature["feature_index"] for feature in features(folder)] == fired
    skipped = json.loads((folder / "skipped_indexes.json").read_text())
    assert sorted(skipped["skipped_indexes"] + fired) == list(range(evidence.width))
    first = json.loads((folder / "batch-0.json").read_text())
    assert (first["model_id"], first["layer"], first["sae_set"]) == ("gpt2", 1, "my-sae")
    assert len(first["features"]) == min(16, len(fired))


def test_a_feature_says_what_the_evidence_says(written) -> None:
    folder, evidence, tokens = written
    for feature in features(folder):
        index = feature["feature_index"]
        assert feature["frac_nonzero"] == pytest.approx(len(evidence.activations(index)[0]) / evidence.n_tokens)
        assert sum(feature["freq_hist_data_bar_heights"]) == evidence.n_fired[index]
        strongest = np.argsort(-np.abs(feature["vector"]))[:3].tolist()
        assert feature["neuron_alignment_indices"] == strongest
        top = [one for one in feature["activations"] if one["bin_contains"] == -1]
        assert [max(one["values"]) for one in top] == sorted((max(one["values"]) for one in top), reverse=True)
        assert max(top[0]["values"]) == pytest.approx(float(evidence.max[index]), abs=1e-5)
        for one in feature["activations"]:
            assert len(one["tokens"]) == len(one["values"]) <= tokens.context_length
            assert one["values"][one["qualifying_token_index"]] == max(one["values"])
            low = max(0.0, one["bin_min"])
            assert low - 1e-4 <= max(one["values"]) <= one["bin_max"] + 1e-4


def test_the_vector_is_the_decoder_row_and_the_strings_are_what_it_writes_to_the_logits(written) -> None:
    folder, evidence, _ = written
    rows = load_sae(folder.parents[2] / "sae").W_dec
    told = {feature["feature_index"]: feature for feature in features(folder)}
    assert len({tuple(feature["vector"]) for feature in told.values()}) == len(told) > 1
    for index, feature in told.items():
        assert feature["vector"] == rows[index].tolist()
        for side, sign in (("top", "pos"), ("bottom", "neg")):
            known = evidence.logits(index)[side]
            assert feature[f"{sign}_str"] == [f"<{token}>" for token, _ in known] and len(known) == 10
            assert feature[f"{sign}_values"] == pytest.approx([value for _, value in known], abs=6e-6)
        positive, negative = feature["pos_values"], feature["neg_values"]
        assert positive == sorted(positive, reverse=True) and negative == sorted(negative)
        assert negative[-1] < positive[-1]


def test_the_shares_of_the_intervals_add_up_to_all_activations(written) -> None:
    folder, _, _ = written
    for feature in features(folder):
        parts = {one["bin_min"]: one["bin_contains"] for one in feature["activations"] if one["bin_contains"] != -1}
        assert 0 < sum(parts.values()) <= 1 + 1e-9


def test_what_was_not_measured_is_empty_and_not_invented(written) -> None:
    feature = features(written[0])[0]
    for name in ("correlated_neurons_indices", "correlated_features_pearson", "logits_hist_data_bar_heights"):
        assert feature[name] == []


def test_the_bytes_are_estimated_before_they_are_written(written, monkeypatch) -> None:
    folder, evidence, tokens = written
    home = folder.parents[2]
    source = neuronpedia.opened(evidence.folder, tokens.folder, home / "sae", home, about=ABOUT)
    monkeypatch.setattr(neuronpedia, "WEIGHED", 4)
    assert len(source.alive) > 16
    really = sum(path.stat().st_size for path in folder.glob("batch-*.json"))
    assert neuronpedia.estimated_bytes(source) == pytest.approx(really, rel=0.2)


def test_an_export_for_which_the_disk_is_too_small_says_so_at_once(written, monkeypatch) -> None:
    """A disk that is just as large as the SAE's own export would need."""
    folder, evidence, tokens = written
    home = folder.parents[2]
    free = disk.RESERVE + 2 * export_sae.weight(home / "sae")
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free))
    places = {"scan_folder": str(evidence.folder), "tokens_folder": str(tokens.folder), "model_folder": str(home)}
    own = export_sae.Params(str(home / "sae"), str(home / "sent"), "neuronpedia", ABOUT, **places)
    with pytest.raises(disk.DiskFull, match="The export needs"):
        export_sae.run(own, Context(1, 1, export_sae.STAGES))
    assert not (home / "sent").exists()


def test_a_scan_whose_files_are_gone_is_refused(tmp_path, shards) -> None:  # noqa: F811
    with pytest.raises(CorruptData, match="not whole") as caught:
        neuronpedia.opened(tmp_path, shards.folder, tmp_path, tmp_path, about=ABOUT)
    assert caught.value.hint == "Scan the SAE again."
