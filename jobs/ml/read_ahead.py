"""Reading while the step before is computed, in a thread of its own: what is read runs the language model."""

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from threading import Event
from types import TracebackType
from typing import Protocol, Self

from torch import Tensor

LISTEN = 0.2  # seconds between two looks at what is being read
Batch = Mapping[str, Tensor]


class Readable(Protocol):
    def at_hand(self, step: int) -> bool: ...

    def prepare(self, step: int) -> Iterator[None]: ...

    def batch(self, step: int) -> Batch: ...

    def ahead(self, steps: int) -> Iterator[None]: ...


class ReadAhead:
    """The stream, with a thread that reads the batch of the next step while one is learnt from, and then ahead until it
    is asked for what is not at hand. Without that a step would wait for a whole chunk now and then, and the others for
    nothing."""

    def __init__(self, stream: Readable, steps: int) -> None:
        """steps: how many there are; 0 reads nothing ahead."""
        self.stream, self.steps = stream, steps
        self.pool = ThreadPoolExecutor(1, "read-ahead")
        self.asked, self.left = Event(), Event()  # for something else; for nothing more
        self.work: Future[None] | None = None
        self.coming: Future[Batch] | None = None  # the batch that was asked for

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.left.set()
        self.asked.set()
        self.pool.shutdown()

    def ask(self, step: int) -> None:
        """For the batch of this step: where the thread is reading ahead and the batch is at hand, it goes on."""
        had = self.coming is not None and self.coming.done()  # so that the thread reads ahead, if it reads at all
        self.coming = Future() if step < self.steps else None
        if self.coming and had and self.work and not self.work.done() and self.stream.at_hand(step):
            self.take(step, self.coming)
            return
        self.asked.set()
        self.asked = Event()
        if self.coming:
            self.work = self.pool.submit(self.read, step, self.coming, self.asked)

    def prepare(self, step: int) -> Iterator[None]:
        """Until batch(step) can be told at once, with stops for the caller to listen."""
        if self.coming is None:
            self.rest()
            yield from self.stream.prepare(step)
        while self.coming and not wait([self.coming], LISTEN).done:
            yield

    def batch(self, step: int) -> Batch:
        """Of the step that was asked for last, or of any where none was."""
        return self.coming.result() if self.coming else self.stream.batch(step)

    def rest(self) -> None:
        """Until it is asked again, the language model can be used by others."""
        self.asked.set()
        if self.work:
            wait([self.work])

    def read(self, step: int, coming: "Future[Batch]", asked: Event) -> None:
        if not self.take(step, coming):
            return
        with suppress(Exception):  # what fails here fails again where it is needed, and is told there
            for _ in self.stream.ahead(self.steps):
                if asked.is_set():
                    return

    def take(self, step: int, coming: "Future[Batch]") -> bool:
        """Whether it could be read."""
        try:
            for _ in self.stream.prepare(step):
                if self.left.is_set():
                    return False
            coming.set_result(self.stream.batch(step))
        except BaseException as error:
            coming.set_exception(error)
            return False
        return True
