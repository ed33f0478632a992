"""Atomics, a spin lock's instructions, the clock, bounded spinning, and facts of the build. Uses nothing of ringmill."""
