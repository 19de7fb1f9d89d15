# Fills gc_jacobian from arrays. Shapes and meanings: jacobian.h and recurrent/cell.h.

def jacobian_factors(int cell, Py_ssize_t H, cnp.ndarray rows, cnp.ndarray gates, cnp.ndarray h_in,
                     cnp.ndarray c_in):
    """(n, D, H), float64, for n rows of a tape."""
    if h_in is None or (c_in is not None) != cell_of(cell).has_c:
        raise ValueError("kernel argument: expected all that the cell's tape has")
    cdef int real = real_of(gates)
    cdef Py_ssize_t state_row, gates_row = tape_rows(cell_of(cell).K, H, real, &state_row)
    cdef Py_ssize_t n = cnp.PyArray_SIZE(rows), S = cnp.PyArray_DIM(gates, 0)
    cdef const Py_ssize_t *numbers = row_numbers(rows, gates)
    cdef gc_tape tape
    tape.cell, tape.H = cell, H
    tape.gates = pointer(gates, real, S * gates_row, False)
    tape.h_in = pointer(h_in, real, S * state_row, False)
    tape.c_in = pointer(c_in, real, S * state_row, False)
    cdef cnp.npy_intp[3] shape
    shape[0], shape[1], shape[2] = n, cell_of(cell).D, H
    cdef cnp.ndarray factors = cnp.PyArray_EMPTY(3, shape, cnp.NPY_FLOAT64, 0)
    cdef double *out = <double *> cnp.PyArray_DATA(factors)
    with nogil:
        checked(TABLE.real[real].jacobian_factors(gc_get_num_threads(), &tape, n, numbers, out))
    return factors


def jacobian_packed(int cell, bint transposed, cnp.ndarray w_hh, take):
    """W_hh, float64, packed for `jacobian_product`, in n bytes from take(n)."""
    cdef Py_ssize_t H = cnp.PyArray_DIM(w_hh, 1)
    cdef const double *w = <const double *> pointer(w_hh, GC_F64, cell_of(cell).G * H * H, False)
    cdef size_t n = 8 * TABLE.jacobian.packed(cell, transposed, H, NULL, NULL)
    packed = take(n)
    TABLE.jacobian.packed(cell, transposed, H, w, <double *> typed_pointer(packed, cnp.NPY_UINT8, n, True))
    return packed


def jacobian_product(int cell, bint transposed, cnp.ndarray factors, cnp.ndarray packed, cnp.ndarray v,
                     cnp.ndarray log_norm, take):
    """v (B, m, P*H) through the steps of factors (steps, B, D, H), in place; log_norm is (steps, B, m) or None.

    take(n) lends n bytes of scratch, which are returned for the caller to give back.
    """
    cdef gc_jacobian s
    s.cell, s.transposed, s.threads = cell, transposed, gc_get_num_threads()
    s.steps, s.B, s.H = cnp.PyArray_DIM(factors, 0), cnp.PyArray_DIM(factors, 1), cnp.PyArray_DIM(factors, 3)
    s.m = cnp.PyArray_DIM(v, 1)
    s.factors = <const double *> pointer(factors, GC_F64, s.steps * s.B * cell_of(cell).D * s.H, False)
    s.packed = <const double *> typed_pointer(
        packed, cnp.NPY_UINT8, 8 * TABLE.jacobian.packed(cell, transposed, s.H, NULL, NULL), False)
    s.v = <double *> pointer(v, GC_F64, s.B * s.m * s.H * (1 + cell_of(cell).has_c), True)
    s.log_norm = <double *> pointer(log_norm, GC_F64, s.steps * s.B * s.m, log_norm is not None)
    cdef size_t n = TABLE.jacobian.work(&s)
    work = take(n)
    s.work = <double *> typed_pointer(work, cnp.NPY_UINT8, n, True)
    with nogil:
        checked(TABLE.jacobian.product(&s))
    return work


def jacobian_separate(cnp.ndarray v, bint orthonormal):
    """v (B, k, n) by rows that are orthonormal or just far from parallel, in place; returns ln abs(R_ii), (B, k).

    k <= n: no more rows than that are independent.
    """
    cdef Py_ssize_t B = cnp.PyArray_DIM(v, 0), k = cnp.PyArray_DIM(v, 1), n = cnp.PyArray_DIM(v, 2)
    if k > n:
        raise ValueError(f"kernel argument: expected at most {n} rows, got {k}")
    cdef double *rows = <double *> pointer(v, GC_F64, B * k * n, True)
    cdef cnp.npy_intp[2] shape
    shape[0], shape[1] = B, k
    cdef cnp.ndarray logs = cnp.PyArray_EMPTY(2, shape, cnp.NPY_FLOAT64, 0)
    cdef cnp.ndarray pivots = cnp.PyArray_EMPTY(2, shape, cnp.NPY_INTP, 0)
    cdef double *out = <double *> cnp.PyArray_DATA(logs)
    cdef Py_ssize_t *at = NULL if orthonormal else <Py_ssize_t *> cnp.PyArray_DATA(pivots)
    with nogil:
        checked(TABLE.jacobian.separate(gc_get_num_threads(), B, k, n, rows, out, at))
    return logs
