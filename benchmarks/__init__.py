"""What ringmill costs, against its rivals: `python -m benchmarks`, in the root of a clone."""
