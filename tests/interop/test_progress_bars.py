"""Progress bars of tqdm and rich over a stream, and the repr of ringmill's objects."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Iterator

import pytest
from rich.console import Console
from rich.progress import Progress
from tqdm import tqdm

from ringmill import (
    Hub,
    Operation,
    PoolExecutor,
    PoolNotRunning,
    RingBuffer,
    Stream,
    SubscriptionRing,
    Task,
    TaskWorker,
    Worker,
    WorkerPool,
)
from tests.threads import wait_until


class Number(Operation):
    pass


class Nothing(Worker[Number]):
    def process(self, op: Number) -> None: ...


@pytest.fixture
def pool() -> Iterator[WorkerPool[Number]]:
    with WorkerPool([Nothing(), Nothing()], name="numbers") as pool:
        yield pool


def some(count: int) -> list[Number]:
    return [Number() for _ in range(count)]


def test_a_stream_knows_how_many_come_and_how_many_are_ready(pool: WorkerPool[Number]) -> None:
    stream = pool.execute(some(7))
    assert stream.total == 7
    wait_until(lambda: stream.ready == 7)
    next(stream)
    assert (stream.total, stream.ready) == (7, 6)
    endless = pool.wrap(iter(some(3)))
    assert endless.total is None
    assert len(list(endless)) == 3
    assert endless.total == 3


@pytest.mark.parametrize("kind", ["execute", "wrap"])
def test_tqdm_counts_a_stream_to_its_end(pool: WorkerPool[Number], kind: str) -> None:
    out = io.StringIO()
    stream: Stream[Number] = pool.execute(some(50)) if kind == "execute" else pool.wrap(some(50))
    with tqdm(stream, total=stream.total or 50, file=out, mininterval=0) as bar:
        assert len(list(bar)) == 50
        assert bar.n == bar.total == 50
    assert "50/50" in out.getvalue()


def test_tqdm_learns_the_total_of_a_stream_where_it_is_known(pool: WorkerPool[Number]) -> None:
    for stream, total in ((pool.execute(some(50)), 50), (pool.wrap(some(50)), None)):
        with tqdm(stream, file=io.StringIO()) as bar:
            assert bar.total == total
            assert len(list(bar)) == bar.n == 50


def test_rich_counts_a_stream_to_its_end(pool: WorkerPool[Number]) -> None:
    console = Console(file=io.StringIO(), width=80)
    with Progress(console=console, auto_refresh=False) as progress:
        stream = pool.execute(some(50))
        assert len(list(progress.track(stream, total=stream.total))) == 50
        assert progress.tasks[0].completed == progress.tasks[0].total == 50


def test_objects_say_their_state_and_counts(pool: WorkerPool[Number]) -> None:
    gate, begun = threading.Event(), threading.Event()
    ring: RingBuffer[int] = RingBuffer(3)
    ring.put(1)
    assert repr(ring) == "<RingBuffer open, 1 of 3>"
    ring.close()
    assert repr(ring) == "<RingBuffer closed, 1 of 3>"
    assert re.fullmatch(r"<Number pending at 0x[0-9a-f]+>", repr(Number()))
    stream = pool.execute(some(2))
    wait_until(lambda: stream.ready == 2)
    assert repr(stream) == "<Stream closed, 2 ready, 0 read of 2>"
    assert repr(pool) == "<WorkerPool 'numbers' running, 2 workers>"
    hub: Hub[int] = Hub(buffer=2)
    subscription = hub.subscribe()
    hub.signal(1)
    assert repr(hub) == "<Hub open, 1 subscriptions>"
    assert repr(subscription) == f"<Subscription {subscription.id} open, block, 1 of 2, 0 dropped>"
    circle: SubscriptionRing[str] = SubscriptionRing()
    circle.add("a")
    assert repr(circle) == "<SubscriptionRing of 1, current 'a'>"

    def wait() -> None:
        begun.set()
        gate.wait()

    busy = WorkerPool([TaskWorker()], name="busy")
    assert repr(busy) == "<WorkerPool 'busy' not started, 1 workers>"
    with busy:
        for _ in range(3):
            busy.do(Task(wait))
        begun.wait()
        assert repr(busy) == "<WorkerPool 'busy' running, 1 workers, 2 queued, 1 running>"
        gate.set()
    assert repr(busy) == "<WorkerPool 'busy' stopped, 1 workers>"
    with PoolExecutor(2) as executor:
        assert repr(executor) == "<PoolExecutor open, 2 workers, 0 pending, 0 running>"
    assert repr(executor) == "<PoolExecutor shut down, 2 workers, 0 pending, 0 running>"


def test_errors_say_what_to_do() -> None:
    pool = WorkerPool([TaskWorker()])
    with pytest.raises(PoolNotRunning, match=r"not running: call start\(\)"):
        pool.do(Task(len, "a"))
    with pytest.raises(ValueError, match="max must be at least 1, got 0"):
        RingBuffer(1).get_many(max=0)
    with pytest.raises(TypeError, match=r"got a single Worker: .*put it into a list"):
        WorkerPool(TaskWorker())  # type: ignore[arg-type]
