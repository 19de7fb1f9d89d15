/* The norm of a row, in a fixed order. */
#ifndef REAL
#error "l2_norm.inc.h needs real.inc.h"
#endif

/* The sum of the squares of n elements from p, in float64, in a fixed order; plain C, which the compiler vectorizes. */
INLINE double FN(sum_squares)(const REAL *p, ptrdiff_t n)
{
    double sums[8] = {0};
    ptrdiff_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (int lane = 0; lane < 8; lane++) sums[lane] += (double)p[i + lane] * (double)p[i + lane];
    for (int lane = 0; i + lane < n; lane++) sums[lane] += (double)p[i + lane] * (double)p[i + lane];
    return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
}
/* The L2 norm of n elements, right wherever it is representable. */
INLINE double FN(l2_norm)(const REAL *p, ptrdiff_t n)
{
    double sum = FN(sum_squares)(p, n);
#if GC_BITS == 64
    if (!(sum > 1e-280 && sum < 1e300)) {
        double largest = 0, scaled = 0;
        for (ptrdiff_t i = 0; i < n; i++) {
            if (isnan(p[i])) return p[i];
            largest = fmax(largest, fabs(p[i]));
        }
        if (largest == 0 || isinf(largest)) return largest;
        for (ptrdiff_t i = 0; i < n; i++) scaled += (p[i] / largest) * (p[i] / largest);
        return largest * sqrt(scaled);
    }
#endif
    return sqrt(sum);
}
