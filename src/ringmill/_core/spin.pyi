# Nothing here is for Python: see spin.pxd.
