# Fills gc_residual from arrays. Shapes and meanings: residual.h.

def residual_add(a, double scale, cnp.ndarray b not None, out):
    """Writes out = a + scale b; a is None for zeros."""
    cdef gc_residual s
    cdef int real = real_of(b)
    s.threads, s.n, s.scale = gc_get_num_threads(), cnp.PyArray_SIZE(b), scale
    s.a = pointer(a, real, s.n, False)
    s.b = pointer(b, real, s.n, False)
    s.out = pointer(out, real, s.n, True)
    with nogil:
        checked(TABLE.real[real].residual.add(&s))
