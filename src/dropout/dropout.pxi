# Fills gc_dropout from arrays. Shapes and meanings: dropout.h.

def dropout(double p, cnp.uint64_t key, cnp.ndarray given not None, cnp.ndarray out not None):
    """Writes y for x, and dx for dy."""
    cdef gc_dropout s
    cdef int real = real_of(given)
    s.threads, s.n, s.key, s.p = gc_get_num_threads(), cnp.PyArray_SIZE(given), key, p
    s.input = pointer(given, real, s.n, False)
    s.out = pointer(out, real, s.n, True)
    with nogil:
        checked(TABLE.real[real].dropout.run(&s))
