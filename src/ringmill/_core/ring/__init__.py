"""The lock-free ring and RingBuffer, its face. Uses `platform` and `waiting`."""
