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


cdef int fill_recurrent(gc_recurrent *s, tuple steps, list weights, cnp.ndarray x, tape,
                        cnp.ndarray y) except -1:
    """What forward and backward share; returns the row of the table."""
    cdef int cell = steps[0]
    cdef bint reverse = steps[1]
    cdef cnp.ndarray offsets = steps[2]
    cdef Py_ssize_t B = steps[3], ld_y = cnp.PyArray_DIM(y, 1)
    cdef cnp.ndarray w_ih = weights[0], w_hh = weights[1], gates = tape[0], h_in = tape[1], c_in = tape[2]
    cdef int real = real_of(w_ih)
    cdef Py_ssize_t G = cell_of(cell).G, K = cell_of(cell).K
    cdef bint taped = gates is not None
    if (weights[2] is None) != (weights[3] is None) or taped != (h_in is not None) or (
            (taped and cell_of(cell).has_c) != (c_in is not None)):
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


cdef int fill_state(gc_recurrent *s, tuple state, int real, void **h, void **c) except -1:
    if state[0] is None or (state[1] is not None) != cell_of(s.cell).has_c:
        raise ValueError("kernel argument: expected the state that the cell has")
    h[0] = pointer(state[0], real, s.B * s.H, True)
    c[0] = pointer(state[1], real, s.B * s.H, state[1] is not None)
    return 0


cdef void *output_rows(gc_recurrent *s, tuple out, int real, bint write) except NULL:
    """Where the columns from `column` on begin, in y or dy; y_at numbers the rows, None for the first ones."""
    cdef cnp.ndarray y = out[0], y_at = out[1]
    cdef Py_ssize_t column = out[2], S = s.offsets[s.T]
    if column + s.H > s.ld_y:
        raise ValueError("kernel argument: y is too narrow")
    s.y_at = row_numbers(y_at, y)
    if y_at is not None and cnp.PyArray_SIZE(y_at) != S:
        raise ValueError("kernel argument: rows of other sizes")
    return <char *> pointer(y, real, S * s.ld_y if y_at is None else 0, write) + column * (4 if real == GC_F32 else 8)


def recurrent_forward(tuple steps, list weights, x, tape, tuple out, tuple state, take):
    """Writes y[y_at, column : column + H], h, c and, unless None, gates, h_in, c_in.

    steps: (cell, reverse, offsets, B); weights: [w_ih, w_hh, b_ih, b_hh]; tape: (gates, h_in, c_in); out: (y, y_at,
    column); state: (h, c). take(n) lends n bytes of scratch, which are returned for the caller to give back.
    """
    cdef gc_recurrent s
    cdef int real = fill_recurrent(&s, steps, weights, x, tape, out[0])
    s.y = output_rows(&s, out, real, True)
    fill_state(&s, state, real, &s.h, &s.c)
    s.work = NULL
    cdef size_t n = TABLE.real[real].recurrent.forward_work(&s)
    work = take(n)
    s.work = typed_pointer(work, cnp.NPY_UINT8, n, True)
    with nogil:
        checked(TABLE.real[real].recurrent.forward(&s))
    return work


def recurrent_backward(tuple steps, tuple weights, tuple rows, tape, tuple out, tuple state, tuple limits, take):
    """Adds into d_weights, writes dh, dc, dh_norm, dc_norm and dx (added to when dx_adds).

    steps, tape and take are those of `recurrent_forward`; weights: (weights, d_weights); rows: (x, dx, dx_adds); out:
    (dy, y_at, column); state: (dh, dc); limits: (step_clip, dh_norm, dc_norm).
    """
    cdef gc_recurrent s
    cdef list its = weights[0], d = weights[1]
    cdef int real = fill_recurrent(&s, steps, its, rows[0], tape, out[0])
    cdef Py_ssize_t S = s.offsets[s.T]
    if tape[0] is None:
        raise ValueError("kernel argument: expected a tape")
    s.dy = output_rows(&s, out, real, False)
    fill_state(&s, state, real, &s.dh, &s.dc)
    s.dx = pointer(rows[1], real, S * s.F, rows[1] is not None)
    s.dx_adds = rows[2]
    s.dw_ih = pointer(d[0], real, cnp.PyArray_SIZE(its[0]), True)
    s.dw_hh = pointer(d[1], real, cnp.PyArray_SIZE(its[1]), True)
    s.db_ih = pointer(d[2], real, 0 if s.b_ih == NULL else cnp.PyArray_SIZE(its[2]), s.b_ih != NULL)
    s.db_hh = pointer(d[3], real, 0 if s.b_hh == NULL else cnp.PyArray_SIZE(its[3]), s.b_hh != NULL)
    s.step_clip = limits[0]
    s.dh_norm = <double *> pointer(limits[1], GC_F64, S, limits[1] is not None)
    s.dc_norm = <double *> pointer(limits[2], GC_F64, S, limits[2] is not None)
    s.work = NULL
    cdef size_t n = TABLE.real[real].recurrent.backward_work(&s)
    work = take(n)
    s.work = typed_pointer(work, cnp.NPY_UINT8, n, True)
    with nogil:
        checked(TABLE.real[real].recurrent.backward(&s))
    return work
