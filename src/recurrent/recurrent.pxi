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
    """What forward and backward share, noise apart; returns the row of the table."""
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
    fill_norm(&s.norm, weights, tape[3] if len(tape) > 3 else None, cell, real, S, H, taped)
    return real


cdef int fill_norm(gc_recurrent_norm *norm, list weights, cnp.ndarray kept, int cell, int real, Py_ssize_t S,
                   Py_ssize_t H, bint taped) except -1:
    """Layer norm: weights are then [..., norm_ih, norm_hh, norm_c, norm_c_bias], the last two None without c."""
    norm.ih = norm.hh = norm.c = norm.c_bias = norm.kept = norm.d_ih = norm.d_hh = norm.d_c = norm.d_c_bias = NULL
    if len(weights) == 4 and kept is None:
        return 0
    cdef list gains = weights[4:] if len(weights) > 4 else [None] * 4
    cdef bint normed = gains[0] is not None, with_c = normed and cell_of(cell).has_c
    if len(gains) != 4 or (gains[1] is not None) != normed or (gains[2] is not None) != with_c or (
            (gains[3] is not None) != with_c) or (kept is not None) != (taped and normed):
        raise ValueError("kernel argument: expected all gains that the cell's layer norm has and their tape, or none")
    cdef Py_ssize_t GH = cell_of(cell).G * H
    norm.ih = pointer(gains[0], real, GH, False)
    norm.hh = pointer(gains[1], real, GH, False)
    norm.c = pointer(gains[2], real, H, False)
    norm.c_bias = pointer(gains[3], real, H, False)
    norm.kept = pointer(kept, real, S * TABLE.real[real].recurrent.norm_row(cell, H), kept is not None)
    return 0


cdef cnp.ndarray fill_zoneout(gc_zoneout *zoneout, noise):
    """Returns the mask of the noise."""
    zoneout.p, zoneout.mean, zoneout.key = 0, False, 0
    if noise is None:
        return None
    mask, zoneout.p, zoneout.mean, zoneout.key = noise
    if not 0 <= zoneout.p <= 1:
        raise ValueError(f"kernel argument: expected 0 <= p <= 1, got {zoneout.p}")
    return mask


cdef int fill_noise(gc_recurrent *s, noise, tape, int real) except -1:
    """noise: None or (mask, p, mean, key), recurrent dropout's factors (B, H) or None, and what gc_zoneout has."""
    cdef cnp.ndarray mask = fill_zoneout(&s.zoneout, noise), h_met = tape[4] if len(tape) > 4 else None
    if (mask is not None) != (h_met is not None) or (mask is not None and s.h_in == NULL):
        raise ValueError("kernel argument: expected a mask together with its tape")
    cdef Py_ssize_t state_row
    tape_rows(1, s.H, real, &state_row)
    s.mask = pointer(mask, real, s.B * s.H, False)
    s.h_met = pointer(h_met, real, s.offsets[s.T] * state_row, h_met is not None)
    return 0


cdef Py_ssize_t tape_rows(Py_ssize_t K, Py_ssize_t H, int real, Py_ssize_t *state_row):
    """Elements of a row of `gates`, which is returned, and of h_in and c_in."""
    cdef Py_ssize_t lanes = TABLE.real[real].lanes, size = 4 if real == GC_F32 else 8
    cdef Py_ssize_t padded = (H + lanes - 1) // lanes * lanes
    state_row[0] = gc_row(padded, size)
    return gc_row(K * padded, size)


def tape_layout(dtype, int cell, Py_ssize_t H):
    """Elements of a row of `gates`, of h_in and c_in and of layer norm's tape, and how many units stand together."""
    cdef int real = GC_F32 if dtype == "float32" else GC_F64
    cdef Py_ssize_t state_row, gates_row = tape_rows(cell_of(cell).K, H, real, &state_row)
    return gates_row, state_row, TABLE.real[real].recurrent.norm_row(cell, H), TABLE.real[real].lanes


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


def recurrent_forward(tuple steps, list weights, x, tape, tuple out, tuple state, take, noise=None):
    """Writes y[y_at, column : column + H], h, c and, unless None, gates, h_in, c_in, norm, h_met.

    steps: (cell, reverse, offsets, B); weights: [w_ih, w_hh, b_ih, b_hh], and with layer norm its gains; tape: (gates,
    h_in, c_in) and, unless both are None, norm and h_met; out: (y, y_at, column); state: (h, c). take(n) lends n bytes
    of scratch, which are returned for the caller to give back. noise: zoneout and recurrent dropout, see fill_noise.
    """
    cdef gc_recurrent s
    cdef int real = fill_recurrent(&s, steps, weights, x, tape, out[0])
    fill_noise(&s, noise, tape, real)
    s.y = output_rows(&s, out, real, True)
    fill_state(&s, state, real, &s.h, &s.c)
    s.work = NULL
    cdef size_t n = TABLE.real[real].recurrent.forward_work(&s)
    work = take(n)
    s.work = typed_pointer(work, cnp.NPY_UINT8, n, True)
    with nogil:
        checked(TABLE.real[real].recurrent.forward(&s))
    return work


def recurrent_backward(tuple steps, tuple weights, tuple rows, tape, tuple out, tuple state, tuple limits, take,
                       noise=None):
    """Adds into d_weights, writes dh, dc, dh_norm, dc_norm and dx (added to when dx_adds).

    steps, tape, take and noise are those of `recurrent_forward`; weights: (weights, d_weights); rows: (x, dx, dx_adds);
    out: (dy, y_at, column); state: (dh, dc); limits: (step_clip, dh_norm, dc_norm).
    """
    cdef gc_recurrent s
    cdef list its = weights[0], d = weights[1]
    cdef int real = fill_recurrent(&s, steps, its, rows[0], tape, out[0])
    cdef Py_ssize_t S = s.offsets[s.T]
    if tape[0] is None:
        raise ValueError("kernel argument: expected a tape")
    fill_noise(&s, noise, tape, real)
    s.dy = output_rows(&s, out, real, False)
    fill_state(&s, state, real, &s.dh, &s.dc)
    s.dx = pointer(rows[1], real, S * s.F, rows[1] is not None)
    s.dx_adds = rows[2]
    s.dw_ih = pointer(d[0], real, cnp.PyArray_SIZE(its[0]), True)
    s.dw_hh = pointer(d[1], real, cnp.PyArray_SIZE(its[1]), True)
    s.db_ih = pointer(d[2], real, 0 if s.b_ih == NULL else cnp.PyArray_SIZE(its[2]), s.b_ih != NULL)
    s.db_hh = pointer(d[3], real, 0 if s.b_hh == NULL else cnp.PyArray_SIZE(its[3]), s.b_hh != NULL)
    if s.norm.ih != NULL:
        s.norm.d_ih = pointer(d[4], real, cnp.PyArray_SIZE(its[4]), True)
        s.norm.d_hh = pointer(d[5], real, cnp.PyArray_SIZE(its[5]), True)
        if s.norm.c != NULL:
            s.norm.d_c = pointer(d[6], real, s.H, True)
            s.norm.d_c_bias = pointer(d[7], real, s.H, True)
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
