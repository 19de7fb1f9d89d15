/* The activations and their derivatives, element by element. */
#ifndef REAL
#error "activation.inc.h needs real.inc.h, simd.inc.h and vmath.inc.h"
#endif

/* ==== functions that only activations need ============================================================================== */

/* expm1(x) for x <= 0; max ULP 3 */
INLINE VEC FN(v_expm1_negative)(VEC x)
{
    const REAL saturates = GC_BITS == 32 ? R(-20.0) : R(-40.0); /* exp of it is lost beside 1 */
    VEC scale, p = FN(v_exp_parts)(FN(v_max)(FN(v_set1)(saturates), x), &scale);
    return FN(v_fma)(scale, p, FN(v_sub)(scale, FN(v_set1)(R(1.0))));
}

/* log(1 + e) for 0 <= e <= 1, as 2 artanh(s) with 2 s = 2 e / (2 + e) <= 2/3; max ULP 3 */
INLINE VEC FN(v_log1p_unit)(VEC e)
{
    enum { TERMS = GC_BITS == 32 ? 8 : 17 };
    VEC twice = FN(v_div)(FN(v_add)(e, e), FN(v_add)(e, FN(v_set1)(R(2.0)))), sum = FN(v_zero)();
    VEC square = FN(v_mul)(FN(v_mul)(twice, twice), FN(v_set1)(R(0.25)));
#pragma GCC unroll 20
    for (int k = TERMS - 1; k > 0; k--) sum = FN(v_fma)(sum, square, FN(v_set1)(R(1.0) / (REAL)(2 * k + 1)));
    return FN(v_fma)(FN(v_mul)(twice, square), sum, twice);
}

/* The standard normal distribution P(z <= x), and E = exp(-x^2/2). With a = |x| and u = (a - K) / (a + K), the tail is
 * E f(u) / (2 (a + K)); f is smooth, here its interpolation at Chebyshev nodes, to 2e-9 and 4e-17. */
INLINE VEC FN(v_normal)(VEC x, VEC *E)
{
#if GC_BITS == 32
    const REAL K = 3, vanishes = 16;
    static const REAL f[] = {1.4581673814f,     -1.018663975f,     0.46003535492f,     -0.094525581679f,
                             -0.020924619616f,  0.013940162804f,   0.0020485894445f,   -0.0020695642445f,
                             -0.00049000358846f, 0.00026695918259f, 0.0001113016641f};
#else
    const REAL K = 4, vanishes = 40;
    static const REAL f[] = {1.510570260831502957,      -1.215793283943783528,     0.7742748014844386703,
                             -0.3730437159193867845,    0.1207931497813533087,     -0.01508037793125003367,
                             -0.006959384723608119124,  0.003261636884961177129,   0.0002666884995671685639,
                             -0.0004621896482999420799, -3.815686811849741057e-6,  0.00007028842993651560725,
                             1.429861665095680179e-6,   -0.00001183802637230808825, -1.249981399073957043e-6,
                             2.040142678513692897e-6,   5.270862112136890825e-7,   -3.092393638244383749e-7,
                             -1.526942568688217217e-7,  2.968478014550268622e-8,   2.795305631190164367e-8,
                             -2.030591435299235947e-11, -1.9981248320046552e-9};
#endif
    enum { TERMS = sizeof f / sizeof *f };
    VEC half = FN(v_set1)(R(0.5)), one = FN(v_set1)(R(1.0));
    VEC a = FN(v_min)(FN(v_set1)(vanishes), FN(v_abs)(x)); /* beyond that the tail is below all numbers */
    VEC square = FN(v_mul)(a, a), lost = FN(v_fma)(a, a, FN(v_sub)(FN(v_zero)(), square));
    VEC e = FN(v_exp_negative)(FN(v_mul)(square, FN(v_set1)(R(-0.5))));
    e = FN(v_fnma)(e, FN(v_mul)(half, lost), e); /* the rounding of the square counts when it is large */
    VEC shifted = FN(v_add)(a, FN(v_set1)(K)), u = FN(v_div)(FN(v_sub)(a, FN(v_set1)(K)), shifted);
    VEC value = FN(v_set1)(f[TERMS - 1]);
#pragma GCC unroll 25
    for (int k = TERMS - 2; k >= 0; k--) value = FN(v_fma)(value, u, FN(v_set1)(f[k]));
    VEC tail = FN(v_div)(FN(v_mul)(FN(v_mul)(half, e), value), shifted);
    *E = e;
    return FN(v_select_gt)(x, FN(v_zero)(), FN(v_sub)(one, tail), tail);
}

/* 2 u of gelu's tanh form, (1 + tanh u) / 2 = sigmoid(2 u), and its derivative by x; x is limited where the sigmoid is
 * 0 or 1 for good, or their product would be 0 times infinity. */
INLINE VEC FN(v_gelu_argument)(VEC x, VEC *derivative)
{
    const REAL root = R(0.79788456080286535588), cubic = R(0.044715); /* sqrt(2 / pi) */
    x = FN(v_max)(FN(v_set1)(R(-30.0)), FN(v_min)(FN(v_set1)(R(30.0)), x));
    VEC square = FN(v_mul)(x, x), one = FN(v_set1)(R(1.0));
    *derivative = FN(v_mul)(FN(v_set1)(2 * root), FN(v_fma)(FN(v_set1)(3 * cubic), square, one));
    return FN(v_mul)(FN(v_mul)(FN(v_set1)(2 * root), x), FN(v_fma)(FN(v_set1)(cubic), square, one));
}

/* ==== activations ======================================================================================================= */

/* p and q: see activation.h. `kind` is a constant where this is inlined. */
INLINE VEC FN(activation)(const int kind, VEC x, VEC p, VEC q)
{
    VEC zero = FN(v_zero)(), unused;
    switch (kind) {
    case GC_TANH: return FN(v_tanh)(x);
    case GC_SIGMOID: return FN(v_sigmoid)(x);
    case GC_RELU: return FN(v_max)(zero, x);
    case GC_LEAKY_RELU: return FN(v_select_gt)(x, zero, x, FN(v_mul)(p, x));
    case GC_ELU: {
        VEC below = FN(v_mul)(p, FN(v_expm1_negative)(FN(v_min)(zero, x)));
        return FN(v_mul)(q, FN(v_select_gt)(x, zero, x, below));
    }
    case GC_GELU: return FN(v_mul)(x, FN(v_normal)(x, &unused));
    case GC_GELU_TANH: return FN(v_mul)(x, FN(v_sigmoid)(FN(v_gelu_argument)(x, &unused)));
    case GC_SOFTPLUS: {
        VEC z = FN(v_mul)(p, x);
        VEC tail = FN(v_log1p_unit)(FN(v_exp_negative)(FN(v_sub)(zero, FN(v_abs)(z))));
        return FN(v_select_gt)(z, q, x, FN(v_div)(FN(v_add)(FN(v_max)(zero, z), tail), p));
    }
    case GC_SILU: return FN(v_mul)(x, FN(v_sigmoid)(x));
    default: return x;
    }
}

/* dL/dx from dL/dy; `kept` is y for tanh, sigmoid and relu, x for the others. Inverts `activation`. */
INLINE VEC FN(activation_back)(const int kind, VEC kept, VEC d, VEC p, VEC q)
{
    VEC zero = FN(v_zero)(), one = FN(v_set1)(R(1.0));
    switch (kind) {
    case GC_TANH: return FN(d_tanh)(d, kept);
    case GC_SIGMOID: return FN(d_sigmoid)(d, kept);
    case GC_RELU: return FN(v_select_gt)(kept, zero, d, kept); /* kept is 0 or NaN there, and a NaN must show */
    case GC_LEAKY_RELU: { /* here, too */
        VEC below = FN(v_max)(FN(v_sub)(zero, one), FN(v_min)(zero, kept)); /* finite or NaN */
        return FN(v_mul)(d, FN(v_select_gt)(kept, zero, one, FN(v_fma)(below, zero, p)));
    }
    case GC_ELU: {
        VEC below = FN(v_mul)(p, FN(v_exp_negative)(FN(v_min)(zero, kept)));
        return FN(v_mul)(FN(v_mul)(q, d), FN(v_select_gt)(kept, zero, one, below));
    }
    case GC_GELU: {
        const REAL vanishes = 40;
        VEC E, share_below = FN(v_normal)(kept, &E);
        VEC x = FN(v_max)(FN(v_set1)(-vanishes), FN(v_min)(FN(v_set1)(vanishes), kept)); /* or infinity times 0 */
        VEC density = FN(v_mul)(E, FN(v_set1)(R(0.39894228040143267794)));
        return FN(v_mul)(d, FN(v_fma)(x, density, share_below));
    }
    case GC_GELU_TANH: {
        VEC derivative, s = FN(v_sigmoid)(FN(v_gelu_argument)(kept, &derivative));
        VEC slope = FN(v_mul)(FN(v_mul)(s, FN(v_sub)(one, s)), derivative);
        VEC x = FN(v_max)(FN(v_set1)(R(-30.0)), FN(v_min)(FN(v_set1)(R(30.0)), kept));
        return FN(v_mul)(d, FN(v_fma)(x, slope, s));
    }
    case GC_SOFTPLUS: {
        VEC z = FN(v_mul)(p, kept);
        return FN(v_mul)(d, FN(v_select_gt)(z, q, one, FN(v_sigmoid)(z)));
    }
    case GC_SILU: {
        const REAL vanishes = GC_BITS == 32 ? R(100.0) : R(750.0); /* where the sigmoid is 0 or 1, or infinity times 0 */
        VEC x = FN(v_max)(FN(v_set1)(-vanishes), FN(v_min)(FN(v_set1)(vanishes), kept)), s = FN(v_sigmoid)(x);
        return FN(v_mul)(d, FN(v_mul)(s, FN(v_fma)(x, FN(v_sub)(one, s), one)));
    }
    default: return d;
    }
}

INLINE void FN(activation_span)(const int kind, const gc_activation *s, ptrdiff_t first, ptrdiff_t end)
{
    const REAL *in = s->in, *dy = s->dy;
    REAL *out = s->out;
    VEC p = FN(v_set1)((REAL)s->p), q = FN(v_set1)((REAL)s->q);
    if (dy)
        for (ptrdiff_t i = first; i < end; i += V)
            FN(v_put)(out + i, FN(activation_back)(kind, FN(v_get)(in + i, end - i), FN(v_get)(dy + i, end - i), p, q), end - i);
    else
        for (ptrdiff_t i = first; i < end; i += V)
            FN(v_put)(out + i, FN(activation)(kind, FN(v_get)(in + i, end - i), p, q), end - i);
}

static void FN(activation_body)(void *arg, gc_team *team, int thread)
{
    const gc_activation *s = arg;
    ptrdiff_t first, end;
    gc_share_tiles(s->n, ELEMENT_BLOCK, team, thread, &first, &end);
    for (ptrdiff_t at = first, to; at < end; at = to) {
        if (at > first && gc_stopped(team, thread)) return;
        to = gc_min(end, at + LOOK_ELEMENTS);
#define SPAN(kind)                                                                                                             \
    case kind:                                                                                                                 \
        FN(activation_span)(kind, s, at, to);                                                                                  \
        break;
        switch (s->kind) {
            SPAN(GC_IDENTITY) SPAN(GC_TANH) SPAN(GC_SIGMOID) SPAN(GC_RELU) SPAN(GC_LEAKY_RELU) SPAN(GC_ELU) SPAN(GC_GELU)
            SPAN(GC_GELU_TANH) SPAN(GC_SOFTPLUS) SPAN(GC_SILU)
        }
#undef SPAN
    }
}

static int FN(activation_run)(const gc_activation *s)
{
    return gc_parallel(s->n < SERIAL_ELEMENTS ? 1 : s->threads, 0, FN(activation_body), (void *)s);
}

static const gc_activation_kernels FN(activation_kernels) = {FN(activation_run)};
