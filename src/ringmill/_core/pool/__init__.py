"""Operations, and one run of a pool: sources, retries, the worker loop, accounting, streams. Uses `ring`, `waiting`
and `platform`.
"""
