/* Long short-term memory.
 *
 * forward    (f2)  i, f, o = sigmoid(a), g = tanh(a) with a = W_ih x_t + b_ih + W_hh h_{t-1} + b_hh
 *            (f3)  c_t = f c_{t-1} + i g
 *            (f4)  h_t = o tanh(c_t)
 * backward         dc = dL/dc_t + dL/dh_t o (1 - tanh(c_t)^2);   dL/dc_{t-1} = dc f
 *                  di = dc g i (1 - i);   df = dc c_{t-1} f (1 - f);   dg = dc i (1 - g^2);   do = dL/dh_t tanh(c_t) o (1 - o)
 *                  dL/dh_{t-1} = (di, df, dg, do) W_hh
 * layer norm (f4n) h_t = o tanh(n) with n = gain c' + bias and c' as in norm.inc.h; o waits in h_t's place for it
 * Jacobian         with p = W_hh v_h: c' = a_i p_i + a_f p_f + a_g p_g + f v_c,   h' = a_o p_o + d c'; with layer norm d P c', for
 *                  which jacobian.inc.h says what P is
 * blocks           K = 4, G = 4: i, f, g, o, as in the weights;   D = 6: a_i, a_f, a_g, a_o, f, d
 * around it        forward.inc.h: input_part and recurrent_part make `pre`; backward.inc.h: step_back makes dL/dh_t and multiplies
 *                  dg by W_hh, weight_part makes dW and db, backward_body walks the steps and makes dL/dx
 * twin             gradcore/reference/: _step_forward and _step_backward in recurrent.py, step_jacobians in spectral.py
 * tests            tests/layers/test_recurrent.py: test_backward_agrees_with_finite_differences[LSTM],
 *                  test_saturated_gates_agree_with_the_twin[LSTM];
 *                  tests/spectral/test_spectral.py: test_jacobians_against_differences_of_the_twin[LSTM];
 *                  tests/kernels_test.c: test_cell, test_jacobian; tests/kernels_fuzz.c
 */

/* (f3); the backward pass makes c_t again, to the same bits */
INLINE VEC FN(lstm_c)(VEC i, VEC f, VEC g, VEC c_in) { return FN(v_fma)(f, c_in, FN(v_mul)(i, g)); }

INLINE void FN(lstm_forward)(const FN(cell_row) *p, ptrdiff_t j, int to_c)
{
    const ptrdiff_t live = p->u1 - j;
    const REAL *pre = p->pre + 4 * (j - p->u0);
    REAL *c_at = p->c + j;
    VEC i = FN(v_sigmoid)(FN(v_load)(pre)), f = FN(v_sigmoid)(FN(v_load)(pre + V)); /* (f2) */
    VEC g = FN(v_tanh)(FN(v_load)(pre + 2 * V)), o = FN(v_sigmoid)(FN(v_load)(pre + 3 * V));
    VEC c_in = FN(v_get)(c_at, live), c = FN(lstm_c)(i, f, g, c_in); /* (f3) */
    VEC h = to_c ? o : FN(v_mul)(o, FN(v_tanh)(c));                  /* (f4) */
    if (p->gates) {
        REAL *gates = p->gates + 4 * j;
        FN(keep)(p, gates, i);
        FN(keep)(p, gates + V, f);
        FN(keep)(p, gates + 2 * V, g);
        FN(keep)(p, gates + 3 * V, o);
        FN(keep)(p, p->c_in + j, c_in);
    }
    FN(v_put)(c_at, c, live);
    if (to_c)
        FN(v_put)(p->h + j, h, live);
    else
        FN(put_h)(p, j, h);
}

INLINE void FN(lstm_backward)(const FN(cell_row) *p, ptrdiff_t j, int to_c)
{
    const ptrdiff_t H = p->H, live = p->u1 - j;
    const REAL *gates = p->gates + 4 * j;
    REAL *di = p->dg + j, *df = di + H, *dg = df + H, *do_ = dg + H;
    VEC i = FN(v_load)(gates), f = FN(v_load)(gates + V), g = FN(v_load)(gates + 2 * V), o = FN(v_load)(gates + 3 * V);
    VEC c_in = FN(v_get)(p->c_in + j, live), dc = FN(v_get)(p->dc + j, live);
    if (!to_c) {
        VEC dh = FN(clipped_dh)(p, j), tanh_c = FN(v_tanh)(FN(lstm_c)(i, f, g, c_in));
        dc = FN(v_add)(dc, FN(d_tanh)(FN(v_mul)(dh, o), tanh_c));      /* inverts (f4) */
        FN(v_put)(do_, FN(d_sigmoid)(FN(v_mul)(dh, tanh_c), o), live); /* do = dh tanh(c_t) o (1 - o) */
    }
    FN(v_put)(p->dc_total + j, dc, live);
    FN(v_put)(p->dc + j, FN(v_mul)(dc, f), live);              /* inverts (f3) */
    FN(v_put)(di, FN(d_sigmoid)(FN(v_mul)(dc, g), i), live);       /* di = dc g i (1 - i), and so on inverts (f2) */
    FN(v_put)(df, FN(d_sigmoid)(FN(v_mul)(dc, c_in), f), live);    /* df = dc c_{t-1} f (1 - f) */
    FN(v_put)(dg, FN(d_tanh)(FN(v_mul)(dc, i), g), live);          /* dg = dc i (1 - g^2) */
}

INLINE void FN(lstm_rows)(const FN(cell_rows) *restrict rows, int to_c)
{
    for (ptrdiff_t j = rows->first.u0; j < rows->first.u1; j += V) {
        FN(cell_row) row = rows->first;
        for (ptrdiff_t b = 0; b < rows->n; b++, FN(to_next_row)(rows, &row, b)) FN(lstm_forward)(&row, j, to_c);
    }
}

static void FN(lstm_step)(const FN(cell_rows) *rows) { FN(lstm_rows)(rows, 0); }
static void FN(lstm_step_to_c)(const FN(cell_rows) *rows) { FN(lstm_rows)(rows, 1); }

static void FN(lstm_step_back)(const FN(cell_row) *given)
{
    const FN(cell_row) row = *given;
    for (ptrdiff_t j = row.u0; j < row.u1; j += V) FN(lstm_backward)(&row, j, 0);
}

static void FN(lstm_step_to_c_back)(const FN(cell_row) *given)
{
    const FN(cell_row) row = *given;
    for (ptrdiff_t j = row.u0; j < row.u1; j += V) FN(lstm_backward)(&row, j, 1);
}

/* n of the units from j on, from c' */
INLINE VEC FN(lstm_n)(const FN(c_norm) *norm, ptrdiff_t j, VEC c, ptrdiff_t live)
{
    return FN(v_fma)(FN(v_get)(norm->gain + j, live), c, FN(v_get)(norm->bias + j, live));
}

static void FN(lstm_step_from_c)(const FN(cell_row) *given, const FN(c_norm) *of)
{
    const FN(cell_row) row = *given;
    const FN(c_norm) norm = *of;
    const VEC mean = FN(v_set1)(norm.mean), scale = FN(v_set1)(norm.scale);
    for (ptrdiff_t j = row.u0; j < row.u1; j += V) {
        const ptrdiff_t live = row.u1 - j;
        VEC c = FN(v_mul)(FN(v_sub)(FN(v_get)(row.c + j, live), mean), scale), o = FN(v_get)(row.h + j, live);
        if (norm.c) FN(keep)(&row, norm.c + j / V * norm.group, c);
        FN(put_h)(&row, j, FN(v_mul)(o, FN(v_tanh)(FN(lstm_n)(&norm, j, c, live)))); /* (f4n) */
    }
}

static void FN(lstm_step_from_c_back)(const FN(cell_row) *given, const FN(c_norm) *of)
{
    const FN(cell_row) row = *given;
    const FN(c_norm) norm = *of;
    const ptrdiff_t H = row.H;
    for (ptrdiff_t j = row.u0; j < row.u1; j += V) {
        const ptrdiff_t live = row.u1 - j;
        VEC c = FN(v_load)(norm.c + j / V * norm.group), o = FN(v_load)(row.gates + 4 * j + 3 * V);
        VEC dh = FN(clipped_dh)(&row, j), tanh_n = FN(v_tanh)(FN(lstm_n)(&norm, j, c, live));
        VEC dn = FN(d_tanh)(FN(v_mul)(dh, o), tanh_n);
        FN(v_put)(row.dg + 3 * H + j, FN(d_sigmoid)(FN(v_mul)(dh, tanh_n), o), live); /* do = dh tanh(n) o (1 - o) */
        FN(v_put)(norm.dn + j, FN(v_mul)(dn, c), live);
        FN(v_put)(norm.dn + H + j, dn, live); /* dn = dh o (1 - tanh(n)^2), which inverts (f4n) */
    }
}

static void FN(lstm_factors)(const FN(cell_row) *p, const FN(c_norm) *norm, double *to)
{
    const ptrdiff_t H = p->H;
    for (ptrdiff_t j = 0; j < H; j++) {
        const REAL *block = p->gates + j / V * 4 * V + j % V;
        const double i = block[0], f = block[V], g = block[2 * V], o = block[3 * V], c = p->c_in[j];
        const double n = norm ? (double)norm->gain[j] * norm->c[j / V * norm->group + j % V] + norm->bias[j] : f * c + i * g;
        const double squashed = tanh(n), through = norm ? (double)norm->gain[j] * norm->scale : 1;
        to[j] = g * i * (1 - i);
        to[H + j] = c * f * (1 - f);
        to[2 * H + j] = i * (1 - g * g);
        to[3 * H + j] = squashed * o * (1 - o);
        to[4 * H + j] = f;
        to[5 * H + j] = o * (1 - squashed * squashed) * through;
    }
}

static const FN(cell) FN(lstm) = {FN(lstm_step),        FN(lstm_step_back),        FN(lstm_factors),       FN(lstm_step_to_c),
                                  FN(lstm_step_from_c), FN(lstm_step_from_c_back), FN(lstm_step_to_c_back)};

#if GC_BITS == 64
static void lstm_carry(ptrdiff_t H, const double *factors, const double *normed_c, const double *pre, double *v)
{
    for (ptrdiff_t j = 0; j < H; j += V) {
        VEC c = FN(v_mul)(FACTOR(4), FN(v_get)(v + H + j, H - j));
        c = FN(v_fma)(FACTOR(0), PRE(0), c);
        c = FN(v_fma)(FACTOR(1), PRE(1), c);
        c = FN(v_fma)(FACTOR(2), PRE(2), c);
        FN(v_put)(v + H + j, c, H - j);
        FN(v_put)(v + j, FN(v_fma)(FACTOR(3), PRE(3), FN(v_mul)(FACTOR(5), c)), H - j);
    }
    if (!normed_c) return;
    memcpy(v, v + H, (size_t)H * sizeof *v);
    take_out_norm(H, normed_c, v);
    for (ptrdiff_t j = 0; j < H; j += V)
        FN(v_put)(v + j, FN(v_fma)(FACTOR(3), PRE(3), FN(v_mul)(FACTOR(5), FN(v_get)(v + j, H - j))), H - j);
}

static void lstm_carry_back(ptrdiff_t H, const double *factors, const double *normed_c, double *pre, double *v)
{
    if (normed_c) { /* the first block of pre is free until then */
        for (ptrdiff_t j = 0; j < H; j += V) PUT_PRE(0, FN(v_mul)(FACTOR(5), FN(v_get)(v + j, H - j)));
        take_out_norm(H, normed_c, pre);
    }
    for (ptrdiff_t j = 0; j < H; j += V) {
        const VEC h = FN(v_get)(v + j, H - j), from_c = FN(v_get)(v + H + j, H - j);
        const VEC c = normed_c ? FN(v_add)(PRE(0), from_c) : FN(v_fma)(FACTOR(5), h, from_c);
        PUT_PRE(0, FN(v_mul)(FACTOR(0), c));
        PUT_PRE(1, FN(v_mul)(FACTOR(1), c));
        PUT_PRE(2, FN(v_mul)(FACTOR(2), c));
        PUT_PRE(3, FN(v_mul)(FACTOR(3), h));
        FN(v_put)(v + H + j, FN(v_mul)(FACTOR(4), c), H - j);
    }
}

static const jacobian_cell lstm_jacobian = {lstm_carry, lstm_carry_back};
#endif
