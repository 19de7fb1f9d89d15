/* exp, sigmoid, tanh of vectors. The ULP bound stands beside each; tests/test_vmath.py reads it ("max ULP") and measures. */

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
    VEC q = FN(v_set1)(inverse_factorial[TERMS - 1]);
    for (int i = TERMS - 2; i >= 0; i--) q = FN(v_fma)(q, r, FN(v_set1)(inverse_factorial[i]));
    return FN(v_fma)(FN(v_mul)(r, r), q, r);
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

/* sigmoid(x) = 1 / (1 + exp(-x)); max ULP 3 */
INLINE VEC FN(v_sigmoid)(VEC x)
{
    VEC one = FN(v_set1)(R(1.0));
    VEC e = FN(v_exp_negative)(FN(v_sub)(FN(v_zero)(), FN(v_abs)(x)));
    return FN(v_div)(FN(v_select_gt)(FN(v_zero)(), x, e, one), FN(v_add)(one, e));
}

/* tanh(x) = expm1(2|x|) / (expm1(2|x|) + 2) with the sign of x; max ULP 3 */
INLINE VEC FN(v_tanh)(VEC x)
{
    const REAL saturates = GC_BITS == 32 ? R(20.0) : R(40.0); /* tanh(half of this) rounds to 1 */
    VEC twice = FN(v_abs)(FN(v_add)(x, x)), n;
    VEC p = FN(v_exp_parts)(FN(v_min)(FN(v_set1)(saturates), twice), &n);
    VEC scale = FN(v_pow2)(n);
    VEC expm1 = FN(v_fma)(scale, p, FN(v_sub)(scale, FN(v_set1)(R(1.0))));
    return FN(v_copysign)(FN(v_div)(expm1, FN(v_add)(expm1, FN(v_set1)(R(2.0)))), x);
}
