"""WorkerPool(factory, count): which objects are factories, how often they are called, and what is refused."""

from __future__ import annotations

import functools
import gc
import os
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Generic, TypeVar

import pytest

from ringmill import Operation, Task, TaskWorker, Worker, WorkerPool

pytestmark = pytest.mark.usefixtures("no_thread_is_left")

LONG = 30.0  # seconds; reached only by a test that fails
OpT = TypeVar("OpT", bound=Operation)


class Job(Operation):
    crashes = False


class Client(Worker[Job]):
    """Counts how often it was made and started."""

    made: list[Client]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.made = []

    def __init__(self) -> None:
        self.inits = 0
        self.thread = threading.current_thread()
        self.made.append(self)

    def init(self) -> None:
        self.inits += 1

    def process(self, op: Job) -> None:
        if op.crashes:
            raise SystemExit


@pytest.fixture
def kind() -> type[Client]:
    """A class of Workers of which none has been made yet."""

    class Own(Client): ...

    return Own


class ToUrl(Worker[Job]):
    def __init__(self, url: str, *, port: int, path: str = "/") -> None:
        self.url = url

    def process(self, op: Job) -> None: ...


# What is called, and how often


def test_a_worker_class_is_called_count_times_by_the_constructor(kind: type[Client]) -> None:
    pool = WorkerPool(kind, 3)
    assert pool.workers == tuple(kind.made)
    assert len(kind.made) == 3
    assert {worker.thread for worker in kind.made} == {threading.current_thread()}
    assert [worker.inits for worker in kind.made] == [0, 0, 0]  # before the start


def test_a_factory_is_called_without_arguments(kind: type[Client]) -> None:
    calls: list[tuple[Any, ...]] = []

    def make(*args: Any, **kwargs: Any) -> Client:
        calls.append((args, kwargs))
        return kind()

    assert WorkerPool(make, count=4).workers == tuple(kind.made)
    assert calls == [((), {})] * 4
    for factory in (lambda: ToUrl("a", port=1), functools.partial(ToUrl, "a", port=1)):
        assert [type(worker) for worker in WorkerPool(factory, 2).workers] == [ToUrl, ToUrl]


def test_a_bound_method_is_a_factory(kind: type[Client]) -> None:
    class Maker:
        def make(self) -> Client:
            return kind()

    assert len(WorkerPool(Maker().make, 2).workers) == 2


def test_a_second_start_and_a_restart_use_the_same_objects(kind: type[Client]) -> None:
    pool = WorkerPool(kind, 1, restart_pause=0)
    workers = pool.workers
    op = Job()
    op.crashes = True
    with pool:
        pool.do(op).wait(LONG)
        assert pool.do(Job()).wait(LONG)  # by the restarted worker
    with pool:
        assert pool.do(Job()).wait(LONG)
    assert pool.workers is workers
    assert kind.made == list(workers)
    assert [worker.inits for worker in kind.made] == [3]
    assert isinstance(op.error, SystemExit)


def test_by_default_one_worker_for_each_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "process_cpu_count", lambda: 5, raising=False)
    assert len(WorkerPool(TaskWorker).workers) == 5
    assert len(WorkerPool(TaskWorker, None).workers) == 5
    monkeypatch.setattr(os, "process_cpu_count", lambda: None)
    assert len(WorkerPool(TaskWorker).workers) == 1


def test_where_python_does_not_count_the_process_s_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "process_cpu_count", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert len(WorkerPool(TaskWorker).workers) == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert len(WorkerPool(TaskWorker).workers) == 7
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert len(WorkerPool(TaskWorker).workers) == 1


def test_a_count_may_be_anything_with_an_index() -> None:
    class Two:
        def __index__(self) -> int:
            return 2

    count: Any = Two()
    assert len(WorkerPool(TaskWorker, count).workers) == 2


def test_a_pool_of_task_workers() -> None:
    with WorkerPool(TaskWorker, 2) as pool:
        assert pool.do(Task(pow, 2, 5)).result(LONG) == 32


# What is a factory, and what is an iterable


def test_a_worker_class_that_can_be_iterated_is_a_class() -> None:
    class Meta(type(Worker)):  # type: ignore[misc]
        def __iter__(cls) -> Iterator[Any]:
            raise AssertionError("iterated")

    class Iterable(TaskWorker, metaclass=Meta): ...

    assert [type(worker) for worker in WorkerPool(Iterable, 2).workers] == [Iterable, Iterable]


def test_a_generic_alias_of_a_worker_class_is_a_class() -> None:
    """It can be iterated, too: it gives what `*Client[Job]` would unpack."""

    class GenericClient(Worker[OpT], Generic[OpT]):
        def process(self, op: OpT) -> None: ...

    assert [type(worker) for worker in WorkerPool(GenericClient[Job], 2).workers] == [GenericClient] * 2


def test_any_other_object_that_can_be_iterated_is_an_iterable(kind: type[Client]) -> None:
    class Both:
        def __iter__(self) -> Iterator[Client]:
            return iter([kind()])

        def __call__(self) -> Client:
            raise AssertionError("called")

    assert WorkerPool(Both()).workers == tuple(kind.made)
    with pytest.raises(TypeError, match="count=2 is for a Worker class or a factory, but workers is an iterable"):
        WorkerPool(Both(), 2)


def test_a_dict_and_a_set_of_workers_are_iterables() -> None:
    a, b = TaskWorker(), TaskWorker()
    assert WorkerPool({a: 1, b: 2}).workers == (a, b)
    c, d = TaskWorker(), TaskWorker()
    assert set(WorkerPool({c, d}).workers) == {c, d}


# What is refused: the message says what was given and what to do, and no worker belongs to a pool


@pytest.mark.parametrize(
    ("count", "error", "message"),
    [
        (0, ValueError, "count must be at least 1, got 0"),
        (-1, ValueError, "count must be at least 1, got -1"),
        (True, TypeError, "count must be an integer or None, not True"),
        (1.5, TypeError, r"count must be an integer or None, not 1\.5"),
        ("2", TypeError, "count must be an integer or None, not '2'"),
    ],
)
def test_counts_that_are_none(kind: type[Client], count: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        WorkerPool(kind, count)
    assert kind.made == []


@pytest.mark.parametrize("count", [1, 2])
def test_a_count_with_an_iterable(count: int) -> None:
    worker = TaskWorker()
    with pytest.raises(TypeError, match=rf"count={count} is for .* factory.* iterable: \[<.*TaskWorker.*leave count"):
        WorkerPool([worker], count)  # type: ignore[call-overload]
    WorkerPool([worker], None)  # it was not taken


def test_a_single_worker_that_can_be_called_or_iterated() -> None:
    class Odd(TaskWorker):
        def __call__(self) -> Worker[Any]:
            raise AssertionError("called")

        def __iter__(self) -> Iterator[Any]:
            raise AssertionError("iterated")

    worker: Any = Odd()
    for arguments in ([worker], [worker, 2]):
        with pytest.raises(TypeError, match=r"got a single Worker: <.*Odd.*: put it into a list, or pass its class"):
            WorkerPool(*arguments)
    WorkerPool([worker])


def coroutine() -> Any:
    async def make() -> Worker[Any]:
        return TaskWorker()

    return make()


ALREADY_TAKEN = TaskWorker()


@pytest.mark.parametrize(
    ("factory", "error", "message"),
    [
        (int, TypeError, "workers: <class 'int'> must return a Worker, but returned 0"),
        (Job, TypeError, "workers: <class '.*Job'> must return a Worker, but returned <.*Job"),
        (lambda: None, TypeError, "workers: <function <lambda> .* must return a Worker, but returned None"),
        (lambda: Client, TypeError, r"returned <class '.*Client'>: a class; did you mean to call it\?"),
        (lambda: [TaskWorker()], TypeError, r"returned \[<.*TaskWorker.*: return one Worker, or pass the list itself"),
        (coroutine, TypeError, "returned <coroutine object .*, which has not run: a factory is a plain function"),
        (lambda: ALREADY_TAKEN, ValueError, "returned <.*TaskWorker.* twice: it must make a new one at each call"),
    ],
)
def test_factories_that_return_something_else(factory: Any, error: type[Exception], message: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(error, match=message):
            WorkerPool(factory, 2)
        gc.collect()  # a coroutine that was never awaited would warn
    WorkerPool([ALREADY_TAKEN])  # it is not, once more


async def async_function() -> Worker[Any]:
    raise AssertionError("called")


def generator_function() -> Iterator[Worker[Any]]:
    yield TaskWorker()


async def async_generator_function() -> AsyncIterator[Worker[Any]]:
    yield TaskWorker()


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (async_function, r"<function async_function .* is a coroutine function \(async def\): a factory is a plain"),
        (generator_function, "<function generator_function .* is a generator function: a factory is a plain function"),
        (async_generator_function, "async_generator_function .* is an async generator function: a factory is a plain"),
        (functools.partial(generator_function), "is a generator function"),
    ],
)
def test_functions_that_do_not_run_when_they_are_called(factory: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        WorkerPool(factory, 2)
    WorkerPool(generator_function())  # what a generator function returns is an iterable


def test_an_abstract_class() -> None:
    class Nothing(Worker[Job]): ...

    factory: Any = Nothing
    with pytest.raises(TypeError, match=r"workers: <class '.*Nothing'> is abstract: define process in a subclass"):
        WorkerPool(factory, 2)


@pytest.mark.parametrize(
    ("factory", "call"),
    [
        (ToUrl, "ToUrl(url, port=port)"),
        (functools.partial(ToUrl, "a"), "factory(port=port)"),
        (lambda url: ToUrl(url, port=1), "factory(url)"),
    ],
)
def test_a_factory_that_needs_arguments(factory: Any, call: str) -> None:
    with pytest.raises(TypeError) as caught:
        WorkerPool(factory, 2)
    message = str(caught.value)
    assert message.startswith(f"workers: {factory!r:.190}")
    assert "missing 1 required" in message  # Python's own words
    assert message.endswith(f": pass a factory that gives them, such as `lambda: {call}`")
    assert isinstance(caught.value.__cause__, TypeError)


def test_a_type_error_that_is_not_about_the_factory_s_arguments_comes_out_as_it_is() -> None:
    class Broken(TaskWorker):
        def __init__(self) -> None:
            self.to_url = ToUrl()  # type: ignore[call-arg]

    def gives_the_url(function: Callable[..., Any]) -> Callable[[], Any]:
        @functools.wraps(function)
        def inner() -> Any:
            return function("a")

        return inner

    @gives_the_url
    def make(url: str) -> Worker[Any]:
        raise TypeError("my own")

    factory: Any
    number: Any = 3
    partials = functools.partial(int, "x", "y"), functools.partial(len, number)  # the second one has a signature
    for factory, message in ((Broken, "missing"), (make, "my own"), (partials[0], "str"), (partials[1], "no len")):
        with pytest.raises(TypeError, match=message) as caught:
            WorkerPool(factory, 2)
        assert "lambda" not in str(caught.value)
        assert caught.value.__cause__ is None


def test_a_decorator_may_give_the_arguments(kind: type[Client]) -> None:
    """inspect.signature shows the parameters of the function that it wraps."""

    def make(client: type[Client]) -> Client:
        return client()

    @functools.wraps(make)
    def wrapper() -> Client:
        return make(kind)

    assert len(WorkerPool(wrapper, 2).workers) == 2


class Own(BaseException): ...


@pytest.mark.parametrize("raised", [ValueError, StopIteration, Own, KeyboardInterrupt])
def test_what_a_factory_raises_comes_out_and_no_worker_is_taken(
    kind: type[Client], raised: type[BaseException]
) -> None:
    error = raised("no server")

    def make() -> Client:
        if len(kind.made) == 2:
            raise error
        return kind()

    with pytest.raises(raised) as caught:
        WorkerPool(make, 4)
    assert caught.value is error
    assert caught.value.__cause__ is None
    assert len(WorkerPool(kind.made).workers) == 2


def test_what_an_iterable_raises_comes_out_as_it_is() -> None:
    def workers() -> Iterator[Worker[Any]]:
        yield TaskWorker()
        raise TypeError("my own")

    with pytest.raises(TypeError, match=r"^my own$"):
        WorkerPool(workers())


def test_a_factory_whose_worker_belongs_to_another_pool(kind: type[Client]) -> None:
    pool = WorkerPool(kind, 1)
    with pytest.raises(ValueError, match=r"workers: <.*Own.*> belongs to another pool: <WorkerPool 'ringmill'"):
        WorkerPool(lambda: kind.made[0], 1)
    assert pool.workers == tuple(kind.made)


def test_the_workers_of_a_factory_are_checked_as_others_are() -> None:
    class Async(TaskWorker):
        async def process(self, op: Any) -> None: ...  # type: ignore[override]

    class Retrying(TaskWorker):
        retry_on = BaseException  # type: ignore[assignment]

    with pytest.raises(TypeError, match=r"Async.process is a coroutine function"):
        WorkerPool(Async, 2)
    with pytest.raises(TypeError, match=r"Retrying.retry_on must be a subclass of Exception"):
        WorkerPool(Retrying, 2)


@pytest.mark.parametrize(
    ("settings", "error"), [({"queue_size": 0}, ValueError), ({"name": 3}, TypeError), ({"backoff": 1}, TypeError)]
)
def test_a_factory_is_not_called_when_another_argument_is_wrong(
    kind: type[Client], settings: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error, match=next(iter(settings))):
        WorkerPool(kind, 2, **settings)
    assert kind.made == []


@pytest.mark.parametrize(
    ("workers", "error", "message"),
    [
        (3, TypeError, "workers must be an iterable of Workers, or a Worker class or a factory of no arguments; got 3"),
        (None, TypeError, "workers must be .*; got None"),
        ("abc", TypeError, "workers must be Workers, got 'a'"),
        ("", ValueError, "workers must not be empty"),
        ({"a": TaskWorker()}, TypeError, "workers must be Workers, got 'a'"),
        ([TaskWorker], TypeError, r"workers must be Workers, got <class .*TaskWorker'>: a class; did you mean to call"),
        (Exception, TypeError, r"workers: <class 'Exception'> must return a Worker, but returned Exception\(\)"),
    ],
)
def test_objects_that_are_neither(workers: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        WorkerPool(workers)


def test_async_iterables_are_no_iterables() -> None:
    async def make() -> AsyncIterator[Worker[Any]]:
        yield TaskWorker()

    workers: Any = make()
    with pytest.raises(TypeError, match=r"workers must be an iterable of Workers, .*; got <async_generator"):
        WorkerPool(workers)


def test_messages_survive_odd_reprs() -> None:
    class Odd:
        def __repr__(self) -> str:
            raise ValueError

        def __call__(self) -> Worker[Any]:
            return self  # type: ignore[return-value]

    class Long:
        def __repr__(self) -> str:
            return "x" * 10**6

    with pytest.raises(TypeError, match=r"Odd object at .* must return a Worker"):
        WorkerPool(Odd(), 1)
    class Silent(TaskWorker):
        def __repr__(self) -> str:
            raise ValueError

    worker = Silent()
    with pytest.raises(ValueError, match=r"Silent object at .* twice"):
        WorkerPool(lambda: worker, 2)
    with pytest.raises(TypeError) as caught:
        WorkerPool(Long())  # type: ignore[call-overload]
    assert len(str(caught.value)) < 500
