"""Atomics, the clock, bounded spinning, and the facts of the build. Uses nothing of ringmill."""
