/* One step of an optimizer for one block: every array is read once and, but for the gradient, written once. The clip
 * coefficient is applied on the way. Needs clip.inc.h. The formulas stand beside each function, g, m, v the gradient and
 * its moments, p the parameter.
 *
 * The second moment v stays within the range of its type. Above: a gradient whose square does not fit counts as the largest
 * whose square does, in both moments, so that the step, which depends on their ratio, is what the formula says, and v comes
 * down again as other gradients follow. Below: where v is divided by, it is at least what the smallest gradient would leave
 * whose share is not flushed to zero, so that no step is larger than that one's, and a gradient of 0 moves nothing even
 * without eps. */
#if GC_BITS == 32
#define LARGEST FLT_MAX
#define LEAST FLT_MIN
#define SQUARABLE 0x1.ffp63f
#define TAME 0x1p62
#else
#define LARGEST DBL_MAX
#define LEAST DBL_MIN
#define SQUARABLE 0x1.ffp511
#define TAME 0x1p510
#endif

INLINE REAL FN(root)(REAL x)
{
#if GC_BITS == 32
    return sqrtf(x);
#else
    return sqrt(x);
#endif
}

/* gc_update in the precision of the arrays, by value, so that the compiler keeps it in registers. */
typedef struct FN(rates) {
    double factor0, factor1;
    REAL l2, l1, shrink, step, keep_mean, take_mean, keep_square, take_square, eps, root, now, past, momentum, threshold;
    REAL squarable, largest;
    int tame; /* d is the gradient times factor0, and far below what has no square */
} FN(rates);

/* Volatile: of the minimum with a constant gcc makes a comparison and a blend, of one with a variable an instruction. */
static const volatile REAL FN(bounds)[2] = {SQUARABLE, LARGEST};

INLINE FN(rates) FN(rates_of)(const gc_update *u)
{
    return (FN(rates)){u->factor[0],         u->factor[1],         (REAL)u->l2,       (REAL)u->l1,
                       (REAL)u->shrink,      (REAL)u->step,        (REAL)u->keep_mean, (REAL)u->take_mean,
                       (REAL)u->keep_square, (REAL)u->take_square, (REAL)u->eps,      (REAL)u->root,
                       (REAL)u->now,         (REAL)u->past,        (REAL)u->momentum, (REAL)u->threshold,
                       FN(bounds)[0],        FN(bounds)[1],        0};
}

/* In the form of the processor's own instruction; b where one is NaN. */
INLINE REAL FN(less)(REAL a, REAL b) { return a < b ? a : b; }
INLINE REAL FN(more)(REAL a, REAL b) { return a > b ? a : b; }

INLINE REAL FN(squarable)(FN(rates) r, REAL g)
{
    return r.tame ? g : FN(more)(-r.squarable, FN(less)(r.squarable, g));
}

/* keep v + take g^2; keep and take are rounded, and their sum may be above 1 */
INLINE REAL FN(second_moment)(FN(rates) r, REAL keep, REAL v, REAL take, REAL g)
{
    const REAL sum = keep * v + take * g * g;
    return r.tame ? sum : FN(less)(r.largest, sum);
}

/* What a step divides by, but for eps; `take` is the share of a gradient's square in v. */
INLINE REAL FN(rms)(REAL v, REAL take)
{
    return FN(root)(FN(more)(LEAST / take, v));
}

INLINE REAL FN(gradient)(FN(rates) r, REAL g, REAL p)
{
    if (r.tame) return (REAL)((double)g * r.factor0);
    const REAL d = FN(clipped)(g, r.factor0, r.factor1) + r.l2 * p;
    if (r.l1 == 0) return d; /* the same for every entry: the compiler may make two loops of one */
    return d + (p > 0 ? r.l1 : p < 0 ? -r.l1 : 0);
}

/* m = keep m + take g;  p = p - step (now g + past m);  without momentum p = p - step g */
INLINE void FN(sgd)(FN(rates) r, ptrdiff_t n, const REAL *restrict g, REAL *restrict p, REAL *restrict mean)
{
    for (ptrdiff_t i = 0; i < n; i++) {
        const REAL d = FN(gradient)(r, g[i], p[i]);
        REAL change = d;
        if (mean) {
            mean[i] = r.keep_mean * mean[i] + r.take_mean * d;
            change = r.now * d + r.past * mean[i];
        }
        p[i] -= r.step * change;
    }
}

/* m = keep m + take g;  v = keep' v + take' g^2;  p = shrink p - step m / (sqrt(v) / root + eps), AMSGrad: the largest v.
 * NAdam: now g + past m in place of m. RAdam's first steps, of m alone, have eps 1 and an infinite root.
 * SPAM: where g^2 > threshold v > 0, v being the one before this step, sign(g) sqrt(threshold v) takes the place of g; how
 * often is returned. */
INLINE ptrdiff_t FN(adam)(FN(rates) r, ptrdiff_t n, const REAL *restrict g, REAL *restrict p, REAL *restrict mean,
                          REAL *restrict square, REAL *restrict most, int rule)
{
    int spikes = 0;
    for (ptrdiff_t i = 0; i < n; i++) {
        REAL d = FN(squarable)(r, FN(gradient)(r, g[i], p[i]));
        if (rule == GC_SPAM) {
            const REAL limit = r.threshold * square[i], cut = d < 0 ? -FN(root)(limit) : FN(root)(limit);
            const int spike = limit > 0 && d * d > limit;
            d = spike ? cut : d;
            spikes += spike;
        }
        mean[i] = r.keep_mean * mean[i] + r.take_mean * d;
        REAL v = square[i] = FN(second_moment)(r, r.keep_square, square[i], r.take_square, d);
        if (most) v = most[i] = v > most[i] ? v : most[i];
        const REAL change = rule == GC_NADAM ? r.now * d + r.past * mean[i] : mean[i];
        p[i] = r.shrink * p[i] - r.step * (change / (FN(rms)(v, r.take_square) / r.root + r.eps));
    }
    return spikes;
}

/* v = keep' v + take' g^2;  centered: m = keep m + take g, v - m^2 in place of v;  d = g / (sqrt(v) + eps);
 * momentum: b = momentum b + d, b in place of d;  p = p - step d */
INLINE void FN(rmsprop)(FN(rates) r, ptrdiff_t n, const REAL *restrict g, REAL *restrict p, REAL *restrict mean,
                        REAL *restrict square, REAL *restrict buffer)
{
    for (ptrdiff_t i = 0; i < n; i++) {
        const REAL d = FN(squarable)(r, FN(gradient)(r, g[i], p[i]));
        REAL v = square[i] = FN(second_moment)(r, r.keep_square, square[i], r.take_square, d);
        if (mean) {
            mean[i] = r.keep_mean * mean[i] + r.take_mean * d;
            v -= mean[i] * mean[i]; /* negative only by rounding */
        }
        REAL change = d / (FN(rms)(v, r.take_square) + r.eps);
        if (buffer) change = buffer[i] = r.momentum * buffer[i] + change;
        p[i] -= r.step * change;
    }
}

/* p = shrink p - step sign(now g + past m);  m = keep m + take g */
INLINE void FN(lion)(FN(rates) r, ptrdiff_t n, const REAL *restrict g, REAL *restrict p, REAL *restrict mean)
{
    for (ptrdiff_t i = 0; i < n; i++) {
        const REAL d = FN(squarable)(r, FN(gradient)(r, g[i], p[i]));
        const REAL change = r.now * d + r.past * mean[i];
        mean[i] = r.keep_mean * mean[i] + r.take_mean * d;
        p[i] = r.shrink * p[i] - (change > 0 ? r.step : change < 0 ? -r.step : 0);
    }
}

/* p = p + step (g - p): an average of what moves */
INLINE void FN(average)(FN(rates) r, ptrdiff_t n, const REAL *restrict g, REAL *restrict p)
{
    for (ptrdiff_t i = 0; i < n; i++) p[i] += r.step * (g[i] - p[i]);
}

/* v = v + g^2;  p = p - step g / (sqrt(v) + eps) */
INLINE void FN(adagrad)(FN(rates) r, ptrdiff_t n, const REAL *restrict g, REAL *restrict p, REAL *restrict square)
{
    for (ptrdiff_t i = 0; i < n; i++) {
        const REAL d = FN(squarable)(r, FN(gradient)(r, g[i], p[i]));
        square[i] = FN(second_moment)(r, 1, square[i], 1, d);
        p[i] -= r.step * (d / (FN(rms)(square[i], 1) + r.eps));
    }
}

/* Which of the optional arrays there are is decided here, once a part, and compiled into the loops. */
INLINE ptrdiff_t FN(update_part)(int rule, FN(rates) r, REAL *const a[GC_OPERANDS], ptrdiff_t n)
{
    REAL *g = a[GC_GRAD], *p = a[GC_PARAM], *mean = a[GC_MEAN], *square = a[GC_SQUARE], *extra = a[GC_EXTRA];
    switch (rule) {
    case GC_SGD:
        if (mean)
            FN(sgd)(r, n, g, p, mean);
        else
            FN(sgd)(r, n, g, p, NULL);
        break;
    case GC_ADAM:
        if (extra)
            FN(adam)(r, n, g, p, mean, square, extra, GC_ADAM);
        else
            FN(adam)(r, n, g, p, mean, square, NULL, GC_ADAM);
        break;
    case GC_RMSPROP:
        if (mean && extra)
            FN(rmsprop)(r, n, g, p, mean, square, extra);
        else if (mean)
            FN(rmsprop)(r, n, g, p, mean, square, NULL);
        else if (extra)
            FN(rmsprop)(r, n, g, p, NULL, square, extra);
        else
            FN(rmsprop)(r, n, g, p, NULL, square, NULL);
        break;
    case GC_ADAGRAD:
        FN(adagrad)(r, n, g, p, square);
        break;
    case GC_SPAM:
        return FN(adam)(r, n, g, p, mean, square, NULL, GC_SPAM);
    case GC_NADAM:
        FN(adam)(r, n, g, p, mean, square, NULL, GC_NADAM);
        break;
    case GC_LION:
        FN(lion)(r, n, g, p, mean);
        break;
    case GC_AVERAGE:
        FN(average)(r, n, g, p);
        break;
    }
    return 0;
}

/* In parts, before each of which every array looks ahead. */
static ptrdiff_t FN(optim_update)(const gc_update *u, void *const data[GC_OPERANDS], ptrdiff_t start, ptrdiff_t n)
{
    enum { PART = 128 };
    const FN(rates) r = FN(rates_of)(u);
    /* The usual gradients, clipped or not. These are constants, so that loops of their own are compiled for them. */
    FN(rates) tame = r, as_it_is;
    tame.tame = 1;
    as_it_is = tame;
    as_it_is.factor0 = 1;
    const int is_tame = u->bound <= TAME && u->factor[1] == 1 && u->l2 == 0 && u->l1 == 0;
    ptrdiff_t spikes = 0;
    for (ptrdiff_t i = 0; i < n; i += PART) {
        REAL *a[GC_OPERANDS];
        for (int k = 0; k < GC_OPERANDS; k++) {
            a[k] = data[k] ? (REAL *)data[k] + start + i : NULL;
            if (a[k]) FETCH_AHEAD(a[k], PART);
        }
        const ptrdiff_t m = gc_min(n - i, PART);
        if (!is_tame)
            spikes += FN(update_part)(u->rule, r, a, m);
        else if (u->factor[0] == 1)
            spikes += FN(update_part)(u->rule, as_it_is, a, m);
        else
            spikes += FN(update_part)(u->rule, tame, a, m);
    }
    return spikes;
}

static const gc_optim_kernels FN(optim_kernels) = {FN(optim_update)};

#undef LARGEST
#undef LEAST
#undef SQUARABLE
#undef TAME
