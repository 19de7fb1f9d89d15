/* The gated recurrent unit whose reset gate comes after the recurrent product.
 *
 * forward    (f5)  r, z = sigmoid(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)
 *            (f6)  n = tanh(W_in x_t + b_in + r q) with q = W_hn h_{t-1} + b_hn
 *            (f7)  h_t = (1 - z) n + z h_{t-1}, made as n + z (h_{t-1} - n)
 * backward         dn = dL/dh_t (1 - z) (1 - n^2);   dr = dn q r (1 - r);   dz = dL/dh_t (h_{t-1} - n) z (1 - z);   dq = dn r
 *                  dL/dh_{t-1} = (dr, dz, dq) W_hh + dL/dh_t z
 * Jacobian         with p = W_hh v: h' = a_r p_r + a_z p_z + a_n p_n + z v
 * blocks           K = 4, G = 3: n, r, z, q, so that both the input's products (n, r, z) and the recurrent ones (r, z, q) are
 *                  neighbors; the weights have r, z, n. All are kept after their activation but q;   D = 4: a_r, a_z, a_n, z
 * around it        forward.inc.h: input_part and recurrent_part make `pre`; backward.inc.h: step_back makes dL/dh_t, multiplies
 *                  dg by W_hh and adds the bypass, weight_part makes dW and db, backward_body walks the steps and makes dL/dx
 * twin             gradcore/reference/: _step_forward and _step_backward in recurrent.py, step_jacobians in spectral.py
 * tests            tests/layers/test_recurrent.py: test_backward_agrees_with_finite_differences[GRU],
 *                  test_saturated_gates_agree_with_the_twin[GRU];
 *                  tests/spectral/test_spectral.py: test_jacobians_against_differences_of_the_twin[GRU];
 *                  tests/kernels_test.c: test_cell, test_jacobian; tests/kernels_fuzz.c
 */
INLINE void FN(gru_forward)(const FN(cell_row) *p, ptrdiff_t j)
{
    const REAL *pre = p->pre + 4 * (j - p->u0);
    VEC r = FN(v_sigmoid)(FN(v_load)(pre + V)), z = FN(v_sigmoid)(FN(v_load)(pre + 2 * V)); /* (f5) */
    VEC q = FN(v_load)(pre + 3 * V), n = FN(v_tanh)(FN(v_fma)(r, q, FN(v_load)(pre)));      /* (f6) */
    VEC h = FN(v_fma)(z, FN(v_sub)(FN(v_get)(p->h + j, p->u1 - j), n), n);    /* (f7) */
    if (p->gates) {
        REAL *gates = p->gates + 4 * j;
        FN(keep)(p, gates, n);
        FN(keep)(p, gates + V, r);
        FN(keep)(p, gates + 2 * V, z);
        FN(keep)(p, gates + 3 * V, q);
    }
    FN(put_h)(p, j, h);
}

INLINE void FN(gru_backward)(const FN(cell_row) *p, ptrdiff_t j)
{
    const ptrdiff_t H = p->H, live = p->u1 - j;
    const REAL *gates = p->gates + 4 * j;
    REAL *dn = p->dg + j, *dr = dn + H, *dz = dr + H, *dq = dz + H;
    VEC n = FN(v_load)(gates), r = FN(v_load)(gates + V), z = FN(v_load)(gates + 2 * V), q = FN(v_load)(gates + 3 * V);
    VEC dh = FN(clipped_dh)(p, j), h_less_n = FN(v_sub)(FN(v_get)(p->h_in + j, live), n);
    VEC into_n = FN(d_tanh)(FN(v_mul)(dh, FN(v_sub)(FN(v_set1)(R(1.0)), z)), n);
    FN(v_put)(dn, into_n, live);                                    /* dn = dh (1 - z) (1 - n^2) */
    FN(v_put)(dr, FN(d_sigmoid)(FN(v_mul)(into_n, q), r), live);    /* dr = dn q r (1 - r) */
    FN(v_put)(dz, FN(d_sigmoid)(FN(v_mul)(dh, h_less_n), z), live); /* dz = dh (h_{t-1} - n) z (1 - z) */
    FN(v_put)(dq, FN(v_mul)(into_n, r), live);                      /* dq = dn r, which inverts (f6) */
    FN(v_put)(p->bypass + j, FN(v_mul)(dh, z), live);       /* inverts (f7) */
}

static void FN(gru_step)(const FN(cell_rows) *restrict rows)
{
    for (ptrdiff_t j = rows->first.u0; j < rows->first.u1; j += V) {
        FN(cell_row) row = rows->first;
        for (ptrdiff_t b = 0; b < rows->n; b++, FN(to_next_row)(rows, &row, b)) FN(gru_forward)(&row, j);
    }
}

static void FN(gru_step_back)(const FN(cell_row) *given)
{
    const FN(cell_row) row = *given;
    for (ptrdiff_t j = row.u0; j < row.u1; j += V) FN(gru_backward)(&row, j);
}

static void FN(gru_factors)(const FN(cell_row) *p, const FN(c_norm) *norm, double *to)
{
    (void)norm;
    const ptrdiff_t H = p->H;
    for (ptrdiff_t j = 0; j < H; j++) {
        const REAL *block = p->gates + j / V * 4 * V + j % V;
        const double n = block[0], r = block[V], z = block[2 * V], q = block[3 * V];
        const double into_n = (1 - z) * (1 - n * n);
        to[j] = into_n * q * r * (1 - r);
        to[H + j] = ((double)p->h_in[j] - n) * z * (1 - z);
        to[2 * H + j] = into_n * r;
        to[3 * H + j] = z;
    }
}

static const FN(cell) FN(gru) = {.step = FN(gru_step), .step_back = FN(gru_step_back), .factors = FN(gru_factors)};

#if GC_BITS == 64
static void gru_carry(ptrdiff_t H, const double *factors, const double *normed_c, const double *pre, double *v)
{
    (void)normed_c;
    for (ptrdiff_t j = 0; j < H; j += V) {
        VEC h = FN(v_mul)(FACTOR(3), FN(v_get)(v + j, H - j));
        h = FN(v_fma)(FACTOR(0), PRE(0), h);
        h = FN(v_fma)(FACTOR(1), PRE(1), h);
        FN(v_put)(v + j, FN(v_fma)(FACTOR(2), PRE(2), h), H - j);
    }
}

static void gru_carry_back(ptrdiff_t H, const double *factors, const double *normed_c, double *pre, double *v)
{
    (void)normed_c;
    for (ptrdiff_t j = 0; j < H; j += V) {
        const VEC h = FN(v_get)(v + j, H - j);
        PUT_PRE(0, FN(v_mul)(FACTOR(0), h));
        PUT_PRE(1, FN(v_mul)(FACTOR(1), h));
        PUT_PRE(2, FN(v_mul)(FACTOR(2), h));
        FN(v_put)(v + j, FN(v_mul)(FACTOR(3), h), H - j);
    }
}

static const jacobian_cell gru_jacobian = {gru_carry, gru_carry_back};
#endif
