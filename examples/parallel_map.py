"""Parses documents on a pool of workers, shows progress, and reports the documents that could not be parsed at the end.

    python examples/parallel_map.py [--documents N] [--workers N]

The documents are made here: orders in XML, some of which are cut off. Each worker has a list of prices of its own, made
in `init`, that no other thread uses. `map` gives one result for each document, in the order of the documents: what
`process` returned or, with errors="return", the exception. A progress bar is drawn if tqdm is installed and stderr is a
terminal.

The parser (expat) holds the GIL on a standard build of CPython, so more workers help on a free-threaded build only.

Prints the total of each customer in the order of first appearance, then the errors. Exit status: 0; 1 if a document
could not be parsed; 2 for bad arguments.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple
from xml.etree import ElementTree

from ringmill import Worker, WorkerPool

try:
    from tqdm import tqdm
except ImportError:
    tqdm = None

CUSTOMERS = ("Ada", "Blaise", "Charles")
PRICES = {"nut": 2, "bolt": 3, "wheel": 50}
BROKEN_EVERY = 97


class Order(NamedTuple):
    """What a document says."""

    customer: str
    total: int


class Parser(Worker[Any]):
    """Parses one document at a time."""

    def init(self) -> None:
        self.price_of = dict(PRICES)  # stands for a connection, a model, a compiled schema

    def process(self, text: str) -> Order:
        order = ElementTree.fromstring(text)
        total = sum(self.price_of[line.attrib["item"]] * int(line.attrib["count"]) for line in order)
        return Order(order.attrib["customer"], total)


def make_documents(count: int) -> list[str]:
    """Returns so many orders as XML. Each 97th is cut off, so that it cannot be parsed."""
    documents = []
    for number in range(1, count + 1):
        lines = "".join(
            f'<line item="{item}" count="{1 + (number + position) % 5}"/>' for position, item in enumerate(PRICES)
        )
        text = f'<order customer="{CUSTOMERS[number % 3]}">{lines}</order>'
        documents.append(text[:40] if number % BROKEN_EVERY == 0 else text)
    return documents


def with_progress(results: Iterable[Order | BaseException]) -> Iterable[Order | BaseException]:
    """The same results, with a progress bar if there can be one. Results of a list have a length: tqdm has a total."""
    if tqdm is None:
        return results
    return tqdm(results, desc="parsing", unit=" documents", disable=None)  # None: no bar if stderr is not a terminal


def parse_all(documents: list[str], workers: int) -> tuple[dict[str, int], list[tuple[int, BaseException]]]:
    """Returns the total of each customer; and the number and the error of each document that could not be parsed."""
    totals: dict[str, int] = {}
    errors: list[tuple[int, BaseException]] = []
    with WorkerPool(Parser, workers, name="parser") as pool:
        for number, result in enumerate(with_progress(pool.map(documents, errors="return")), start=1):
            if isinstance(result, BaseException):
                errors.append((number, result))
            else:
                totals[result.customer] = totals.get(result.customer, 0) + result.total
    return totals, errors


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Parses documents on a pool of workers.")
    parser.add_argument(
        "--documents", metavar="N", type=positive, default=1000,
        help="how many to make and parse (default: %(default)s)",
    )
    parser.add_argument(
        "--workers", metavar="N", type=positive, default=os.cpu_count() or 1,
        help="how many threads parse (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    totals, errors = parse_all(make_documents(options.documents), options.workers)
    for customer, total in totals.items():
        print(f"{customer}: {total}")
    for number, error in errors:
        print(f"parallel_map: document {number}: {error}", file=sys.stderr)
    print(f"{options.documents} documents, {len(errors)} could not be parsed", file=sys.stderr)
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
