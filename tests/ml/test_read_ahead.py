import threading
import time

import pytest

from jobs.ml.read_ahead import ReadAhead


class Slow:
    """A stream whose passes last as long as the test wants."""

    def __init__(self) -> None:
        self.passes = threading.Semaphore(0)
        self.said: list[str] = []
        self.lying: set[int] = set()  # batches that need no pass

    def one(self, what: str):
        assert self.passes.acquire(timeout=10)
        self.said.append(what)
        yield

    def at_hand(self, step):
        return step in self.lying

    def prepare(self, step):
        if step == 3:
            raise ValueError("step 3 cannot be read")
        if step in self.lying:
            return
        yield from self.one(f"batch {step}")
        yield from self.one(f"batch {step}")

    def batch(self, step):
        return {"x": step}

    def ahead(self, steps):
        while True:
            yield from self.one("ahead")


@pytest.fixture
def slow():
    return Slow()


def until(condition) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def free(slow: Slow, passes: int) -> None:
    for _ in range(passes):
        slow.passes.release()


def test_a_batch_that_was_asked_for_comes_from_the_thread_and_others_from_the_stream(slow) -> None:
    free(slow, 20)
    slow.ahead = lambda steps: iter(())
    with ReadAhead(slow, steps=5) as reader:
        assert len(list(reader.prepare(0))) == 2
        assert reader.batch(0) == {"x": 0}
        reader.ask(1)
        list(reader.prepare(1))
        assert reader.batch(1) == {"x": 1}
        reader.ask(5)  # there is none
        assert len(list(reader.prepare(5))) == 2


def test_reading_ahead_ends_after_one_pass_when_the_next_batch_is_asked_for(slow) -> None:
    with ReadAhead(slow, steps=9) as reader:
        free(slow, 3)
        reader.ask(1)
        list(reader.prepare(1))
        reader.ask(2)
        free(slow, 3)
        list(reader.prepare(2))
        assert slow.said[-2:] == ["batch 2", "batch 2"]
        assert slow.said.count("ahead") <= 2
        free(slow, 20)


def test_a_batch_at_hand_is_had_while_a_pass_for_later_ones_is_on_its_way_and_that_goes_on(slow) -> None:
    slow.lying = {2}
    with ReadAhead(slow, steps=9) as reader:
        free(slow, 2)
        reader.ask(1)
        list(reader.prepare(1))  # from here on it waits in a pass for later batches
        reader.ask(2)
        assert list(reader.prepare(2)) == []
        assert reader.batch(2) == {"x": 2}
        assert slow.said == ["batch 1", "batch 1"]
        free(slow, 3)
        until(lambda: slow.said[2:] == ["ahead"] * 3)
        assert not reader.work.done()
        threading.Timer(0.05, free, (slow, 1)).start()


def test_who_rests_leaves_the_model_to_others(slow) -> None:
    with ReadAhead(slow, steps=9) as reader:
        reader.ask(1)
        threading.Timer(0.05, free, (slow, 3)).start()
        reader.rest()
        assert reader.work.done()
        assert slow.said[:2] == ["batch 1", "batch 1"]


def test_who_leaves_does_not_wait_for_a_whole_batch(slow) -> None:
    reader = ReadAhead(slow, steps=9)
    with reader:
        reader.ask(1)
        free(slow, 1)
        threading.Timer(0.05, free, (slow, 1)).start()
    assert slow.said in (["batch 1"], ["batch 1"] * 2)
    assert not reader.coming.done()


def test_what_goes_wrong_is_told_to_who_asked(slow) -> None:
    with ReadAhead(slow, steps=9) as reader:
        reader.ask(3)
        list(reader.prepare(3))
        with pytest.raises(ValueError, match="step 3"):
            reader.batch(3)


def test_what_goes_wrong_ahead_is_left_for_when_it_is_needed(slow) -> None:
    def fails(steps):
        raise MemoryError("not now")
        yield

    slow.ahead = fails
    free(slow, 4)
    with ReadAhead(slow, steps=9) as reader:
        for step in (1, 2):
            reader.ask(step)
            list(reader.prepare(step))
            assert reader.batch(step) == {"x": step}
