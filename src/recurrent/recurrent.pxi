# Fills gc_recurrent from arrays. Shapes and meanings: recurrent.h and cell.h.


def cells():
    """What the table in cell.h knows of each cell, by name.

    kind: its number; gates: G; kept: K; factors: D; has_cell: whether its state is h and c; bypass: whether part of
    h_{t-1} reaches h_t beside W_hh; ih, hh: the gate of the weights whose product with the input and with h_{t-1} each
    block of the tape takes, -1 for none.
    """
    table = {}
    for kind in range(GC_CELLS):
        G, K, first = gc_cells[kind].G, gc_cells[kind].K, gc_cells[kind].first_gate
        none = (-1,) * (K - G)
        table[(<bytes> gc_cells[kind].name).decode().removeprefix("GC_")] = {
            "kind": kind, "gates": G, "kept": K, "factors": gc_cells[kind].D,
            "has_cell": bool(gc_cells[kind].has_c), "bypass": bool(gc_cells[kind].bypass),
            "ih": (*((first + k) % G for k in range(G)), *none), "hh": (*none, *range(G)),
        }
    return table


for _name, _cell in cells().items():
    globals()[_name] = _cell["kind"]  # RNN_TANH, LSTM, ...


cdef const gc_cell *cell_of(int cell) except NULL:
    if not 0 <= cell < GC_CELLS:
        raise ValueError(f"kernel argument: expected a cell below {GC_CELLS}, got {cell}")
    return &gc_cells[cell]


cdef const Py_ssize_t *packed_steps(cnp.ndarray offsets, Py_ssize_t B) except NULL:
    """Where the steps of a packed batch begin: from row 0 on, none with more rows than the one before, or than B."""
    cdef const Py_ssize_t *rows = <const Py_ssize_t *> typed_pointer(offsets, cnp.NPY_INTP, 1, False)
    cdef Py_ssize_t t, alive = B
    if rows[0] != 0 or B < 0:
        raise ValueError(f"kernel argument: expected steps from row 0 on and B >= 0, got row {rows[0]} and B = {B}")
    for t in range(cnp.PyArray_SIZE(offsets) - 1):
        if not rows[t] <= rows[t + 1] or rows[t + 1] - rows[t] > alive:
            raise ValueError(
                f"kernel argument: expected 0 to {alive} rows of step {t}, got rows {rows[t]} to {rows[t + 1]}")
        alive = rows[t + 1] - rows[t]
    return rows


cdef int fill_recurrent(gc_recurrent *s, int cell, bint reverse, cnp.ndarray offsets, Py_ssize_t B,
                        list weights, cnp.ndarray x, cnp.ndarray gates, cnp.ndarray h_in, cnp.ndarray c_in,
                        Py_ssize_t ld_y) except -1:
    """What forward and backward share; returns the row of the table."""
    cdef cnp.ndarray w_ih = weights[0], w_hh = weights[1]
    cdef int real = real_of(w_ih)
    cdef Py_ssize_t G = cell_of(cell).G, K = cell_of(cell).K
    cdef bint tape = gates is not None
    if (weights[2] is None) != (weights[3] is None) or tape != (h_in is not None) or (
            (tape and cell_of(cell).has_c) != (c_in is not None)):
        raise ValueError("kernel argument: expected both biases or none, and all that the cell's tape has or nothing")
    cdef Py_ssize_t T = cnp.PyArray_SIZE(offsets) - 1
    cdef Py_ssize_t H = cnp.PyArray_DIM(w_hh, 1), F = cnp.PyArray_DIM(w_ih, 1)
    s.cell, s.reverse, s.threads = cell, reverse, gc_get_num_threads()
    s.T, s.B, s.F, s.H, s.ld_y = T, B, F, H, ld_y
    s.offsets = packed_steps(offsets, B)
    cdef Py_ssize_t S = s.offsets[T]
    if (<double> S + B) * (<double> F + <double> K * H + ld_y + 64) + <double> G * H * (<double> F + H) > 2.0 ** 60:
        raise ValueError(
            f"kernel argument: expected sizes that memory has room for, got S = {S}, B = {B}, F = {F}, H = {H}")
    s.w_ih = pointer(w_ih, real, G * H * F, False)
    s.w_hh = pointer(w_hh, real, G * H * H, False)
    s.b_ih = pointer(weights[2], real, G * H, False)
    s.b_hh = pointer(weights[3], real, G * H, False)
    s.x = pointer(x, real, S * F, False)
    cdef Py_ssize_t state_row, gates_row = tape_rows(K, H, real, &state_row)
    s.gates = pointer(gates, real, S * gates_row, gates is not None)
    s.h_in = pointer(h_in, real, S * state_row, h_in is not None)
    s.c_in = pointer(c_in, real, S * state_row, c_in is not None)
    return real


cdef Py_ssize_t tape_rows(Py_ssize_t K, Py_ssize_t H, int real, Py_ssize_t *state_row):
    """Elements of a row of `gates`, which is returned, and of h_in and c_in."""
    cdef Py_ssize_t lanes = TABLE.real[real].lanes, size = 4 if real == GC_F32 else 8
    cdef Py_ssize_t padded = (H + lanes - 1) // lanes * lanes
    state_row[0] = gc_row(padded, size)
    return gc_row(K * padded, size)


def tape_layout(dtype, Py_ssize_t kept, Py_ssize_t H):
    """Elements of a row of `gates` and of h_in and c_in, and how many units stand together in `gates`."""
    cdef int real = GC_F32 if dtype == "float32" else GC_F64
    cdef Py_ssize_t state_row, gates_row = tape_rows(kept, H, real, &state_row)
    return gates_row, state_row, TABLE.real[real].lanes


cdef const Py_ssize_t *row_numbers(cnp.ndarray at, cnp.ndarray a) except? NULL:
    """The numbers of rows of a; NULL for None."""
    if at is None:
        return NULL
    cdef const Py_ssize_t *numbers = <const Py_ssize_t *> typed_pointer(at, cnp.NPY_INTP, 0, False)
    cdef Py_ssize_t i, rows = cnp.PyArray_DIM(a, 0)
    for i in range(cnp.PyArray_SIZE(at)):
        if not 0 <= numbers[i] < rows:
            raise ValueError(f"kernel argument: row {numbers[i]} of {rows}")
    return numbers


def copy_rows(cnp.ndarray source, cnp.ndarray source_at, cnp.ndarray to, cnp.ndarray to_at):
    """to[to_at] = source[source_at]; None for all rows in their order, and for a source of zeros."""
    cdef int real = real_of(to)
    cdef Py_ssize_t width = cnp.PyArray_DIM(to, 1), size = 4 if real == GC_F32 else 8
    cdef Py_ssize_t n = cnp.PyArray_DIM(to, 0) if to_at is None else cnp.PyArray_SIZE(to_at)
    cdef void *target = pointer(to, real, 0, True)
    cdef const Py_ssize_t *target_rows = row_numbers(to_at, to)
    cdef const void *given = pointer(source, real, n * width if source_at is None else 0, False)
    cdef const Py_ssize_t *given_rows = row_numbers(source_at, source)
    if (source is not None and cnp.PyArray_DIM(source, 1) != width) or (
            source_at is not None and cnp.PyArray_SIZE(source_at) != n):
        raise ValueError("kernel argument: rows of other sizes")
    with nogil:
        checked(gc_copy_rows(n, width * size, given, given_rows, target, target_rows))


cdef int same_state(int cell, h, c) except -1:
    if h is None or (c is not None) != cell_of(cell).has_c:
        raise ValueError("kernel argument: expected the state that the cell has")
    return 0


cdef void *output_rows(gc_recurrent *s, cnp.ndarray y, cnp.ndarray y_at, Py_ssize_t column, int real,
                       bint write) except NULL:
    """Where the columns from `column` on begin, in y or dy; y_at numbers the rows, None for the first ones."""
    cdef Py_ssize_t S = s.offsets[s.T]
    if column + s.H > s.ld_y:
        raise ValueError("kernel argument: y is too narrow")
    s.y_at = row_numbers(y_at, y)
    if y_at is not None and cnp.PyArray_SIZE(y_at) != S:
        raise ValueError("kernel argument: rows of other sizes")
    return <char *> pointer(y, real, S * s.ld_y if y_at is None else 0, write) + column * (4 if real == GC_F32 else 8)


def recurrent_forward(int cell, bint reverse, offsets, Py_ssize_t B, list weights, x, y, y_at, Py_ssize_t column,
                      h, c, gates, h_in, c_in, take):
    """Writes y[y_at, column : column + H], h, c and, unless None, gates, h_in, c_in.

    take(n) lends n bytes of scratch, which are returned for the caller to give back.
    """
    cdef gc_recurrent s
    cdef Py_ssize_t ld_y = cnp.PyArray_DIM(y, 1)
    cdef int real = fill_recurrent(&s, cell, reverse, offsets, B, weights, x, gates, h_in, c_in, ld_y)
    same_state(cell, h, c)
    s.y = output_rows(&s, y, y_at, column, real, True)
    s.h = pointer(h, real, B * s.H, True)
    s.c = pointer(c, real, B * s.H, c is not None)
    s.work = NULL
    cdef size_t n = TABLE.real[real].recurrent.forward_work(&s)
    work = take(n)
    s.work = typed_pointer(work, cnp.NPY_UINT8, n, True)
    with nogil:
        checked(TABLE.real[real].recurrent.forward(&s))
    return work


def recurrent_backward(int cell, bint reverse, offsets, Py_ssize_t B, list weights, x, gates, h_in, c_in,
                       dy, y_at, Py_ssize_t column, dh, dc, dx, bint dx_adds, list d_weights, double step_clip,
                       dh_norm, dc_norm, take):
    """Adds into d_weights, writes dh, dc, dh_norm, dc_norm and dx (added to when dx_adds)."""
    cdef gc_recurrent s
    cdef Py_ssize_t ld_y = cnp.PyArray_DIM(dy, 1)
    cdef int real = fill_recurrent(&s, cell, reverse, offsets, B, weights, x, gates, h_in, c_in, ld_y)
    cdef Py_ssize_t S = s.offsets[s.T]
    same_state(cell, dh, dc)
    if gates is None:
        raise ValueError("kernel argument: expected a tape")
    s.dy = output_rows(&s, dy, y_at, column, real, False)
    s.dh = pointer(dh, real, B * s.H, True)
    s.dc = pointer(dc, real, B * s.H, dc is not None)
    s.dx = pointer(dx, real, S * s.F, dx is not None)
    s.dx_adds = dx_adds
    s.dw_ih = pointer(d_weights[0], real, cnp.PyArray_SIZE(weights[0]), True)
    s.dw_hh = pointer(d_weights[1], real, cnp.PyArray_SIZE(weights[1]), True)
    s.db_ih = pointer(d_weights[2], real, 0 if s.b_ih == NULL else cnp.PyArray_SIZE(weights[2]), s.b_ih != NULL)
    s.db_hh = pointer(d_weights[3], real, 0 if s.b_hh == NULL else cnp.PyArray_SIZE(weights[3]), s.b_hh != NULL)
    s.step_clip = step_clip
    s.dh_norm = <double *> pointer(dh_norm, GC_F64, S, dh_norm is not None)
    s.dc_norm = <double *> pointer(dc_norm, GC_F64, S, dc_norm is not None)
    s.work = NULL
    cdef size_t n = TABLE.real[real].recurrent.backward_work(&s)
    work = take(n)
    s.work = typed_pointer(work, cnp.NPY_UINT8, n, True)
    with nogil:
        checked(TABLE.real[real].recurrent.backward(&s))
    return work
