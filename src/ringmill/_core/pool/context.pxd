# Copies of contexts (contextvars). The rules are at the head of context.pyx.

cdef object capture()
