# Fills gc_row_norm and gc_column_norm from arrays. Shapes and meanings: normalization.h.

cdef int fill_row_norm(gc_row_norm *s, cnp.ndarray x, w, Py_ssize_t F, mean, cnp.ndarray rstd) except -1:
    """What forward and backward share; returns the row of the table."""
    cdef int real = real_of(x)
    s.threads, s.centered, s.F, s.N, s.eps = gc_get_num_threads(), mean is not None, F, cnp.PyArray_SIZE(rstd), 0
    s.x = pointer(x, real, s.N * F, False)
    s.w = pointer(w, real, F, False)
    s.mean = <double *> pointer(mean, GC_F64, s.N, True)
    s.rstd = <double *> pointer(rstd, GC_F64, s.N, True)
    s.b, s.y, s.dy, s.dx, s.dw, s.db, s.work = NULL, NULL, NULL, NULL, NULL, NULL, NULL
    return real


def row_norm_forward(x, w, b, y, Py_ssize_t F, double eps, mean, rstd):
    """Writes y, rstd and, unless it is None, which means that there is none, mean."""
    cdef gc_row_norm s
    cdef int real = fill_row_norm(&s, x, w, F, mean, rstd)
    s.eps = eps
    s.b = pointer(b, real, F, False)
    s.y = pointer(y, real, s.N * F, True)
    with nogil:
        checked(TABLE.real[real].normalization.row_forward(&s))


def row_norm_backward(x, w, dy, dx, dw, db, Py_ssize_t F, mean, rstd, take):
    """Writes dx, adds into dw and db unless they are None. take(n) lends n bytes of scratch."""
    cdef gc_row_norm s
    cdef int real = fill_row_norm(&s, x, w, F, mean, rstd)
    s.dy = pointer(dy, real, s.N * F, False)
    s.dx = pointer(dx, real, s.N * F, True)
    s.dw = pointer(dw, real, F, dw is not None)
    s.db = pointer(db, real, F, db is not None)
    cdef size_t n = TABLE.real[real].normalization.row_work(&s)
    work = take(n)
    s.work = typed_pointer(work, cnp.NPY_UINT8, n, True)
    with nogil:
        checked(TABLE.real[real].normalization.row_backward(&s))
    return work


cdef int fill_column_norm(gc_column_norm *s, cnp.ndarray x, w, Py_ssize_t N, double eps, cnp.ndarray mean,
                          cnp.ndarray var) except -1:
    """What forward and backward share; returns the row of the table."""
    cdef int real = real_of(x)
    s.threads, s.given, s.N, s.F, s.eps = gc_get_num_threads(), 0, N, cnp.PyArray_SIZE(mean), eps
    s.x = pointer(x, real, N * s.F, False)
    s.w = pointer(w, real, s.F, False)
    s.mean = <double *> pointer(mean, GC_F64, s.F, True)
    s.var = <double *> pointer(var, GC_F64, s.F, True)
    s.b, s.y, s.dy, s.dx, s.dw, s.db, s.work = NULL, NULL, NULL, NULL, NULL, NULL, NULL
    return real


def column_norm_forward(x, w, b, y, Py_ssize_t N, double eps, bint given, mean, var, take):
    """Writes y, and mean and var unless they are given. take(n) lends n bytes of scratch."""
    cdef gc_column_norm s
    cdef int real = fill_column_norm(&s, x, w, N, eps, mean, var)
    s.given = given
    s.b = pointer(b, real, s.F, False)
    s.y = pointer(y, real, N * s.F, True)
    cdef size_t n = TABLE.real[real].normalization.column_work(&s)
    work = take(n)
    s.work = typed_pointer(work, cnp.NPY_UINT8, n, True)
    with nogil:
        checked(TABLE.real[real].normalization.column_forward(&s))
    return work


def column_norm_backward(x, w, dy, dx, dw, db, Py_ssize_t N, double eps, mean, var, take):
    """Writes dx, adds into dw and db unless they are None. take(n) lends n bytes of scratch."""
    cdef gc_column_norm s
    cdef int real = fill_column_norm(&s, x, w, N, eps, mean, var)
    s.dy = pointer(dy, real, N * s.F, False)
    s.dx = pointer(dx, real, N * s.F, True)
    s.dw = pointer(dw, real, s.F, dw is not None)
    s.db = pointer(db, real, s.F, db is not None)
    cdef size_t n = TABLE.real[real].normalization.column_work(&s)
    work = take(n)
    s.work = typed_pointer(work, cnp.NPY_UINT8, n, True)
    with nogil:
        checked(TABLE.real[real].normalization.column_backward(&s))
    return work
