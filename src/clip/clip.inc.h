/* Norms and clipping of one block, from which clip.c makes those of lists of arrays.
 *
 * Magnitudes are compared as integers: without their sign bit, floating-point numbers are in the order of their bits, and
 * what is not finite comes last. So one maximum finds the largest entry and whether anything is NaN or Inf. */
#ifndef REAL
#error "clip.inc.h needs real.inc.h"
#endif

#define LANES 32 /* independent sums: the same for all instruction sets, and so are the bits */
#define MAX_NORM 0
/* sum + x * x where the square is exact, so that both forms round once and give the same bits. */
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
#define SQUARE_ADD(x, sum) fma(x, x, sum)
#else
#define SQUARE_ADD(x, sum) ((sum) + (x) * (x))
#endif

#if GC_BITS == 32
#define BITS int32_t
#define INFINITE 0x7f800000
#define MAGNITUDE 0x7fffffff
#else
#define BITS int64_t
#define INFINITE 0x7ff0000000000000
#define MAGNITUDE 0x7fffffffffffffff
#endif

INLINE BITS FN(magnitude)(REAL g)
{
    BITS bits;
    memcpy(&bits, &g, sizeof bits);
    return bits & MAGNITUDE;
}

INLINE double FN(from_bits)(BITS bits)
{
    REAL g;
    memcpy(&g, &bits, sizeof g);
    return g;
}

/* One entry into one lane. `power` is a constant: 1, 2, or MAX_NORM for no sum. */
INLINE void FN(norm_entry)(REAL g, int power, double per_unit, BITS *top, double *sum, double *rest)
{
    const BITS bits = FN(magnitude)(g);
    *top = bits > *top ? bits : *top;
    if (power == MAX_NORM) return;
#if GC_BITS == 32
    const double x = (double)g; /* the unit is 1: squares of any float fit into double, exactly, with 29 digits to spare */
    *sum = power == 1 ? *sum + fabs(x) : SQUARE_ADD(x, *sum);
    (void)per_unit;
    (void)rest;
#else
    const double x = g * per_unit;
    gc_add(sum, rest, power == 1 ? fabs(x) : x * x);
#endif
}

/* The whole block; returns its largest bits, at which an entry that is not finite shows and makes the sum meaningless. */
INLINE BITS FN(norm_lanes)(const REAL *g, ptrdiff_t n, int power, double per_unit, gc_norm_block *out)
{
    BITS top[LANES] = {0}, largest = 0;
    double sum[LANES] = {0}, rest[LANES] = {0};
    ptrdiff_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        FETCH_AHEAD(g + i, LANES);
        for (int lane = 0; lane < LANES; lane++)
            FN(norm_entry)(g[i + lane], power, per_unit, &top[lane], &sum[lane], &rest[lane]);
    }
    for (int lane = 0; i + lane < n; lane++)
        FN(norm_entry)(g[i + lane], power, per_unit, &top[lane], &sum[lane], &rest[lane]);
    for (int lane = 0; lane < LANES; lane++) largest = top[lane] > largest ? top[lane] : largest;
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int lane = 0; lane < half; lane++) {
            gc_add(&sum[lane], &rest[lane], sum[lane + half]);
            rest[lane] += rest[lane + half];
        }
    out->sum = sum[0];
    out->rest = rest[0];
    out->largest = FN(from_bits)(largest);
    return largest;
}

/* The slow way: any power, and entries that are not finite are counted and left out. */
static void FN(norm_careful)(const REAL *g, ptrdiff_t n, double p, double unit, gc_norm_block *out)
{
    *out = (gc_norm_block){.first_nonfinite = -1};
    for (ptrdiff_t i = 0; i < n; i++) {
        const double x = fabs((double)g[i]);
        if (FN(magnitude)(g[i]) >= INFINITE) {
            if (out->first_nonfinite < 0) out->first_nonfinite = i;
            if (isnan(x))
                out->n_nan++;
            else
                out->n_inf++;
            continue;
        }
        out->largest = x > out->largest ? x : out->largest;
        if (!isinf(p)) gc_add(&out->sum, &out->rest, p == 1 ? x / unit : p == 2 ? (x / unit) * (x / unit) : pow(x / unit, p));
    }
}

static void FN(clip_measure)(const void *data, ptrdiff_t n, double p, double unit, gc_norm_block *out)
{
    const REAL *g = data;
    BITS largest = INFINITE;
    *out = (gc_norm_block){.first_nonfinite = -1};
    if (p == 2)
        largest = FN(norm_lanes)(g, n, 2, 1 / unit, out);
    else if (p == 1)
        largest = FN(norm_lanes)(g, n, 1, 1 / unit, out);
    else if (isinf(p))
        largest = FN(norm_lanes)(g, n, MAX_NORM, 1, out);
    if (largest >= INFINITE) FN(norm_careful)(g, n, p, unit, out);
}

static ptrdiff_t FN(clip_find)(const void *data, ptrdiff_t n, double largest)
{
    const REAL *g = data;
    ptrdiff_t i = 0;
    for (int here = 0; i + LANES <= n; i += LANES) {
        for (int lane = 0; lane < LANES; lane++) here |= FN(magnitude)(g[i + lane]) == FN(magnitude)((REAL)largest);
        if (here) break;
    }
    while (i < n - 1 && fabs((double)g[i]) != largest) i++;
    return i;
}

/* A gradient as clipping leaves it: times both factors, 0 where it is not finite. In double, so that a factor below the
 * range of float does its work, and in two factors, so that one below the range of double does. */
INLINE REAL FN(clipped)(REAL g, double factor0, double factor1)
{
    return FN(magnitude)(g) < INFINITE ? (REAL)((double)g * factor0 * factor1) : 0;
}

static void FN(clip_scale)(void *data, ptrdiff_t n, const double factor[2])
{
    REAL *g = data;
    const double factor0 = factor[0], factor1 = factor[1];
    ptrdiff_t i = 0;
    for (; i + FEW <= n; i += FEW) {
        FETCH_AHEAD(g + i, FEW);
        for (int j = 0; j < FEW; j++) g[i + j] = FN(clipped)(g[i + j], factor0, factor1);
    }
    for (; i < n; i++) g[i] = FN(clipped)(g[i], factor0, factor1);
}

static void FN(clip_clamp)(void *data, ptrdiff_t n, double limit)
{
    REAL *g = data;
    const REAL most = (REAL)limit;
    for (ptrdiff_t i = 0; i < n; i++) g[i] = g[i] > most ? most : g[i] < -most ? -most : g[i]; /* NaN stays NaN */
}

static const gc_clip_kernels FN(clip_kernels) = {FN(clip_measure), FN(clip_find), FN(clip_scale), FN(clip_clamp)};

#undef LANES
#undef MAX_NORM
#undef SQUARE_ADD
#undef BITS
#undef INFINITE
#undef MAGNITUDE
