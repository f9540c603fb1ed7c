import threading
import time

import pytest
from huggingface_hub import set_client_factory
from huggingface_hub.utils._http import default_client_factory

from jobs.ml.hub import Patience, fetch, look_up
from jobs.ml.pace import VARIABLE, Pace, keep_pace, limit, parse_rate
from tests.hub_server import HubServer


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("10 MB/s", 10**7),
        ("800kB", 800_000),
        ("1.5 MiB/s", 1_572_864),
        ("1 GB/s", 10**9),
        ("900000", 900_000),
        ("", None),
        ("  ", None),
    ],
)
def test_rates_are_read_with_their_units(text, rate):
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["10", "fast", "-1 MB/s", "0 MB/s", "1 kB/s", "10 Mb/s per job", "1e9 MB/s"])
def test_what_is_no_rate_or_too_slow_to_be_stopped_is_refused(text):
    with pytest.raises(ValueError, match="such as 10 MB/s"):
        parse_rate(text)


def test_two_that_load_at_once_share_the_rate(tmp_path):
    pace, took = Pace(1_000_000, tmp_path / "ledger"), []

    def load():
        for _ in range(5):
            pace.take(50_000)
        took.append(time.monotonic())

    began = time.monotonic()
    loaders = [threading.Thread(target=load) for _ in range(2)]
    [loader.start() for loader in loaders]
    [loader.join() for loader in loaders]
    assert 0.45 <= max(took) - began < 1.5  # 500,000 bytes at 1 MB/s


@pytest.mark.parametrize("left", [b"", b"torn", b"99999999999.0", b"1.0"])
def test_what_is_left_in_the_ledger_of_another_time_holds_nobody(tmp_path, left):
    (tmp_path / "ledger").write_bytes(left)
    began = time.monotonic()
    Pace(1_000_000, tmp_path / "ledger").take(1000)
    assert time.monotonic() - began < 0.5


def test_without_a_limit_nothing_is_slowed_down(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert limit() is None and keep_pace() is None


def test_a_fetch_keeps_to_the_limit(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, "1 MB/s")
    monkeypatch.setenv("MISTUDIO_DATA", str(tmp_path / "data"))
    with HubServer() as server:
        server.add("model", "owner/tiny", {"model.safetensors": b"w" * 700_000})
        assert keep_pace() is not None
        try:
            found = look_up("model", "owner/tiny", endpoint=server.url, patience=Patience(tries=1))
            began = time.monotonic()
            fetch(found, found.files[0], tmp_path, lambda n: None, Patience(tries=1))
            took = time.monotonic() - began
        finally:
            set_client_factory(default_client_factory)
    assert (tmp_path / "model.safetensors").stat().st_size == 700_000
    assert 0.65 <= took < 3
