"""PoolExecutor as a ThreadPoolExecutor: its type, its private attributes, threads that start when they are needed.

Where both promise the same, the same test is run with both classes.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import queue
import random
import re
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, as_completed, wait
from concurrent.futures import thread as thread_module
from typing import Any
from unittest import mock

import pytest

from ringmill import PoolExecutor
from tests.futures.test_futures import Held, double, fail
from tests.threads import LONG, run_threads, start_threads, wait_until

pytestmark = pytest.mark.usefixtures("no_thread_is_left")

#: The standard class shows what is expected; ours must do the same.
STANDARD = pytest.param(
    ThreadPoolExecutor,
    marks=pytest.mark.skipif(
        bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
        reason="gh-117344: without the GIL the standard class may start fewer threads than calls wait",
    ),
)
BOTH = pytest.mark.parametrize("kind", [STANDARD, PoolExecutor])
needs_3_14 = pytest.mark.skipif(sys.version_info < (3, 14), reason="these parts came with Python 3.14")


# Its type


def test_it_is_a_thread_pool_executor() -> None:
    assert issubclass(PoolExecutor, ThreadPoolExecutor)
    with PoolExecutor(1) as executor:
        assert isinstance(executor, ThreadPoolExecutor)


@BOTH
def test_asyncios_default_executor(kind: type[ThreadPoolExecutor]) -> None:
    names: set[str] = set()

    def work(number: int) -> int:
        names.add(threading.current_thread().name)
        return 2 * number

    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(executor)
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(divmod, 1, 0)
        ours = await asyncio.gather(*(asyncio.to_thread(work, number) for number in range(50)))
        return ours + await asyncio.gather(*(loop.run_in_executor(None, work, number) for number in range(50)))

    executor = kind(3, "default")
    assert asyncio.run(main()) == [2 * number for number in range(50)] * 2  # which shuts it down
    assert names <= {"default_0", "default_1", "default_2"}
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(double, 1)


# Threads


@BOTH
def test_a_thread_starts_for_each_call_that_finds_all_busy(kind: type[ThreadPoolExecutor]) -> None:
    with kind(3) as executor:
        assert len(executor._threads) == 0
        gate = threading.Event()
        for count in range(1, 6):
            executor.submit(gate.wait, LONG)
            assert len(executor._threads) == min(count, 3)
        gate.set()
    assert not any(thread.is_alive() for thread in executor._threads)


@BOTH
def test_an_idle_thread_is_used_before_one_is_started(kind: type[ThreadPoolExecutor]) -> None:
    with kind(8) as executor:
        for number in range(100):
            assert executor.submit(double, number).result(LONG) == 2 * number
        # A thread that has set a result may not be idle yet when the next call comes.
        assert 1 <= len(executor._threads) <= 3
        with Held(executor, 5):
            assert 5 <= len(executor._threads) <= 6


@BOTH
@pytest.mark.parametrize("how", ["submit", "map"])
def test_no_more_threads_than_max_workers(kind: type[ThreadPoolExecutor], how: str) -> None:
    with kind(4) as executor:
        if how == "submit":
            futures = [executor.submit(double, number) for number in range(500)]
            assert not wait(futures, LONG).not_done
        else:
            assert list(executor.map(double, range(500))) == [2 * number for number in range(500)]
        assert 1 <= len(executor._threads) <= 4


@BOTH
@pytest.mark.parametrize("max_workers", [sys.maxsize, 10**30])
def test_a_huge_executor_costs_what_it_uses(kind: type[ThreadPoolExecutor], max_workers: int) -> None:
    with kind(max_workers) as executor:
        assert executor._max_workers == max_workers
        assert list(executor.map(double, range(3))) == [0, 2, 4]
        assert executor.submit(double, 4).result(LONG) == 8
        with Held(executor, 10):
            assert 10 <= len(executor._threads) <= 14


def rows(source: str, items: list[Any]) -> Any:
    return {"list": items, "range": range(len(items)), "generator": (item for item in items)}[source]


@BOTH
@pytest.mark.parametrize("source", ["submit", "list", "range", "generator"])
@pytest.mark.parametrize("threads", [2, 4, 7])
def test_calls_that_all_wait_for_each_other(kind: type[ThreadPoolExecutor], source: str, threads: int) -> None:
    for size in range(1, threads + 1):
        with kind(threads) as executor:
            for _ in range(4):
                meet = threading.Barrier(size)

                def call(_: Any, meet: threading.Barrier = meet) -> int:
                    return meet.wait(LONG)

                if source == "submit":
                    came = [future.result(LONG) for future in [executor.submit(call, k) for k in range(size)]]
                else:
                    came = list(executor.map(call, rows(source, list(range(size)))))
                assert sorted(came) == list(range(size))


@pytest.mark.parametrize("buffersize", [3, 5, 8])
@pytest.mark.parametrize("source", ["list", "range", "generator"])
def test_calls_of_a_map_with_a_buffer_that_wait_for_each_other(source: str, buffersize: int) -> None:
    """Each three in a row. There is a thread for each call that is submitted: a read submits one, then waits."""
    for _ in range(5):
        barriers = [threading.Barrier(3) for _ in range(4)]
        with PoolExecutor(buffersize + 1) as executor:
            items = rows(source, list(range(12)))
            results = executor.map(lambda k: barriers[k // 3].wait(LONG), items, buffersize=buffersize)  # noqa: B023
            assert sorted(results) == [0] * 4 + [1] * 4 + [2] * 4


@pytest.mark.stress
def test_calls_of_submit_and_map_that_wait_for_each_other(seed: int, switch_interval: float) -> None:
    dice = random.Random(seed)
    for _ in range(60):
        threads = dice.randint(1, 6)
        meet = threading.Barrier(threads)
        with PoolExecutor(threads) as executor:
            for _ in range(dice.randrange(4)):
                assert executor.submit(double, 2).result(LONG) == 4  # some threads are there, and idle
            left = threads
            futures: list[Future[int]] = []
            maps: list[Iterator[int]] = []
            while left:
                size = dice.randint(1, left)
                left -= size
                if dice.random() < 0.5:
                    futures += [executor.submit(meet.wait, LONG) for _ in range(size)]
                else:
                    source = dice.choice([[0] * size, range(size), iter(range(size))])
                    options = dice.choice([{}, {"buffersize": threads}])
                    maps.append(executor.map(lambda _, meet=meet: meet.wait(LONG), source, **options))  # type: ignore[misc]
            came = [future.result(LONG) for future in futures]
            came += itertools.chain.from_iterable(maps)
            assert sorted(came) == list(range(threads))
            assert len(executor._threads) == threads


@pytest.mark.stress
@BOTH
def test_many_threads_submit_calls_that_wait_for_each_other(
    kind: type[ThreadPoolExecutor], seed: int, switch_interval: float
) -> None:
    """Eight submit one call each; all of them are needed to go on."""
    for _ in range(40):
        meet = threading.Barrier(8)
        with kind(8) as executor:
            futures = run_threads(*[functools.partial(executor.submit, meet.wait, LONG)] * 8)
            assert sorted(future.result(LONG) for future in futures) == list(range(8))
            assert len(executor._threads) == 8


@pytest.mark.stress
def test_many_threads_use_an_executor_that_they_fill(seed: int, switch_interval: float) -> None:
    for _ in range(15):
        with PoolExecutor(5) as executor:

            def use(part: int, executor: PoolExecutor = executor) -> None:
                dice = random.Random(seed + part)
                for number in range(20):
                    if dice.random() < 0.5:
                        assert executor.submit(double, number).result(LONG) == 2 * number
                    else:
                        assert list(executor.map(double, range(number))) == [2 * k for k in range(number)]

            run_threads(*(functools.partial(use, part) for part in range(8)))
            assert 1 <= len(executor._threads) <= 5
        assert not any(thread.is_alive() for thread in executor._threads)


def test_a_thread_that_submits_and_waits_gets_another_thread() -> None:
    with PoolExecutor(6) as executor:

        def nested(depth: int) -> int:
            return 1 + executor.submit(nested, depth - 1).result() if depth else 0

        assert executor.submit(nested, 5).result(LONG) == 5
        assert len(executor._threads) == 6


@BOTH
def test_the_names_of_threads(kind: type[ThreadPoolExecutor]) -> None:
    with kind(3, "mill") as executor, Held(executor, 3):
        assert sorted(thread.name for thread in executor._threads) == ["mill_0", "mill_1", "mill_2"]
    with kind(2) as executor, kind(1) as other, Held(executor, 2), Held(other, 1):
        first, second = sorted(thread.name for thread in executor._threads)
        [third] = (thread.name for thread in other._threads)
    match = re.fullmatch(r"ThreadPoolExecutor-(\d+)_0", first)
    assert match
    assert second == f"ThreadPoolExecutor-{match[1]}_1"
    assert third == f"ThreadPoolExecutor-{int(match[1]) + 1}_0"


def test_both_classes_share_the_counter_of_the_names() -> None:
    names = []
    for kind in (ThreadPoolExecutor, PoolExecutor, ThreadPoolExecutor):
        with kind(1) as executor:
            names.append(executor.submit(lambda: threading.current_thread().name).result(LONG))
    counted = [int(re.fullmatch(r"ThreadPoolExecutor-(\d+)_0", name)[1]) for name in names]  # type: ignore[index]
    assert counted == [counted[0], counted[0] + 1, counted[0] + 2]
    assert PoolExecutor._counter is ThreadPoolExecutor._counter


# Attributes of the base class


@BOTH
def test_attributes_answer_as_those_of_the_standard_class(kind: type[ThreadPoolExecutor]) -> None:
    with kind(3, "mill") as executor:
        assert (executor._max_workers, executor._thread_name_prefix) == (3, "mill")
        assert not executor._broken
        assert executor._shutdown is False
        assert hasattr(executor._idle_semaphore, "acquire")
        with executor._shutdown_lock:
            pass
        if sys.version_info < (3, 14):
            assert executor._initializer is None
            assert executor._initargs == ()
        with Held(executor, 3):
            assert executor._work_queue.qsize() == 0
            assert len(executor._threads) == 3
            assert all(isinstance(thread, threading.Thread) and thread.is_alive() for thread in executor._threads)
            futures = [executor.submit(double, number) for number in range(7)]
            assert executor._work_queue.qsize() == 7
        assert not wait(futures, LONG).not_done
        assert executor._work_queue.qsize() == 0
    assert executor._shutdown is True


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="the attributes are of the threads' context there")
@BOTH
def test_the_initializer_and_its_arguments(kind: type[ThreadPoolExecutor]) -> None:
    with kind(1, "", print, ("a", "b")) as executor:
        assert executor._initializer is print
        assert executor._initargs == ("a", "b")


@needs_3_14
@BOTH
def test_the_parts_of_3_14(kind: type[ThreadPoolExecutor]) -> None:
    for name in ("prepare_context", "BROKEN"):
        assert getattr(kind, name, None) is not None
    with kind(1) as executor:
        assert callable(executor._create_worker_context)
        assert callable(executor._resolve_work_item_task)
    assert issubclass(kind.BROKEN, RuntimeError)


@BOTH
def test_a_broken_executor_says_so(kind: type[ThreadPoolExecutor]) -> None:
    with kind(1, "", fail, (ValueError("no"),)) as executor:
        assert isinstance(executor.submit(double, 1).exception(LONG), RuntimeError)
        wait_until(lambda: bool(executor._broken))
        with pytest.raises(RuntimeError):
            executor.submit(double, 1)


def test_the_public_count_agrees_with_the_queue() -> None:
    with PoolExecutor(2) as executor:
        assert executor.pending == executor._work_queue.qsize() == 0
        with Held(executor, 2):
            futures = [executor.submit(double, number) for number in range(5)]
            results = executor.map(double, range(4))
            assert executor.pending == executor._work_queue.qsize() == 9
            assert futures[2].cancel()
            assert executor.pending == executor._work_queue.qsize() <= 9
        assert list(results) == [0, 2, 4, 6]
        wait(futures, LONG)
        assert executor.pending == executor._work_queue.qsize() == 0


# Calls that are taken back


def parts(item: Any) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """The function and the arguments of a work item; of `map`'s, the call may be wrapped."""
    if sys.version_info >= (3, 14) and not hasattr(item, "fn"):
        fn, args, kwargs = item.task
        return fn, args, kwargs
    return item.fn, tuple(item.args), dict(item.kwargs)


@BOTH
def test_nothing_to_take_back(kind: type[ThreadPoolExecutor]) -> None:
    with kind(1) as executor:
        with pytest.raises(queue.Empty):
            executor._work_queue.get_nowait()
        assert executor.submit(double, 2).result(LONG) == 4
        with pytest.raises(queue.Empty):
            executor._work_queue.get_nowait()


def test_calls_are_taken_back_in_the_order_of_their_submission() -> None:
    called: list[int] = []
    with PoolExecutor(1) as executor, Held(executor, 1):
        futures = [executor.submit(called.append, number) for number in range(6)]
        for number in range(3):
            item = executor._work_queue.get_nowait()
            assert item.future is futures[number]
            assert (item.fn, tuple(item.args), dict(item.kwargs)) == (called.append, (number,), {})
            assert executor.pending == 5 - number
            assert not item.future.done()
            assert item.future.cancel()
            with pytest.raises(CancelledError):
                futures[number].result(LONG)
    assert called == [3, 4, 5]
    assert all(future.done() for future in futures)


def test_a_call_with_keywords_is_taken_back() -> None:
    def call(*args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    with PoolExecutor(1) as executor, Held(executor, 1):
        future = executor.submit(call, 1, 2, three=3)
        item = executor._work_queue.get_nowait()
        assert item.future is future
        assert (item.fn, tuple(item.args), dict(item.kwargs)) == (call, (1, 2), {"three": 3})


@pytest.mark.parametrize("error", [None, ValueError, SystemExit])
def test_running_a_call_that_was_taken_back_ends_its_future(error: type[BaseException] | None) -> None:
    told: list[Future[Any]] = []
    with PoolExecutor(1) as executor, Held(executor, 1):
        future = executor.submit(double, 4) if error is None else executor.submit(fail, error("taken"))
        future.add_done_callback(told.append)
        waiting = start_threads(lambda: list(as_completed([future], LONG)))
        item = executor._work_queue.get_nowait()
        if sys.version_info >= (3, 14):
            with contextlib.suppress(TypeError):
                item.run()
        else:
            item.run()
        assert future.done()
        if error is None:
            assert future.result(0) == 8
        else:
            assert type(future.exception(0)) is error
        assert waiting.join() == [[future]]
        assert told == [future]


def test_a_call_of_map_is_taken_back() -> None:
    called: list[int] = []

    def call(number: int) -> int:
        called.append(number)
        return 2 * number

    with PoolExecutor(1) as executor:
        with Held(executor, 1):
            results = executor.map(call, [0, 1, 2, 3])
            first = executor._work_queue.get_nowait()
            second = executor._work_queue.get_nowait()
            assert executor.pending == 2
            first.run()
            assert first.future.result(0) == 0
            assert called == [0]
            second.run()
            assert second.future.done()
        assert list(results) == [0, 2, 4, 6]
    assert called == [0, 1, 2, 3]


def test_a_call_of_map_that_is_taken_back_and_cancelled() -> None:
    called: list[int] = []
    with PoolExecutor(1) as executor:
        with Held(executor, 1):
            results = executor.map(called.append, [0, 1, 2])
            item = executor._work_queue.get_nowait()
            assert item.future.cancel()
        with pytest.raises(CancelledError):
            next(results)
    assert 0 not in called


def test_a_queue_that_is_emptied_by_hand_as_cpython_does_at_shutdown() -> None:
    with PoolExecutor(1) as executor, Held(executor, 1):
        futures = [executor.submit(double, number) for number in range(5)]
        results = executor.map(double, range(5))
        drained = 0
        while True:
            try:
                item = executor._work_queue.get_nowait()
            except queue.Empty:
                break
            drained += 1
            item.future.cancel()
        assert drained == 10
        assert executor.pending == 0
        assert all(future.cancelled() for future in futures)
        with pytest.raises(CancelledError):
            next(results)


@pytest.mark.stress
def test_calls_are_taken_back_while_threads_run_them(seed: int, switch_interval: float) -> None:
    """Each call is either run by a thread or taken back: once."""
    called: list[int] = []
    with PoolExecutor(2) as executor:
        futures: list[Future[None]] = []
        taken: list[Any] = []

        def submit() -> None:
            for number in range(1000):
                futures.append(executor.submit(called.append, number))

        def take() -> None:
            for _ in range(1000):
                with contextlib.suppress(queue.Empty):
                    taken.append(executor._work_queue.get_nowait())

        run_threads(submit, take, take)
        backs = [item.args[0] for item in taken]
        for item in taken:
            assert not item.future.done()
            assert item.future.cancel()
            item.future.set_running_or_notify_cancel()  # as the thread that takes it does, for those in `wait`
        assert not wait(futures, LONG).not_done
    assert sorted(called + backs) == list(range(1000))


# Subclasses


@BOTH
def test_a_subclass_that_overrides_submit_sees_all_calls(kind: Any) -> None:
    class Counting(kind):  # type: ignore[misc]
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            seen.append(args)
            return super().submit(fn, *args, **kwargs)

    seen: list[tuple[Any, ...]] = []
    with Counting(2) as executor:
        assert executor.submit(double, 1).result(LONG) == 2
        assert list(executor.map(double, [2, 3])) == [4, 6]
        assert list(executor.map(double, iter([4]))) == [8]
        assert asyncio.run(in_executor(executor, 5)) == 10
    assert seen == [(1,), (2,), (3,), (4,), (5,)]


async def in_executor(executor: ThreadPoolExecutor, number: int) -> int:
    return await asyncio.get_running_loop().run_in_executor(executor, double, number)


@BOTH
def test_a_subclass_whose_submit_changes_the_call(kind: Any) -> None:
    class Tenfold(kind):  # type: ignore[misc]
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            return super().submit(lambda: 10 * fn(*args, **kwargs))

    with Tenfold(2) as executor:
        assert executor.submit(double, 1).result(LONG) == 20
        assert list(executor.map(double, range(4))) == [0, 20, 40, 60]


def test_a_subclass_cannot_bring_its_own_queue() -> None:
    class Ordered(PoolExecutor):
        def __init__(self) -> None:
            super().__init__(1)
            self._work_queue = queue.PriorityQueue()  # type: ignore[assignment]

    with pytest.raises(TypeError, match="_work_queue") as caught:
        Ordered()
    assert re.search(r"WorkerPool|ThreadPoolExecutor|submit", str(caught.value)), caught.value
    with PoolExecutor(1) as executor:
        with pytest.raises(TypeError, match="_work_queue"):
            executor._work_queue = queue.SimpleQueue()  # type: ignore[assignment]
        assert executor.submit(double, 1).result(LONG) == 2


def test_a_subclass_cannot_start_threads_itself() -> None:
    def define_and_make() -> PoolExecutor:
        class Other(PoolExecutor):
            def _adjust_thread_count(self) -> None: ...

        return Other(1)

    with pytest.raises(TypeError, match="_adjust_thread_count") as caught:
        define_and_make()
    assert re.search(r"WorkerPool|ThreadPoolExecutor|submit|initializer", str(caught.value)), caught.value


# Tools that replace the base's submit


@contextlib.contextmanager
def traced() -> Iterator[list[tuple[Any, ...]]]:
    """The base's `submit` is replaced by one that records each call and passes it on."""
    original = ThreadPoolExecutor.submit
    seen: list[tuple[Any, ...]] = []

    def submit(self: ThreadPoolExecutor, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        seen.append(args)
        return original(self, fn, *args, **kwargs)

    with mock.patch.object(ThreadPoolExecutor, "submit", submit):
        yield seen


@BOTH
def test_a_patched_submit_sees_each_call(kind: type[ThreadPoolExecutor]) -> None:
    told: list[Future[Any]] = []
    with kind(2) as executor:
        assert executor.submit(double, 0).result(LONG) == 0  # not seen
        with traced() as seen:
            future = executor.submit(double, 1)
            future.add_done_callback(told.append)
            assert future.result(LONG) == 2
            wait_until(lambda: told == [future])
            assert list(executor.map(double, [2, 3])) == [4, 6]
            assert list(executor.map(double, (number for number in [4]))) == [8]
            error = ValueError("seen")
            assert executor.submit(fail, error).exception(LONG) is error
            with pytest.raises(ValueError, match="seen"):
                list(executor.map(fail, [error]))
            assert asyncio.run(in_executor(executor, 5)) == 10
        assert seen == [(1,), (2,), (3,), (4,), (error,), (error,), (5,)]
        assert executor.submit(double, 6).result(LONG) == 12
        assert len(seen) == 7


@BOTH
def test_a_patched_submit_that_wraps_the_function(kind: type[ThreadPoolExecutor]) -> None:
    original = ThreadPoolExecutor.submit
    ran: list[str] = []

    def submit(self: ThreadPoolExecutor, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            ran.append(threading.current_thread().name)
            return fn(*args, **kwargs)

        return original(self, wrapped, *args, **kwargs)

    with mock.patch.object(ThreadPoolExecutor, "submit", submit), kind(2, "mill") as executor:
        assert executor.submit(double, 1).result(LONG) == 2
        assert list(executor.map(double, range(5))) == [0, 2, 4, 6, 8]
    assert len(ran) == 6
    assert set(ran) <= {"mill_0", "mill_1"}


@BOTH
def test_cancelling_and_shutting_down_under_a_patched_submit(kind: type[ThreadPoolExecutor]) -> None:
    called: list[int] = []
    with traced() as seen:
        executor = kind(1)
        with Held(executor, 1):
            futures = [executor.submit(called.append, number) for number in range(6)]
            assert futures[0].cancel()
            assert executor._work_queue.qsize() in (5, 6)
            with pytest.raises(TimeoutError):
                futures[1].result(0.01)
            ending = start_threads(lambda: executor.shutdown(cancel_futures=True))
            wait_until(lambda: all(future.cancelled() for future in futures))
        ending.join()
        with pytest.raises(RuntimeError, match="after shutdown"):
            executor.submit(double, 1)
    assert called == []
    assert len(seen) >= 7
    assert not any(thread.is_alive() for thread in executor._threads)


@BOTH
def test_calls_wait_for_each_other_under_a_patched_submit(kind: type[ThreadPoolExecutor]) -> None:
    with traced(), kind(4) as executor:
        for size in (1, 3, 4):
            meet = threading.Barrier(size)
            futures = [executor.submit(meet.wait, LONG) for _ in range(size)]
            assert sorted(future.result(LONG) for future in futures) == list(range(size))
        assert len(executor._threads) <= 4
        meet = threading.Barrier(4)
        assert sorted(executor.map(lambda _: meet.wait(LONG), range(4))) == [0, 1, 2, 3]


def test_patched_and_plain_calls_keep_one_order() -> None:
    called: list[int] = []
    with PoolExecutor(1) as executor, Held(executor, 1):
        executor.submit(called.append, 0)
        with traced():
            executor.submit(called.append, 1)
            executor.map(called.append, [2, 3])
        executor.map(called.append, [4])
        executor.submit(called.append, 5)
        assert executor.pending == 6
    assert called == [0, 1, 2, 3, 4, 5]


def test_work_items_of_the_standard_class_are_taken() -> None:
    """What the base's own `submit` would put into the queue."""
    if sys.version_info >= (3, 14):
        pytest.skip("a work item is made by the executor there")
    with PoolExecutor(1) as executor:
        assert executor.submit(double, 1).result(LONG) == 2  # there is a thread
        future: Future[int] = Future()
        executor._work_queue.put(thread_module._WorkItem(future, double, (4,), {}))  # type: ignore[attr-defined]
        assert future.result(LONG) == 8
