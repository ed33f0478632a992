"""A typed use of ringmill, for `mypy --strict` and pyright; not run."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, assert_type

from ringmill import (
    Operation,
    Outcome,
    PoolExecutor,
    Results,
    RingBuffer,
    Stream,
    Task,
    TaskWorker,
    Worker,
    WorkerPool,
    exponential,
)

OpT = TypeVar("OpT", bound=Operation)


@dataclass(slots=True)
class Fetch(Operation):
    url: str
    body: bytes = b""


class Fetcher(Worker[Fetch]):
    retry_on = (OSError,)

    def process(self, op: Fetch) -> None:
        op.body = op.url.encode()

    def handle_error(self, error: BaseException, op: Fetch) -> None:
        print(op.url, error)


def use() -> None:
    ring: RingBuffer[int] = RingBuffer(8)
    ring.put(1)
    assert_type(ring.get(), int)
    assert_type(ring.get_many(max=3), list[int])
    assert_type(ring.put_many([1, 2]), int)
    assert_type(ring.clear(), int)
    named: RingBuffer[int] = RingBuffer(maxsize=8)
    assert_type(named.get_nowait(), int)

    with WorkerPool([Fetcher(), Fetcher()]) as pool:
        assert_type(pool, WorkerPool[Fetch])
        op = pool.do(Fetch("a"))
        assert_type(op, Fetch)
        assert_type(op.check(), Fetch)
        assert_type(op.outcome, Outcome)
        stream = pool.execute([Fetch("b")])
        assert_type(stream, Stream[Fetch])
        for fetch in stream:
            assert_type(fetch, Fetch)
        for fetch in pool.wrap(Fetch(str(n)) for n in range(3)):
            assert_type(fetch.body, bytes)
        assert_type(pool.shutdown(cancel_pending=True), list[Fetch])

    with WorkerPool([TaskWorker()]) as tasks:
        task = Task(len, "abc")
        tasks.do(task)
        assert_type(task.result(timeout=1), int)
        assert_type(task.exception(), BaseException | None)

    with PoolExecutor(4, "name", print, ("ready",), context=False) as executor:
        assert_type(executor, PoolExecutor)
        future = executor.submit(len, "abc")
        assert_type(future, Future[int])
        assert_type(future.result(timeout=1), int)
        assert_type(list(executor.map(len, ["a", "b"], timeout=1, buffersize=2)), list[int])
    other: Executor = executor
    other.shutdown(cancel_futures=True)


class Measurer(Worker[Any]):
    def process(self, op: str) -> int:
        return len(op)

    def handle_error(self, error: BaseException, op: str) -> None:
        print(op, error)


def items() -> Iterator[str]:
    yield "a"


def use_items() -> None:
    with WorkerPool(Measurer, 2, backoff=exponential(0.1, 30)) as pool:
        assert_type(pool, WorkerPool[Any])
        results = pool.map(["a", "bb"])
        assert_type(results, Results[Any])
        for result in results:
            assert_type(result, Any)
        lengths: list[int] = list(pool.map(items(), ordered=False, buffer=8, errors="skip"))
        named: Results[int] = pool.map(("a", "bb"), errors="return")
        for length in named:
            assert_type(length, int)
        with pool.map(range(3), errors="raise") as opened:
            assert_type(opened, Results[Any])
            assert_type(named.get(timeout=1), int)
            assert_type(named.get_many(max=3), list[int])
            assert_type(next(named), int)
            assert_type(named.total, int | None)
            assert_type(named.ready, int)
            stream: Stream[int] = named
        assert_type(list(pool.map(pool.map(items()))), list[Any])
        one: int = pool.call("a", timeout=1)
        assert_type(pool.call("a"), Any)
        print(lengths, one, stream)


def misuse_of_map(pool: WorkerPool[Any]) -> None:
    pool.map(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    pool.map([1], errors="ignore")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    pool.map([1], buffer="all")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    pool.map([1], 8)  # type: ignore[call-arg, arg-type]  # pyright: ignore[reportCallIssue]
    pool.call("a", timeout="1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


class ToUrl(Fetcher):
    def __init__(self, url: str) -> None:
        self.url = url


class Checked(Worker[OpT], Generic[OpT]):
    def process(self, op: OpT) -> None:
        op.check()


def make() -> Fetcher:
    return Fetcher()


def several() -> Iterator[Fetcher]:
    yield Fetcher()


def factories(many: int | None) -> None:
    assert_type(WorkerPool(Fetcher), WorkerPool[Fetch])
    assert_type(WorkerPool(Fetcher, 8), WorkerPool[Fetch])
    assert_type(WorkerPool(Fetcher, count=many, queue_size=8), WorkerPool[Fetch])
    assert_type(WorkerPool(lambda: ToUrl("a"), 8), WorkerPool[Fetch])
    assert_type(WorkerPool(make, 8, name="a"), WorkerPool[Fetch])
    assert_type(WorkerPool(TaskWorker, 8), WorkerPool[Task[Any]])
    assert_type(WorkerPool(Checked[Fetch], 8), WorkerPool[Fetch])
    assert_type(WorkerPool(several()), WorkerPool[Fetch])
    assert_type(WorkerPool({Fetcher()}, None), WorkerPool[Fetch])
    with WorkerPool(Fetcher, 8) as pool:
        assert_type(pool.do(Fetch("a")).body, bytes)
        assert_type(pool.workers, tuple[Worker[Fetch], ...])


def misuse_of_factories() -> None:
    WorkerPool([Fetcher()], 8)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    WorkerPool(Fetcher, 1.5)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    WorkerPool(ToUrl, 8)  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]
    WorkerPool(several, 8)  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]
    WorkerPool(Fetcher())  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]


def misuse(pool: WorkerPool[Fetch]) -> None:
    pool.do("not an operation")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    RingBuffer("three")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    RingBuffer()  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    RingBuffer(3, maxsize=3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    PoolExecutor(4).submit(len, 3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    PoolExecutor(4, context=0)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
