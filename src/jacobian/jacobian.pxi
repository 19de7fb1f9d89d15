# Fills gc_jacobian from arrays. Shapes and meanings: jacobian.h and recurrent/cell.h.

def jacobian_factors(int cell, Py_ssize_t H, cnp.ndarray rows, tape, list weights=[None] * 4, noise=None):
    """(n, gc_jacobian_rows, H), float64, for n rows of a tape; the last one is for the mask, where the noise has one.

    tape, weights, of which only the gains are read, and noise are those of `recurrent_forward`.
    """
    cdef cnp.ndarray gates = tape[0], h_in = tape[1], c_in = tape[2]
    if h_in is None or (c_in is not None) != cell_of(cell).has_c:
        raise ValueError("kernel argument: expected all that the cell's tape has")
    cdef int real = real_of(gates)
    cdef Py_ssize_t state_row, gates_row = tape_rows(cell_of(cell).K, H, real, &state_row)
    cdef Py_ssize_t n = cnp.PyArray_SIZE(rows), S = cnp.PyArray_DIM(gates, 0)
    cdef const Py_ssize_t *numbers = row_numbers(rows, gates)
    cdef gc_tape kept
    kept.cell, kept.H = cell, H
    kept.gates = pointer(gates, real, S * gates_row, False)
    kept.h_in = pointer(h_in, real, S * state_row, False)
    kept.c_in = pointer(c_in, real, S * state_row, False)
    fill_norm(&kept.norm, weights, tape[3] if len(tape) > 3 else None, cell, real, S, H, True)
    cdef bint masked = fill_zoneout(&kept.zoneout, noise) is not None
    cdef cnp.npy_intp[3] shape
    shape[0], shape[1], shape[2] = n, gc_jacobian_rows(cell, beside(weights, noise)), H
    cdef cnp.ndarray factors = cnp.PyArray_EMPTY(3, shape, cnp.NPY_FLOAT64, 0)
    cdef double *out = <double *> cnp.PyArray_DATA(factors)
    with nogil:
        checked(TABLE.real[real].jacobian_factors(gc_get_num_threads(), &kept, masked, n, numbers, out))
    return factors


cdef int beside(list weights, noise) except -1:
    """What is between the states of a step beside the cell."""
    cdef int found = GC_NORMED if len(weights) > 4 and weights[4] is not None else 0
    if noise is not None:
        found |= (GC_ZONED if noise[1] > 0 else 0) | (GC_MASKED if noise[0] is not None else 0)
    return found


def jacobian_rows(int cell, list weights, noise):
    """Where the rows of layer norm, of zoneout and of the mask begin in the factors, and where these end."""
    cdef int its = beside(weights, noise)
    ends = [gc_jacobian_rows(cell, its & mask) for mask in (0, GC_NORMED, GC_NORMED | GC_ZONED, its)]
    return tuple(ends)


def jacobian_packed(int cell, bint transposed, cnp.ndarray w_hh, take):
    """W_hh, float64, packed for `jacobian_product`, in n bytes from take(n)."""
    cdef Py_ssize_t H = cnp.PyArray_DIM(w_hh, 1)
    cdef const double *w = <const double *> pointer(w_hh, GC_F64, cell_of(cell).G * H * H, False)
    cdef size_t n = 8 * TABLE.jacobian.packed(cell, transposed, H, NULL, NULL)
    packed = take(n)
    TABLE.jacobian.packed(cell, transposed, H, w, <double *> typed_pointer(packed, cnp.NPY_UINT8, n, True))
    return packed


def jacobian_product(int cell, bint transposed, cnp.ndarray factors, cnp.ndarray packed, cnp.ndarray v,
                     cnp.ndarray log_norm, take, list weights=[None] * 4, noise=None):
    """v (B, m, P*H) through the steps of factors (steps, B, ., H), in place; log_norm is (steps, B, m) or None.

    weights and noise are those of `jacobian_factors`, and say what the factors are of. take(n) lends n bytes of
    scratch, which are returned for the caller to give back.
    """
    cdef gc_jacobian s
    s.cell, s.beside, s.transposed, s.threads = cell, beside(weights, noise), transposed, gc_get_num_threads()
    s.steps, s.B, s.H = cnp.PyArray_DIM(factors, 0), cnp.PyArray_DIM(factors, 1), cnp.PyArray_DIM(factors, 3)
    s.m = cnp.PyArray_DIM(v, 1)
    cell_of(cell)
    s.factors = <const double *> pointer(
        factors, GC_F64, s.steps * s.B * gc_jacobian_rows(cell, s.beside) * s.H, False)
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
