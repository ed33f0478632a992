"""Runs the suite: `python -m benchmarks [TOPIC ...] [--quick] [--rounds N] [--json FILE]`; without a topic, all."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from . import (
    bench_executor,
    bench_growth,
    bench_hub,
    bench_loops,
    bench_map,
    bench_operation_cost,
    bench_pool,
    bench_ring_buffer,
    bench_scale,
    bench_subscription_ring,
)
from .harness import Suite, add_options, open_suite

TOPICS = {
    "ring_buffer": bench_ring_buffer,
    "pool": bench_pool,
    "executor": bench_executor,
    "map": bench_map,
    "hub": bench_hub,
    "loops": bench_loops,
    "subscription_ring": bench_subscription_ring,
    "growth": bench_growth,
    "scale": bench_scale,
    "operation_cost": bench_operation_cost,
}


def add_topics(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("topics", nargs="*", metavar="TOPIC", help=f"of {', '.join(TOPICS)}; default: all")
    add_options(parser)


def run(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Suite:
    """Runs the topics that were named, or all."""
    for topic in options.topics:
        if topic not in TOPICS:
            parser.error(f"no topic {topic!r}: there are {', '.join(TOPICS)}")
    suite = open_suite(options)
    for topic in options.topics or TOPICS:
        print(f"\n===== {topic}", flush=True)
        suite.topic = topic
        TOPICS[topic].run(suite)
    suite.finish()
    return suite


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add_topics(parser)
    run(parser, parser.parse_args(arguments))


if __name__ == "__main__":
    main()
