/* exp, sigmoid, tanh of vectors. The ULP bound stands beside each; tests/test_vmath.py reads it ("max ULP") and measures,
 * bench/ulp.py over all of float32. A result below the smallest normal number may be 0 instead: kernels flush such numbers. */

/* c[0] + c[1] x + ... */
INLINE VEC FN(v_polynomial)(const REAL *c, int terms, VEC x)
{
    VEC sum = FN(v_set1)(c[terms - 1]);
#pragma GCC unroll 16
    for (int i = terms - 2; i >= 0; i--) sum = FN(v_fma)(sum, x, FN(v_set1)(c[i]));
    return sum;
}

/* 2^n (1 + p) = exp(x), with p = expm1(r), r = x - n ln 2, |r| <= ln(2)/2; x must be within the range of v_round. */
INLINE VEC FN(v_exp_parts)(VEC x, VEC *n)
{
    /* ln 2 in two parts, the first short enough that n times it is exact */
#if GC_BITS == 32
    const REAL ln2_high = 0x1.62e4p-1f, ln2_low = 0x1.7f7d1cp-20f;
    static const REAL inverse_factorial[] = {1.f / 2, 1.f / 6, 1.f / 24, 1.f / 120, 1.f / 720, 1.f / 5040};
    enum { TERMS = 6 };
#else
    const REAL ln2_high = 0x1.62e42fefa3800p-1, ln2_low = 0x1.ef35793c76730p-45;
    static const REAL inverse_factorial[] = {1. / 2,      1. / 6,       1. / 24,       1. / 120,
                                             1. / 720,    1. / 5040,    1. / 40320,    1. / 362880,
                                             1. / 3628800, 1. / 39916800, 1. / 479001600, 1. / 6227020800.};
    enum { TERMS = 12 };
#endif
    *n = FN(v_round)(FN(v_mul)(x, FN(v_set1)(R(1.4426950408889634))));
    VEC r = FN(v_fma)(*n, FN(v_set1)(-ln2_high), x);
    r = FN(v_fma)(*n, FN(v_set1)(-ln2_low), r);
    return FN(v_fma)(FN(v_mul)(r, r), FN(v_polynomial)(inverse_factorial, TERMS, r), r);
}

/* exp(x) for x <= 0; max ULP 2. NaN stays NaN, -inf gives 0. */
INLINE VEC FN(v_exp_negative)(VEC x)
{
    VEC n;
    const REAL underflow = GC_BITS == 32 ? R(-105.0) : R(-750.0);
    VEC p = FN(v_exp_parts)(FN(v_max)(FN(v_set1)(underflow), x), &n);
    /* in two halves, for 2^n itself may be subnormal */
    VEC half = FN(v_round)(FN(v_mul)(n, FN(v_set1)(R(0.5))));
    VEC scaled = FN(v_pow2)(half);
    return FN(v_mul)(FN(v_fma)(scaled, p, scaled), FN(v_pow2)(FN(v_sub)(n, half)));
}

/* Both functions below write exp by an even polynomial: e^(2 r) = (E + r) / (E - r) with E = r coth r = 1 + r^2 Q(r^2). The
 * coefficients of Q make the largest error of E the least (Remez exchange in 50 digits); the first was rounded to the
 * type, then the others were fitted anew, and so on. The quotient of that formula joins the one that the function itself
 * needs. The order of the operations is what keeps the bounds: few roundings happen at the size of the result. */

/* sigmoid(x); max ULP 2, and exactly 1/2 at 0. With a = |x|, n >= 1, s = 2^-n, h = a - n ln 2 and E = h coth(h/2),
 * e^-a = s (E - h) / (E + h), hence sigmoid(-a) = s - s t and sigmoid(a) = 1 - s + s t, where
 * t = (2 h + s (E - h)) / (E + h + s (E - h)): a correction, whose roundings count little. */
INLINE VEC FN(v_sigmoid)(VEC x)
{
    /* ln 2 as in v_exp_parts; at `vanishes` s is 0 */
#if GC_BITS == 32
    const REAL ln2_high = 0x1.62e4p-1f, ln2_low = 0x1.7f7d1cp-20f, vanishes = 88.3f;
    static const REAL Q[] = {0x1.55555p-3f, -0x1.6c06eap-9f, 0x1.0eb9a6p-14f}; /* |h| <= 0.6934 */
#else
    const REAL ln2_high = 0x1.62e42fefa3800p-1, ln2_low = 0x1.ef35793c76730p-45, vanishes = 709.1;
    static const REAL Q[] = {0x1.55555555554f7p-3,  -0x1.6c16c16bdb12dp-9, 0x1.1566ab5b6e023p-14,
                             -0x1.bbd6dd077e215p-20, 0x1.666b9528d5e14p-25, -0x1.1696db41aac34p-30};
#endif
    VEC two = FN(v_set1)(R(2.0)), s;
    VEC a = FN(v_min)(FN(v_set1)(vanishes), FN(v_abs)(x));
    VEC minus_n = FN(v_nearest)(FN(v_max)(FN(v_set1)(R(0.7)), a), R(-1.4426950408889634), 1, 0, &s);
    VEC h = FN(v_fma)(minus_n, FN(v_set1)(ln2_low), FN(v_fma)(minus_n, FN(v_set1)(ln2_high), a));
    VEC square = FN(v_mul)(h, h);
    VEC E = FN(v_fma)(square, FN(v_polynomial)(Q, sizeof Q / sizeof *Q, square), two);
    VEC e = FN(v_mul)(s, FN(v_sub)(E, h)); /* s (E - h) */
    VEC t = FN(v_div)(FN(v_fma)(two, h, e), FN(v_add)(FN(v_add)(E, h), e));
    VEC limit = FN(v_select_gt)(x, FN(v_zero)(), FN(v_set1)(R(1.0)), FN(v_set1)(R(-0.0))); /* its sign is that of s t */
    VEC signed_s = FN(v_copysign)(s, limit);
    return FN(v_fma)(signed_s, t, FN(v_sub)(limit, signed_s));
}

/* tanh(x); max ULP 2, odd. With a = |x|, an even n, s = 2^(n-1), r = a - n ln(2)/2 and E = r coth r, e^(2 a) =
 * 2 s (E + r) / (E - r), hence tanh(a) = N / (N + E - r) with N = (s - 1/2) E + (s + 1/2) r. Up to tanh(a) = 1/2, n = 0
 * makes that r / E: the sum r + (E - r) rounds to E. Beyond, the roundings of N nearly cancel. */
INLINE VEC FN(v_tanh)(VEC x)
{
#if GC_BITS == 32
    const REAL half_ln2 = 0x1.62e43p-2f, saturates = 10.f; /* tanh of that rounds to 1 */
    static const REAL Q[] = {0x1.555512p-2f, -0x1.6bc190p-6f, 0x1.05f842p-9f}; /* |r| <= 0.5494 */
#else
    const REAL half_ln2 = 0x1.62e42fefa39efp-2, saturates = 20;
    static const REAL Q[] = {0x1.555555555547fp-2,  -0x1.6c16c16bcfa74p-6, 0x1.1566ab8038df8p-9, -0x1.bbd742c81bf1bp-13,
                             0x1.669c847af0695p-16, -0x1.20ef013edba3dp-19, 0x1.a1c1c9d269fe1p-23};
#endif
    const REAL shift = R(0.20275); /* a hair more than artanh(1/2) - ln(2)/2: n = 0 ends where the result gains a digit */
    VEC half = FN(v_set1)(R(0.5)), one = FN(v_set1)(R(1.0)), s;
    VEC a = FN(v_min)(FN(v_set1)(saturates), FN(v_abs)(x));
    VEC n = FN(v_nearest)(FN(v_sub)(a, FN(v_set1)(shift)), R(2.8853900817779268), 2, 1, &s);
    VEC r = FN(v_fma)(n, FN(v_set1)(-half_ln2), a); /* the error of n ln(2)/2 is lost as tanh flattens */
    VEC square = FN(v_mul)(r, r);
    VEC E = FN(v_fma)(square, FN(v_polynomial)(Q, sizeof Q / sizeof *Q, square), one);
    VEC N = FN(v_fma)(FN(v_sub)(s, half), E, FN(v_mul)(FN(v_add)(s, half), r));
    return FN(v_div)(FN(v_copysign)(N, x), FN(v_add)(N, FN(v_sub)(E, r)));
}
