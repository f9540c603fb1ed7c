import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.ml.activations import ActivationStream, NonFiniteActivations
from jobs.ml.sites import UnknownSite, capture
from jobs.ml.tokens import TokenShards
from tests.ml.tiny import tiny_model

SITE = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def shards(tokens) -> TokenShards:
    return TokenShards(tokens)


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


def stream(model, shards, **options) -> ActivationStream:
    return ActivationStream(model, SITE, shards, **{"batch_tokens": 100, "buffer_tokens": 640, "seed": 1} | options)


def read(source: ActivationStream, step: int) -> torch.Tensor:
    return source.batch(step)[SITE]


def every_activation(model, shards, keep_special: bool = False) -> torch.Tensor:
    ids, special = shards.rows(range(shards.n_sequences))
    x = torch.cat([capture(model, SITE, part) for part in torch.from_numpy(ids).long().split(8)]).flatten(0, 1)
    return x if keep_special else x[~torch.from_numpy(special).flatten()]


def sorted_rows(x: torch.Tensor) -> np.ndarray:
    x = x.numpy().round(4) + 0.0
    return x[np.lexsort(x.T[::-1])]


@pytest.mark.parametrize("skip_special", [True, False])
def test_an_epoch_has_every_token_that_counts_exactly_once(model, shards, skip_special) -> None:
    wanted = every_activation(model, shards, keep_special=not skip_special)
    source = stream(model, shards, batch_tokens=1, skip_special=skip_special)
    assert source.tokens_per_epoch == len(wanted)
    batch = max(n for n in range(1, 200) if len(wanted) % n == 0)
    source = stream(model, shards, batch_tokens=batch, skip_special=skip_special)
    got = torch.cat([read(source, step) for step in range(len(wanted) // batch)])
    assert np.allclose(sorted_rows(got), sorted_rows(wanted), atol=2e-4)


def test_every_batch_has_the_size_asked_for_also_where_chunks_and_epochs_meet(model, shards) -> None:
    source = stream(model, shards)
    steps = source.tokens_per_epoch // 100 + 3
    assert all(read(source, step).shape == (100, 32) for step in range(steps))


def test_a_batch_does_not_depend_on_those_read_before_it(model, shards) -> None:
    running = stream(model, shards)
    steps = running.tokens_per_epoch // 100 + 5
    batches = [read(running, step).clone() for step in range(steps)]
    for step in (0, 7, 13, steps - 5, steps - 1):
        assert torch.equal(read(stream(model, shards), step), batches[step])
    assert torch.equal(read(running, 3), batches[3])  # back again


def test_epochs_and_seeds_differ_in_order(model, shards) -> None:
    n = stream(model, shards).tokens_per_epoch
    source = stream(model, shards, batch_tokens=n)
    first, second = read(source, 0), read(source, 1)
    assert not torch.equal(first, second)
    assert np.allclose(sorted_rows(first), sorted_rows(second), atol=2e-4)
    assert not torch.equal(first, read(stream(model, shards, batch_tokens=n, seed=2), 0))


def test_tokens_of_one_sequence_are_spread_over_the_batches_of_a_chunk(model, shards) -> None:
    source = stream(model, shards, batch_tokens=60)
    rows = source._rows_and_ends(0)[0][: source.chunk_rows]
    ids, special = shards.rows(rows[:1])
    own = capture(model, SITE, torch.from_numpy(ids).long()).flatten(0, 1)[~torch.from_numpy(special).flatten()]
    hits = [torch.cdist(own, read(source, step)).min(1).values < 1e-3 for step in range(9)]
    assert sum(bool(hit.any()) for hit in hits) >= 5


def test_preparing_a_batch_pauses_after_every_forward_pass(model, shards) -> None:
    source = stream(model, shards, model_batch=4)
    pauses = sum(1 for _ in source.prepare(0))
    assert pauses == source.chunk_rows / 4
    assert sum(1 for _ in source.prepare(0)) == 0


def test_a_fill_that_was_given_up_is_gone_on_with(model, shards) -> None:
    wanted = read(stream(model, shards, model_batch=4), 0).clone()
    source = stream(model, shards, model_batch=4)
    next(source.prepare(0))
    assert sum(1 for _ in source.prepare(0)) == source.chunk_rows / 4 - 1
    assert torch.equal(read(source, 0), wanted)


def test_what_was_read_ahead_is_there_when_its_chunk_begins(model, shards) -> None:
    source, alone = stream(model, shards), stream(model, shards)
    first = next(step for step in range(20) if list(alone.prepare(step)) and step)  # that needs another chunk
    read(source, first - 1)
    assert sum(1 for _ in source.ahead(first + 1)) == source.chunk_rows / source.model_batch
    assert list(source.prepare(first)) == []
    assert torch.equal(read(source, first), read(alone, first))


def test_what_is_at_hand_can_be_had_between_two_passes_for_the_next_chunk(model, shards) -> None:
    source, alone = stream(model, shards), stream(model, shards)
    first = next(step for step in range(20) if list(alone.prepare(step)) and step)
    assert not source.at_hand(0)
    read(source, 0)
    ahead = source.ahead(first + 1)
    for step in range(1, first):
        next(ahead, None)
        assert source.at_hand(step)
        assert torch.equal(read(source, step), read(alone, step))
    assert not source.at_hand(first)
    assert list(ahead)
    assert source.at_hand(first)
    assert torch.equal(read(source, first), read(alone, first))


def test_a_chunk_is_let_go_before_the_next_one_is_filled(model, shards) -> None:
    source = stream(model, shards)
    step = next(step for step in range(20) if len(list(source.spans(step))) == 2)
    read(source, step - 1)
    chunk = weakref.ref(source._chunks[source._reading])
    filling = source.prepare(step)
    next(filling)
    assert chunk() is None


def test_nothing_is_read_ahead_for_steps_that_never_come(model, shards) -> None:
    source = stream(model, shards)
    read(source, 0)
    assert list(source.ahead(1)) == []


def test_the_next_epoch_is_read_ahead_from_the_last_chunk_of_one(model, shards) -> None:
    source = stream(model, shards)
    last = source.tokens_per_epoch // 100 - 1
    read(source, last)
    assert list(source.ahead(last + 20))
    assert torch.equal(read(source, last + 1), read(stream(model, shards), last + 1))


def test_activations_that_are_no_numbers_are_an_error_with_site_and_step(shards) -> None:
    model = tiny_model("llama")
    model.model.layers[1].mlp.down_proj.weight[0, 0] = torch.inf
    with pytest.raises(NonFiniteActivations, match=r"blocks.1.hook_resid_post gave .* at step 12"):
        read(stream(model, shards), 12)


def test_what_is_no_number_is_told_when_it_is_needed_and_not_when_it_is_read_ahead(shards) -> None:
    source = stream(tiny_model("llama"), shards)
    read(source, 0)
    source.model.model.layers[1].mlp.down_proj.weight[0, 0] = torch.inf
    assert list(source.ahead(60))
    read(source, 1)
    with pytest.raises(NonFiniteActivations):
        read(source, 12)


def test_a_site_that_is_none_is_an_error_before_anything_is_run(model, shards) -> None:
    with pytest.raises(UnknownSite):
        ActivationStream(model, "blocks.9.hook_resid_post", shards)


def test_an_empty_split_is_an_error(model, tmp_path: Path) -> None:
    from tests.ml.test_packing import documents, quickly

    quickly(documents(50), tmp_path, held_out=0.0)
    with pytest.raises(ValueError, match="no tokens to read in the held_out split"):
        stream(model, TokenShards(tmp_path, "held_out"))
