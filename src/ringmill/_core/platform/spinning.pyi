# Nothing here is for Python: see spinning.pxd.
