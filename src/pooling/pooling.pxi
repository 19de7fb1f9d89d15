# Fills gc_mean from arrays. Shapes and meanings: pooling.h.

cdef int run_mean(cnp.ndarray x, cnp.ndarray y, cnp.ndarray lengths, bint batch_first, bint back) except -1:
    """y for x, or with `back` x, which is dx then, for y, which is dy."""
    cdef gc_mean s
    cdef int real = real_of(x)
    cdef Py_ssize_t i
    s.threads, s.batch_first = gc_get_num_threads(), batch_first
    s.T, s.B = cnp.PyArray_DIM(x, batch_first), cnp.PyArray_DIM(x, not batch_first)
    s.F = cnp.PyArray_DIM(x, 2)
    s.lengths = NULL
    if lengths is not None:
        s.lengths = <const Py_ssize_t *> typed_pointer(lengths, cnp.NPY_INTP, s.B, False)
        for i in range(s.B):
            if not 0 <= s.lengths[i] <= s.T:
                raise ValueError(f"kernel argument: length {s.lengths[i]} of {s.T}")
    s.x = s.y = s.dy = s.dx = NULL
    if back:
        s.dy = pointer(y, real, s.B * s.F, False)
        s.dx = pointer(x, real, 0, True)
    else:
        s.x = pointer(x, real, 0, False)
        s.y = pointer(y, real, s.B * s.F, True)
    with nogil:
        checked(TABLE.real[real].pooling.mean(&s))
    return 0


def mean_forward(cnp.ndarray x not None, cnp.ndarray y not None, cnp.ndarray lengths, bint batch_first):
    """Writes y."""
    run_mean(x, y, lengths, batch_first, False)


def mean_backward(cnp.ndarray dy not None, cnp.ndarray dx not None, cnp.ndarray lengths, bint batch_first):
    """Writes dx."""
    run_mean(dx, dy, lengths, batch_first, True)
