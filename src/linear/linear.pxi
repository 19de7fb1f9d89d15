# Fills gc_linear from arrays. Shapes and meanings: linear.h.

cdef int fill_linear(gc_linear *s, cnp.ndarray x, cnp.ndarray w, Py_ssize_t N) except -1:
    """What forward and backward share; returns the row of the table."""
    cdef int real = real_of(w)
    s.threads = gc_get_num_threads()
    s.N, s.O, s.F = N, cnp.PyArray_DIM(w, 0), cnp.PyArray_DIM(w, 1)
    s.x = pointer(x, real, N * s.F, False)
    s.w = pointer(w, real, s.O * s.F, False)
    s.b, s.y, s.dy, s.dx, s.dw, s.db, s.work = NULL, NULL, NULL, NULL, NULL, NULL, NULL
    return real


def linear_forward(x, w, b, y, Py_ssize_t N, take):
    """Writes y. take(n) lends n bytes of scratch."""
    cdef gc_linear s
    cdef int real = fill_linear(&s, x, w, N)
    s.b = pointer(b, real, s.O, False)
    s.y = pointer(y, real, N * s.O, True)
    cdef size_t n = TABLE.real[real].linear.work(&s)
    work = take(n)
    s.work = typed_pointer(work, cnp.NPY_UINT8, n, True)
    with nogil:
        checked(TABLE.real[real].linear.forward(&s))
    return work


def linear_backward(x, w, dy, dx, dw, db, Py_ssize_t N, take):
    """Writes dx, adds into dw and db. take(n) lends n bytes of scratch."""
    cdef gc_linear s
    cdef int real = fill_linear(&s, x, w, N)
    s.dy = pointer(dy, real, N * s.O, False)
    s.dx = pointer(dx, real, N * s.F, True)
    s.dw = pointer(dw, real, s.O * s.F, True)
    s.db = pointer(db, real, s.O, db is not None)
    cdef size_t n = TABLE.real[real].linear.work(&s)
    work = take(n)
    s.work = typed_pointer(work, cnp.NPY_UINT8, n, True)
    with nogil:
        checked(TABLE.real[real].linear.backward(&s))
    return work
