/* exp, sigmoid, tanh of vectors. The ULP bound stands beside each; tests/test_vmath.py reads it ("max ULP") and measures,
 * bench/ulp.py does so over all of float32. A result below the smallest normal number may be 0 instead: the kernels run
 * with such numbers flushed to zero. */

/* c[0] + c[1] x + ... */
INLINE VEC FN(v_polynomial)(const REAL *c, int terms, VEC x)
{
    VEC sum = FN(v_set1)(c[terms - 1]);
#pragma GCC unroll 16
    for (int i = terms - 2; i >= 0; i--) sum = FN(v_fma)(sum, x, FN(v_set1)(c[i]));
    return sum;
}

/* power (1 + p) = exp(x), with power = 2^n, or 0 in the binade below the normal numbers, p = expm1(r), r = x - n ln 2,
 * |r| <= ln(2)/2; x must not be beyond that binade. */
INLINE VEC FN(v_exp_parts)(VEC x, VEC *power)
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
    const VEC n = FN(v_nearest)(x, R(1.4426950408889634), 1, 0, power);
    VEC r = FN(v_fma)(n, FN(v_set1)(-ln2_high), x);
    r = FN(v_fma)(n, FN(v_set1)(-ln2_low), r);
    return FN(v_fma)(FN(v_mul)(r, r), FN(v_polynomial)(inverse_factorial, TERMS, r), r);
}

/* exp(x) for x <= 0; max ULP 2. NaN stays NaN, -inf gives 0. */
INLINE VEC FN(v_exp_negative)(VEC x)
{
    const REAL vanishes = GC_BITS == 32 ? R(-88.3) : R(-709.1); /* the power is 0 there */
    VEC power, p = FN(v_exp_parts)(FN(v_max)(FN(v_set1)(vanishes), x), &power);
    return FN(v_fma)(power, p, power);
}

/* Sigmoid and tanh write exp by an even polynomial: e^(2 r) = (E + r) / (E - r), E = r coth r = 1 + r^2 Q(r^2); only its
 * half of the terms is needed, and the quotient becomes part of the one that the function has anyway. Q has the least
 * largest error in E (Remez exchange in 50 digits, below 0.4 ULP of 1); its first coefficient was rounded to the type,
 * the others fitted anew, and so on. The order of the operations keeps the bounds: the result is a number known exactly
 * plus a smaller one that is rounded often, except where it is a quotient of few roundings. */

/* sigmoid(x); max ULP 2, and 1/2 at 0. With a = |x|, n = 1, 2, ..., s = 2^-n, h = a - n ln 2, E = h coth(h/2):
 * e^-a = s (E - h) / (E + h), hence sigmoid(-a) = s - s t and sigmoid(a) = (1 - s) + s t with
 * t = (2 h + e) / (E + h + e), e = s (E - h). */
INLINE VEC FN(v_sigmoid)(VEC x)
{
    /* ln 2 as in v_exp_parts; s is 0 at `vanishes`, where the result is below the normal numbers; |h| <= ln 2 */
#if GC_BITS == 32
    const REAL ln2_high = 0x1.62e4p-1f, ln2_low = 0x1.7f7d1cp-20f, vanishes = 88.3f;
    static const REAL Q[] = {0x1.55555p-3f, -0x1.6c06eap-9f, 0x1.0eb9a6p-14f};
#else
    const REAL ln2_high = 0x1.62e42fefa3800p-1, ln2_low = 0x1.ef35793c76730p-45, vanishes = 709.1;
    static const REAL Q[] = {0x1.55555555554f7p-3,   -0x1.6c16c16bdb12dp-9, 0x1.1566ab5b6e023p-14,
                             -0x1.bbd6dd077e215p-20, 0x1.666b9528d5e14p-25, -0x1.1696db41aac34p-30};
#endif
    VEC half = FN(v_set1)(R(0.5)), two = FN(v_set1)(R(2.0)), s;
    VEC a = FN(v_min)(FN(v_set1)(vanishes), FN(v_abs)(x));
    VEC n = FN(v_nearest)(FN(v_max)(FN(v_set1)(R(0.7)), a), R(-1.4426950408889634), 1, 0, &s); /* -n */
    VEC h = FN(v_fma)(n, FN(v_set1)(ln2_low), FN(v_fma)(n, FN(v_set1)(ln2_high), a)), square = FN(v_mul)(h, h);
    VEC E = FN(v_fma)(square, FN(v_polynomial)(Q, sizeof Q / sizeof *Q, square), two);
    VEC e = FN(v_mul)(s, FN(v_sub)(E, h));
    VEC t = FN(v_div)(FN(v_fma)(two, h, e), FN(v_add)(FN(v_add)(E, h), e));
    VEC limit = FN(v_add)(half, FN(v_flip)(half, x)); /* 0 or 1 */
    s = FN(v_flip)(s, x);
#if FUSED
    return FN(v_fma)(s, t, FN(v_sub)(limit, s));
#else /* s t would be flushed to zero where the result is small */
    return FN(v_add)(limit, FN(v_mul)(s, FN(v_sub)(t, FN(v_set1)(R(1.0)))));
#endif
}

/* tanh(x); max ULP 2, odd. With a = |x|, n = 0, 2, 4, ..., s = 2^(n-1), r = a - n ln(2)/2, E = r coth r:
 * e^(2 a) = 2 s (E + r) / (E - r), hence tanh(a) = 1 - (E - r) / D with D = s (E + r) + (E - r)/2. That is used for
 * n > 0; n = 0, for which D = E without another rounding and tanh(a) = r / E, goes as far as tanh(a) = 1/2. */
INLINE VEC FN(v_tanh)(VEC x)
{
    /* |r| <= 0.5494; beyond `saturates` the result rounds to 1 */
#if GC_BITS == 32
    const REAL half_ln2 = 0x1.62e43p-2f, saturates = 10.f;
    static const REAL Q[] = {0x1.555512p-2f, -0x1.6bc190p-6f, 0x1.05f842p-9f};
#else
    const REAL half_ln2 = 0x1.62e42fefa39efp-2, saturates = 20.;
    static const REAL Q[] = {0x1.555555555547fp-2,  -0x1.6c16c16bcfa74p-6,  0x1.1566ab8038df8p-9, -0x1.bbd742c81bf1bp-13,
                             0x1.669c847af0695p-16, -0x1.20ef013edba3dp-19, 0x1.a1c1c9d269fe1p-23};
#endif
    const REAL shift = R(0.20275); /* n = 2 begins at this plus ln(2)/2, just above artanh(1/2) */
    VEC half = FN(v_set1)(R(0.5)), one = FN(v_set1)(R(1.0)), s;
    VEC a = FN(v_min)(FN(v_set1)(saturates), FN(v_abs)(x));
    VEC n = FN(v_nearest)(FN(v_sub)(a, FN(v_set1)(shift)), R(2.8853900817779268), 2, 1, &s);
    VEC r = FN(v_fnma)(n, FN(v_set1)(half_ln2), a); /* in one step: as n grows, tanh flattens faster */
    VEC square = FN(v_mul)(r, r);
    VEC E = FN(v_fma)(square, FN(v_polynomial)(Q, sizeof Q / sizeof *Q, square), one);
    VEC D = FN(v_fma)(s, E, FN(v_fma)(half, E, FN(v_mul)(FN(v_sub)(s, half), r)));
    VEC limit = FN(v_min)(one, n);
    VEC rest = FN(v_fnma)(limit, E, r); /* r, or r - E */
    return FN(v_add)(FN(v_flip)(limit, x), FN(v_div)(FN(v_flip)(rest, x), D));
}

/* dL/da of a = tanh(.) or sigmoid(.), from dL/dvalue and the value: 1 - a^2 in one rounding, a (1 - a) */
INLINE VEC FN(d_tanh)(VEC d, VEC a)
{
    return FN(v_mul)(d, FN(v_fma)(FN(v_sub)(FN(v_zero)(), a), a, FN(v_set1)(R(1.0))));
}
INLINE VEC FN(d_sigmoid)(VEC d, VEC a) { return FN(v_mul)(d, FN(v_mul)(a, FN(v_sub)(FN(v_set1)(R(1.0)), a))); }
