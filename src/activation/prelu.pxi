# Fills gc_prelu from arrays. Shapes and meanings: prelu.h.

cdef int fill_prelu(gc_prelu *s, cnp.ndarray x, cnp.ndarray w) except -1:
    """What forward and backward share; returns the row of the table."""
    cdef int real = real_of(w)
    s.threads, s.n, s.C = gc_get_num_threads(), cnp.PyArray_SIZE(x), cnp.PyArray_SIZE(w)
    if not s.C or s.C > 1 and s.n % s.C:
        raise ValueError(f"kernel argument: {s.n} elements for {s.C} slopes")
    s.x = pointer(x, real, s.n, False)
    s.w = pointer(w, real, s.C, False)
    s.y = s.dy = s.dx = s.dw = s.work = NULL
    return real


def prelu_forward(cnp.ndarray x not None, cnp.ndarray w not None, cnp.ndarray y not None):
    """Writes y."""
    cdef gc_prelu s
    cdef int real = fill_prelu(&s, x, w)
    s.y = pointer(y, real, s.n, True)
    with nogil:
        checked(TABLE.real[real].prelu.run(&s))


def prelu_backward(cnp.ndarray x not None, cnp.ndarray w not None, cnp.ndarray dy not None, cnp.ndarray dx not None,
                   cnp.ndarray dw not None, take):
    """Writes dx, adds into dw. take(n) lends n bytes of scratch."""
    cdef gc_prelu s
    cdef int real = fill_prelu(&s, x, w)
    s.dy = pointer(dy, real, s.n, False)
    s.dx = pointer(dx, real, s.n, True)
    s.dw = pointer(dw, real, s.C, True)
    cdef size_t n = TABLE.real[real].prelu.work(&s)
    work = take(n)
    s.work = typed_pointer(work, cnp.NPY_UINT8, n, True)
    with nogil:
        checked(TABLE.real[real].prelu.run(&s))
    return work
