/* The Elman network with tanh or relu: h_t is the only block.
 *
 * forward    (f1)  h_t = act(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)
 * backward         dg = dL/dh_t act'(.), by h_t: 1 - h^2, or h > 0;   dL/dh_{t-1} = dg W_hh
 * Jacobian         J = diag(act') W_hh
 * blocks           K = 1, G = 1: h;   D = 1
 * around it        forward.inc.h: input_part and recurrent_part make `pre`; backward.inc.h: step_back makes dL/dh_t and multiplies
 *                  dg by W_hh, weight_part makes dW and db, backward_body walks the steps and makes dL/dx
 * twin             gradcore/reference/: _step_forward and _step_backward in recurrent.py, step_jacobians in spectral.py
 * tests            tests/layers/test_recurrent.py: test_backward_agrees_with_finite_differences[RNN_TANH, RNN_RELU],
 *                  test_relu_lets_nan_through_in_both_passes;
 *                  tests/spectral/test_spectral.py: test_jacobians_against_differences_of_the_twin[RNN_TANH, RNN_RELU];
 *                  tests/kernels_test.c: test_cell, test_jacobian; tests/kernels_fuzz.c
 */
INLINE void FN(rnn_forward)(const FN(cell_row) *p, ptrdiff_t j, int relu)
{
    VEC a = FN(v_load)(p->pre + j - p->u0), h = relu ? FN(v_max)(FN(v_zero)(), a) : FN(v_tanh)(a); /* (f1) */
    if (p->gates) FN(keep)(p, p->gates + j, h);
    FN(put_h)(p, j, h);
}

INLINE void FN(rnn_backward)(const FN(cell_row) *p, ptrdiff_t j, int relu)
{
    /* h > 0, written so that a NaN in h does not hide the gradient; smaller numbers have been flushed to zero */
    const VEC least = FN(v_set1)(GC_BITS == 32 ? (REAL)FLT_MIN : (REAL)DBL_MIN);
    VEC h = FN(v_load)(p->gates + j), dh = FN(clipped_dh)(p, j);
    VEC dg = relu ? FN(v_select_gt)(least, h, FN(v_zero)(), dh) : FN(d_tanh)(dh, h); /* inverts (f1) */
    FN(v_put)(p->dg + j, dg, p->u1 - j);
}

INLINE void FN(rnn_step)(const FN(cell_rows) *restrict rows, int relu)
{
    FN(cell_row) row = rows->first;
    for (ptrdiff_t b = 0; b < rows->n; b++, FN(to_next_row)(rows, &row, b))
        for (ptrdiff_t j = row.u0; j < row.u1; j += V) FN(rnn_forward)(&row, j, relu);
}

INLINE void FN(rnn_step_back)(const FN(cell_row) *given, int relu)
{
    const FN(cell_row) row = *given;
    for (ptrdiff_t j = row.u0; j < row.u1; j += V) FN(rnn_backward)(&row, j, relu);
}

static void FN(rnn_tanh_step)(const FN(cell_rows) *rows) { FN(rnn_step)(rows, 0); }
static void FN(rnn_relu_step)(const FN(cell_rows) *rows) { FN(rnn_step)(rows, 1); }
static void FN(rnn_tanh_step_back)(const FN(cell_row) *row) { FN(rnn_step_back)(row, 0); }
static void FN(rnn_relu_step_back)(const FN(cell_row) *row) { FN(rnn_step_back)(row, 1); }

static void FN(rnn_tanh_factors)(const FN(cell_row) *p, const FN(c_norm) *norm, double *to)
{
    (void)norm;
    for (ptrdiff_t j = 0; j < p->H; j++) {
        const double h = p->gates[j];
        to[j] = 1 - h * h;
    }
}

static void FN(rnn_relu_factors)(const FN(cell_row) *p, const FN(c_norm) *norm, double *to)
{
    (void)norm;
    for (ptrdiff_t j = 0; j < p->H; j++) {
        const double h = p->gates[j];
        to[j] = (h - h) + (h > 0); /* NaN where h is not finite */
    }
}

static const FN(cell) FN(rnn_tanh) = {.step = FN(rnn_tanh_step), .step_back = FN(rnn_tanh_step_back), .factors = FN(rnn_tanh_factors)};
static const FN(cell) FN(rnn_relu) = {.step = FN(rnn_relu_step), .step_back = FN(rnn_relu_step_back), .factors = FN(rnn_relu_factors)};

#if GC_BITS == 64
/* h' = s p */
static void rnn_carry(ptrdiff_t H, const double *factors, const double *normed_c, const double *pre, double *v)
{
    (void)normed_c;
    for (ptrdiff_t j = 0; j < H; j += V) FN(v_put)(v + j, FN(v_mul)(FACTOR(0), PRE(0)), H - j);
}

static void rnn_carry_back(ptrdiff_t H, const double *factors, const double *normed_c, double *pre, double *v)
{
    (void)normed_c;
    for (ptrdiff_t j = 0; j < H; j += V) PUT_PRE(0, FN(v_mul)(FACTOR(0), FN(v_get)(v + j, H - j)));
}

static const jacobian_cell rnn_tanh_jacobian = {rnn_carry, rnn_carry_back}, rnn_relu_jacobian = {rnn_carry, rnn_carry_back};
#endif
