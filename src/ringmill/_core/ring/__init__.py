"""The lock-free ring, and RingBuffer, which makes it a Python queue. Uses `platform` and `waiting`."""
