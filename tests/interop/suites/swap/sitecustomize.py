"""Python imports this module before anything else: ringmill takes the place of the standard classes."""

import os

if os.environ.get("RINGMILL_SWAP"):
    import ringmill_swap

    ringmill_swap.install(os.environ["RINGMILL_SWAP"].split())
