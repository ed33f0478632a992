"""A backend of joblib's that runs its batches on a PoolExecutor, in the place of joblib's own threading backend."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import joblib.parallel
from joblib import _parallel_backends
from joblib._utils import _retrieve_traceback_capturing_wrapped_call, _TracebackCapturingWrapper

from ringmill import PoolExecutor


class ThreadingBackend(_parallel_backends.ThreadingBackend):  # type: ignore[misc]
    """Has the name of the class that it stands for, because some tests compare names."""

    _pool: PoolExecutor | None = None

    def _get_pool(self) -> PoolExecutor:
        if self._pool is None:
            self._pool = PoolExecutor(self._n_jobs)
        return self._pool

    def submit(self, func: Callable[[], Any], callback: Callable[[Any], None] | None = None) -> Future[Any]:
        future = self._get_pool().submit(_TracebackCapturingWrapper(func))
        if callback is not None:
            future.add_done_callback(lambda done: None if done.cancelled() else callback(done.result()))
        return future

    def retrieve_result(self, out: Future[Any], timeout: float | None = None) -> Any:
        return _retrieve_traceback_capturing_wrapped_call(out.result(timeout))

    def terminate(self) -> None:
        if self._pool is not None:
            # Does not wait for batches that run, as ThreadPool.terminate doesn't. At exit they are waited for, as those
            # of any executor are, and not as those of ThreadPool's daemon threads: the run takes 30 s longer for it.
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None


def install() -> None:
    _parallel_backends.ThreadingBackend = ThreadingBackend
    joblib.parallel.ThreadingBackend = ThreadingBackend
    joblib.parallel.BACKENDS["threading"] = ThreadingBackend
