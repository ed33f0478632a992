"""The scenarios that are run, in the notation of execution.pyx, each with a capacity; and the sequential model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.models.test_model_batch import outcomes as of_batches

RING = [
    (1, "p | g"),
    (1, "p p | g g"),
    (2, "p p | g | g"),
    (2, "p | p | g g"),
    (2, "p p p | p g g | g"),
    (2, "p p | g g | e n"),
    (1, "p g | p g | e f"),
    (2, "p p | p g | f n e"),
    (2, "p p | g g | x n"),
    (2, "p g p | p | g x g"),
    (1, "P2 | g g"),
    (2, "P3 | G2 g"),
    (2, "P2 | p | G2 e"),
    (2, "P2 P2 | G2 | g"),
    (3, "P3 | G3 | p g"),
    (2, "p p | G2 | g f"),
    (2, "P2 | G2 | x"),
    (1, "P2 | p | G1 | x"),
    (3, "P2 P2 | G2 G2 | n e"),
]

WAITING = [
    (1, "b b | w w"),
    (1, "b | b | w | w"),
    (2, "b b | w | w"),
    (2, "b | b | w w"),
    (1, "b b b | w w w"),
    (1, "b b | b | w w w"),
    (1, "w? | w | b b"),
    (2, "w? | w | b b"),
    (1, "b b? x | w | w"),
    (2, "w w | b? b b | w?"),
    (1, "w | w | x"),
    (1, "b b | w | x"),
    (1, "b b b | w | x"),
    (2, "w | w | b x"),
    (1, "b | w? | w? | x"),
    (2, "B3 | w w | w"),
    (2, "B2 | B2 | w w | w w"),
    (2, "B3 | w | G2"),
    (1, "b b | g w"),
    (2, "p p | w w"),
    (2, "P2 | w w"),
    (2, "p p | w | w?"),
    (2, "b b j | w t w t"),
    (2, "b j | b j | w t | w t"),
    (1, "o b | w"),
    (1, "o b b | w | w"),
    (2, "o b | b | w w"),
    (1, "b b | o | w? | w"),
]

OPERATIONS = [
    (2, "a0 | r | k0"),
    (2, "a0 k0 | r"),
    (2, "a0 | r | k0 | q0"),
    (2, "a0 | r | k0? k0"),
    (2, "a0 | r | k0 | k0?"),
    (2, "a0 a1 | r | r | q0 q1"),
    (2, "a0 k0 z0 a0 k0 | r r | q0"),
    (2, "a0 k0 z0 a0 | r | r | i0"),
    (2, "a0 k0 z0 a0 | r r | q0 | i0"),
]

POOLS = [
    (1, "d0 d1 s | W0"),
    (2, "d0 d1 s | W0 | W1"),
    (1, "d0 k0 d1 s | W0 | W1"),
    (2, "d0 i1 s | d1 | W0 | W1"),
    (2, "d0 d1 s | W0 | c0 c1"),
    (1, "d0 d1 s | W0 | W1 | c0 v"),
    (2, "d0 D1 s | W0 | W1 | v v"),
    (2, "d0r d1 s | W0 | W1"),
    (2, "d0r s | W0 | W1 | c0 v"),
    (2, "d0j d1 s | W0 | W1 | k0"),
    (2, "D0j d1f s | W0 | W1 | v"),
    (2, "d0 k0 z0 d0 s | W0 | c0"),
    (2, "E2 R s | W0 | W1"),
    (2, "E2 R s | W0 | c3"),
    (2, "E2 R i0 s | d0 | W0 | W1"),
    (2, "N s | W0"),
    (1, "N s | W0 | W1"),
    (2, "N i0 i1 s | N | W0"),
    (2, "u0 u1 x | N s | W0"),
    (1, "u0 u1 x | N s | W0 | W1"),
    (2, "u0 x | N i1 s | d1 | W0 | W1"),
    (1, "u0 u1 x | N s | W0 | c0"),
    # a later submission would hide a lost wake-up: so the next one follows only after the first is done
    (2, "D0 i0 d1 i1 s | W0 | W1"),
    (1, "u0 i0 x | N s | W0"),
    (1, "u0 i0 u1 i1 x | N s | W0 | W1"),
    (2, "u0 i0 x | N i1 s | d1 | W0 | W1"),
]

MAPS = [
    (2, "m s | W0"),
    (2, "m s | W0 | W1"),
    (2, "m s | m | W0 | W1"),
    (2, "F F m s | F | F F m | W0 | W1"),
    (2, "O s | W0 | W1"),
    (2, "O s | O | F | W0 | W1"),
    (2, "m s | W0 | W1 | W2"),
    (1, "A s | W0 | W1"),
    (2, "A s | W0 | W1"),
    (3, "A s | A | W0 | W1"),
    (2, "Q s | W0 | W1"),
]

# Sources that have no work become QUIET at once.
QUIET = [
    (2, "L N s | W0"),
    (1, "L N s | W0 | W1"),
    (2, "L N i0 i1 s | N | W0"),
    (1, "L N i2 s | d2 | W0 | W1"),
    (1, "L u0 i0 x | N s | W0"),
    (1, "L u0 i0 u1 i1 x | N s | W0 | W1"),
    (1, "L u0 u1 x | N s | W0"),
    (1, "L u0 u1 x | N s | W0 | W1"),
    (1, "L u0 i0 x | N i1 s | d1 | W0 | W1"),
    (2, "L u0 | u1 i0 i1 x | N s | W0 | W1"),
    (1, "L u0 u1 x | N | N i0 i1 s | W0"),
    (1, "L A s | W0"),
    (1, "L A s | W0 | W1"),
    (2, "L A s | A | W0 | W1"),
    (1, "L F J s | W0"),
    (2, "L F J s | W0 | W1"),
    (1, "L u0 i0 J s | W0"),
    (1, "L u0 i0 i1 J s | D1 | W0 | W1"),
    (2, "L u0 i0 x T s | W0"),
    (2, "L u0 i0 x T s | W0 | W1"),
    (2, "L u0 x T s | W0 | W1"),
]

HUBS = [
    (2, "H H K | M0 | M1"),
    (1, "H H K | M0 | M1"),
    (1, "H H | S K | M0 | M1"),
    (1, "S S K | M0 | M1"),
    (1, "H H H K | M0o | M1n"),
    (2, "H U0 H K | M0 | M1"),
    (2, "H K | Y1 | M0 | M1"),
    (1, "H S | K | Y0 U1 | M0 | M1"),
    (1, "S? S? | V0"),
    (1, "S? S? | S? | V0"),
    (1, "S? S? S? | V0 S? | V1"),
    (1, "S? S? | S? S? | V0 V0 | V1 V1"),
    (1, "H S? | S? S? | V0o V0 | V1o"),
    (2, "S? S? | S? S? | V0 V0 | V1 U0"),
]

LOCK = [(1, "l l | l l | l")]

ALL = RING + WAITING + OPERATIONS + POOLS + MAPS + QUIET + HUBS + LOCK


def outcomes(
    capacity: int, items: tuple[str, ...], closed: bool, call: str, left: Any, done: Any = ()
) -> Iterator[tuple[Any, tuple[Any, ...], tuple[str, ...], bool]]:
    """What a call may do next on a queue that is touched by one at a time."""
    if call == "e":
        yield not items, (), items, closed
    elif call == "f":
        yield len(items) == capacity, (), items, closed
    elif call == "n":
        yield len(items), (), items, closed
    else:
        yield from of_batches(capacity, items, closed, call, left, done)
