"""The calls of Operation and of Task."""

from __future__ import annotations

import contextlib
import pickle
from concurrent.futures import CancelledError, InvalidStateError
from typing import Any

from ringmill import Operation, Outcome, Task
from tests.tools.out_of_memory.trial import FAILED, Trial, case


class Job(Operation):
    def __init__(self, thing: Any = None) -> None:
        self.thing = thing


@case
def operation_new(trial: Trial) -> None:
    """With a keyword, of which Cython makes something of its own: see setup.py."""
    thing = trial.thing()
    op = trial(Job, thing=thing)
    assert op is FAILED or op.thing is thing


@case
def task_new(trial: Trial) -> None:
    task = trial(Task, pow, 2, 5)
    if task is not FAILED:
        task.run()
        assert task.value == 32


def fails() -> None:
    raise ValueError("it was to fail")


@case
def task_run(trial: Trial) -> None:
    task = Task(pow, 2, 5)
    trial(task.run)
    task.run()
    assert task.value == 32


@case
def task_run_failing(trial: Trial) -> None:
    trial(Task(fails).run)


@case
def operation_wait(trial: Trial) -> None:
    op = Job(trial.thing())
    waited = trial(op.wait, 0.0001)
    assert waited in (FAILED, False)
    op.done()
    assert op.wait()


@case
def operation_done(trial: Trial) -> None:
    op = Job(trial.thing())
    trial(op.done)
    op.done()
    assert op.wait()


@case
def operation_cancel(trial: Trial) -> None:
    op = Job(trial.thing())
    trial(op.cancel)
    op.cancel()
    assert op.outcome is Outcome.CANCELLED
    assert op.wait()


@case
def operation_check(trial: Trial) -> None:
    op = Job(trial.thing())
    trial.raising(InvalidStateError, call=op.check)
    op.cancel()
    trial.raising(CancelledError, call=op.check)


@case
def operation_reset(trial: Trial) -> None:
    op = Job(trial.thing())
    op.cancel()
    trial(op.reset)
    op.reset()
    assert op.outcome is Outcome.PENDING
    assert not op.wait(0)


@case
def operation_observations(trial: Trial) -> None:
    op = Job(trial.thing())
    trial(lambda: (op.outcome, op.error, op.tries, repr(op)))
    with contextlib.suppress(pickle.PickleError):  # what pickle makes of some
        copied = trial(lambda: pickle.loads(pickle.dumps(Task(pow, 2, 3))))
        assert copied is FAILED or copied.args == (2, 3)
