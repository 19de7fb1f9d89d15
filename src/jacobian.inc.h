/* The Jacobians of a recurrent layer's steps, d(state after) / d(state before), and their products with vectors.
 *
 * The state is h, for LSTM (h, c): P = 1 or 2 parts. A Jacobian is never formed: it is W_hh between diagonals. Of those each
 * step of each sequence keeps D, the factors, as (D, H), always in double; with p_g = W_g v_h they carry a vector v forward as
 *   RNN   s                             h' = s p
 *   GRU   a_r, a_z, a_n, z              h' = a_r p_r + a_z p_z + a_n p_n + z v_h
 *   LSTM  a_i, a_f, a_g, a_o, f, d      c' = a_i p_i + a_f p_f + a_g p_g + f v_c,    h' = a_o p_o + d c'
 * and the transpose carries a gradient back. What a row of the tape holds: recurrent.inc.h.
 */
#ifndef REAL
#error "jacobian.inc.h needs real.inc.h, simd.inc.h, gemm.inc.h and recurrent.inc.h"
#endif

#ifndef GC_JACOBIAN_SIZES
#define GC_JACOBIAN_SIZES
enum { FACTOR_WORK = 300 }; /* multiply-adds that take as long as a unit's factors, a tanh among them */
INLINE ptrdiff_t n_factors(int cell) { return cell == GC_LSTM ? 6 : cell == GC_GRU ? 4 : 1; }
#endif

/* ==== the factors of a tape's rows, for a tape of either type ========================================================== */

typedef struct {
    int cell;
    ptrdiff_t H, n;
    const ptrdiff_t *rows;
    const REAL *gates, *h_in, *c_in;
    double *factors;
} FN(factor_job);

static void FN(factors_body)(void *arg, gc_team *team, int thread)
{
    const FN(factor_job) *job = arg;
    const ptrdiff_t H = job->H, padded = (H + V - 1) / V * V, K = cell_kept(job->cell);
    const ptrdiff_t gates_row = gc_row(K * padded, sizeof(REAL)), state_row = gc_row(padded, sizeof(REAL));
    ptrdiff_t first, end;
    gc_watch watch = {team, thread, 0, 0};
    share(job->n, team, thread, &first, &end);
    for (ptrdiff_t row = first; row < end; row++) {
        if (stopped(&watch, (double)(H * FACTOR_WORK))) return;
        const REAL *gates = job->gates + job->rows[row] * gates_row;
        const REAL *h_in = job->h_in ? job->h_in + job->rows[row] * state_row : NULL;
        const REAL *c_in = job->c_in ? job->c_in + job->rows[row] * state_row : NULL;
        double *to = job->factors + row * n_factors(job->cell) * H;
        for (ptrdiff_t j = 0; j < H; j++) {
            const REAL *block = gates + j / V * K * V + j % V;
            if (job->cell == GC_RNN_TANH) {
                const double h = block[0];
                to[j] = 1 - h * h;
            } else if (job->cell == GC_RNN_RELU) {
                const double h = block[0];
                to[j] = (h - h) + (h > 0); /* NaN where h is not finite */
            } else if (job->cell == GC_GRU) {
                const double n = block[0], r = block[V], z = block[2 * V], q = block[3 * V];
                const double into_n = (1 - z) * (1 - n * n);
                to[j] = into_n * q * r * (1 - r);
                to[H + j] = ((double)h_in[j] - n) * z * (1 - z);
                to[2 * H + j] = into_n * r;
                to[3 * H + j] = z;
            } else {
                const double i = block[0], f = block[V], g = block[2 * V], o = block[3 * V], c = c_in[j];
                const double squashed = tanh(f * c + i * g);
                to[j] = g * i * (1 - i);
                to[H + j] = c * f * (1 - f);
                to[2 * H + j] = i * (1 - g * g);
                to[3 * H + j] = squashed * o * (1 - o);
                to[4 * H + j] = f;
                to[5 * H + j] = o * (1 - squashed * squashed);
            }
        }
    }
}

static int FN(jacobian_factors)(int threads, int cell, ptrdiff_t H, ptrdiff_t n, const ptrdiff_t *rows, const void *gates,
                                const void *h_in, const void *c_in, double *factors)
{
    FN(factor_job) job = {cell, H, n, rows, gates, h_in, c_in, factors};
    return gc_parallel((double)n * (double)H * 10 < SERIAL_WORK ? 1 : threads, 0, FN(factors_body), &job);
}

/* ==== products, in double ============================================================================================== */

#if GC_BITS == 64

/* W_hh packed for the products of one way: v W^T forward, u W for the transpose. */
static size_t jacobian_packed(int cell, int transposed, ptrdiff_t H, const double *w_hh, double *packed)
{
    const ptrdiff_t GH = cell_gates(cell) * H;
    if (packed && transposed)
        FN(pack)(GH, H, NR, w_hh, H, 1, 0, packed, 0, 1, NULL);
    else if (packed)
        FN(pack)(H, GH, NR, w_hh, 1, H, 0, packed, 0, 1, NULL);
    return (size_t)(transposed ? FN(packed_size)(GH, H) : FN(packed_size)(H, GH));
}

/* NaN where there is one, which a maximum may lose. */
static double largest_of(ptrdiff_t n, const double *row)
{
    VEC most = FN(v_zero)();
    int nan = 0;
    for (ptrdiff_t i = 0; i < n; i++) nan |= row[i] != row[i];
    if (nan) return NAN;
    for (ptrdiff_t i = 0; i < n; i += V) most = FN(v_max)(most, FN(v_abs)(FN(v_get)(row + i, n - i)));
    double lanes[V], largest = 0;
    FN(v_store)(lanes, most);
    for (int i = 0; i < V; i++) largest = fmax(largest, lanes[i]);
    return largest;
}

/* A reciprocal may be flushed to zero where a quotient is not. */
INLINE void divide(ptrdiff_t n, double *row, double by)
{
    for (ptrdiff_t i = 0; i < n; i++) row[i] /= by;
}

/* The norm of a row and its logarithm. A row of finite numbers whose norm is beyond them is divided by its largest entry; the
 * norm is then that of what is left. */
static double norm_of(ptrdiff_t n, double *row, double *log_norm)
{
    double norm = FN(l2_norm)(row, n), shrunk = 0;
    const double largest = isinf(norm) ? largest_of(n, row) : INFINITY;
    if (largest < INFINITY) {
        divide(n, row, largest);
        norm = FN(l2_norm)(row, n);
        shrunk = log(largest);
    }
    *log_norm = shrunk + log(norm);
    return norm;
}

#define FACTOR(k) FN(v_get)(factors + (k)*H + j, live)
#define PRE(g) FN(v_get)(pre + (g)*H + j, live)
#define PUT(g, value) FN(v_put)(pre + (g)*H + j, value, live)

/* Forward: v (P, H) = J v, with pre = W v_h. */
static void combine_forward(int cell, ptrdiff_t H, const double *factors, const double *pre, double *v)
{
    for (ptrdiff_t j = 0; j < H; j += V) {
        const ptrdiff_t live = H - j;
        VEC h;
        if (cell == GC_LSTM) {
            VEC c = FN(v_mul)(FACTOR(4), FN(v_get)(v + H + j, live));
            c = FN(v_fma)(FACTOR(0), PRE(0), c);
            c = FN(v_fma)(FACTOR(1), PRE(1), c);
            c = FN(v_fma)(FACTOR(2), PRE(2), c);
            FN(v_put)(v + H + j, c, live);
            h = FN(v_fma)(FACTOR(3), PRE(3), FN(v_mul)(FACTOR(5), c));
        } else if (cell == GC_GRU) {
            h = FN(v_mul)(FACTOR(3), FN(v_get)(v + j, live));
            h = FN(v_fma)(FACTOR(0), PRE(0), h);
            h = FN(v_fma)(FACTOR(1), PRE(1), h);
            h = FN(v_fma)(FACTOR(2), PRE(2), h);
        } else {
            h = FN(v_mul)(FACTOR(0), PRE(0));
        }
        FN(v_put)(v + j, h, live);
    }
}

/* Transposed, before the product: pre (G, H) = what W^T is to be multiplied by, and v what stays beside it. */
static void split_back(int cell, ptrdiff_t H, const double *factors, double *pre, double *v)
{
    for (ptrdiff_t j = 0; j < H; j += V) {
        const ptrdiff_t live = H - j;
        const VEC h = FN(v_get)(v + j, live);
        if (cell == GC_LSTM) {
            const VEC c = FN(v_fma)(FACTOR(5), h, FN(v_get)(v + H + j, live));
            PUT(0, FN(v_mul)(FACTOR(0), c));
            PUT(1, FN(v_mul)(FACTOR(1), c));
            PUT(2, FN(v_mul)(FACTOR(2), c));
            PUT(3, FN(v_mul)(FACTOR(3), h));
            FN(v_put)(v + H + j, FN(v_mul)(FACTOR(4), c), live);
        } else if (cell == GC_GRU) {
            PUT(0, FN(v_mul)(FACTOR(0), h));
            PUT(1, FN(v_mul)(FACTOR(1), h));
            PUT(2, FN(v_mul)(FACTOR(2), h));
            FN(v_put)(v + j, FN(v_mul)(FACTOR(3), h), live);
        } else {
            PUT(0, FN(v_mul)(FACTOR(0), h));
        }
    }
}
#undef FACTOR
#undef PRE
#undef PUT

static void jacobian_body(void *arg, gc_team *team, int thread)
{
    const gc_jacobian *s = arg;
    const ptrdiff_t H = s->H, GH = cell_gates(s->cell) * H, row = (s->cell == GC_LSTM ? 2 : 1) * H, pre_row = gc_row(GH, 8);
    const ptrdiff_t of_sample = n_factors(s->cell) * H;
    ptrdiff_t first, end;
    share(s->B * s->m, team, thread, &first, &end);
    double *v = s->v + first * row, *pre = s->work + first * pre_row;
    gc_watch watch = {team, thread, 0, 0};
    for (ptrdiff_t i = 0; i < s->steps && !watch.stop; i++) {
        const double *factors = s->factors + i * s->B * of_sample;
        if (!s->transposed)
            FN(gemm)(end - first, 0, GH, GH, H, v, row, s->packed, (int)(i % 2), pre, pre_row, NULL, 0, NULL, 0,
                     &watch);
        for (ptrdiff_t k = first; k < end; k++) {
            double *its_v = v + (k - first) * row, *its_pre = pre + (k - first) * pre_row;
            if (s->transposed)
                split_back(s->cell, H, factors + k / s->m * of_sample, its_pre, its_v);
            else
                combine_forward(s->cell, H, factors + k / s->m * of_sample, its_pre, its_v);
        }
        if (s->transposed) /* GRU: added to what stays */
            FN(gemm)(end - first, 0, H, H, GH, pre, pre_row, s->packed, (int)(i % 2), v, row,
                     s->cell == GC_GRU ? v : NULL, row, NULL, 0, &watch);
        for (ptrdiff_t k = first; s->log_norm && k < end; k++) {
            double *its_v = v + (k - first) * row;
            const double norm = norm_of(row, its_v, s->log_norm + i * s->B * s->m + k);
            if (norm != 0) divide(row, its_v, norm);
        }
    }
}

static size_t jacobian_work(const gc_jacobian *s)
{
    return (size_t)(s->B * s->m * gc_row(cell_gates(s->cell) * s->H, 8)) * 8;
}

static int jacobian_product(const gc_jacobian *s)
{
    const double work = (double)s->steps * (double)(s->B * s->m) * (double)(cell_gates(s->cell) * s->H) * (double)s->H;
    if (s->B * s->m == 0) return GC_OK;
    return gc_parallel(work < SERIAL_WORK ? 1 : s->threads, 0, jacobian_body, (void *)s);
}

/* ==== vectors that are carried along, kept apart ======================================================================= */

/* v (k, n) = R Q for orthonormal rows Q, or U L for rows L that are only far from parallel: either leaves in v what spans the
 * same, the first row the first, the first two the first two, and so on, so that the R of many steps is a product of such
 * triangular factors of a few. U costs a third. */

enum { TOGETHER = 4 }; /* rows that a pass takes out of others, and rows that it takes them out of */

/* rows (R, n) -= share (R, TOGETHER) times TOGETHER earlier rows. R is a constant where this is inlined. */
INLINE void take_out(const int R, ptrdiff_t n, double *rows, const double *earlier, double share[TOGETHER][TOGETHER])
{
    for (ptrdiff_t i = 0; i < n; i += V) {
        VEC from[TOGETHER];
        const ptrdiff_t live = n - i;
#pragma GCC unroll 4
        for (int j = 0; j < TOGETHER; j++) from[j] = FN(v_get)(earlier + j * n + i, live);
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            VEC rest = FN(v_get)(rows + r * n + i, live);
#pragma GCC unroll 4
            for (int j = 0; j < TOGETHER; j++) rest = FN(v_fnma)(FN(v_set1)(share[r][j]), from[j], rest);
            FN(v_put)(rows + r * n + i, rest, live);
        }
    }
}

INLINE void take_one_out(ptrdiff_t n, double *row, const double *earlier, double share)
{
    for (ptrdiff_t i = 0; i < n; i += V)
        FN(v_put)(row + i, FN(v_fnma)(FN(v_set1)(share), FN(v_get)(earlier + i, n - i), FN(v_get)(row + i, n - i)), n - i);
}

/* U L: each row loses of the earlier ones what makes it 0 at their pivots, their largest entries, and is divided by its own.
 * A row that is all 0 has no pivot, and nothing is taken of it; one that is not finite becomes NaN. */
static void separate(ptrdiff_t k, ptrdiff_t n, double *v, double *log_pivots, ptrdiff_t *pivots, gc_watch *watch)
{
    for (ptrdiff_t r = 0; r < k; r++) {
        if (stopped(watch, (double)r * (double)n)) return;
        double *row = v + r * n;
        const ptrdiff_t block = r / TOGETHER * TOGETHER, rows = gc_min(TOGETHER, k - block);
        for (ptrdiff_t first = 0; first < block && r == block; first += TOGETHER) { /* of all rows of the block */
            const double *earlier = v + first * n;
            const ptrdiff_t *at = pivots + first;
            double share[TOGETHER][TOGETHER];
            for (ptrdiff_t m = 0; m < rows; m++)
                for (int i = 0; i < TOGETHER; i++) {
                    share[m][i] = at[i] < 0 ? 0 : row[m * n + at[i]];
                    for (int j = 0; j < i && at[i] >= 0; j++) share[m][i] -= share[m][j] * earlier[j * n + at[i]];
                }
            if (rows == TOGETHER)
                take_out(TOGETHER, n, row, earlier, share);
            else
                for (ptrdiff_t m = 0; m < rows; m++) take_out(1, n, row + m * n, earlier, share + m);
            for (ptrdiff_t m = 0; m < rows; m++)
                for (int i = 0; i < TOGETHER; i++)
                    if (at[i] >= 0) row[m * n + at[i]] = 0;
        }
        for (ptrdiff_t i = block; i < r; i++) {
            if (pivots[i] < 0) continue;
            take_one_out(n, row, v + i * n, row[pivots[i]]);
            row[pivots[i]] = 0;
        }
        const double largest = largest_of(n, row);
        log_pivots[r] = log(largest);
        pivots[r] = -1;
        if (largest == 0) continue;
        for (pivots[r] = 0; fabs(row[pivots[r]]) < largest;) pivots[r]++;
        divide(n, row, largest < INFINITY ? row[pivots[r]] : NAN); /* which all later rows get */
    }
}

/* R Q by Gram and Schmidt, again where a row has lost much. A row of which nothing but rounding errors is left depends on
 * the earlier ones: it has ln 0, and is replaced. */
static void orthonormalise(ptrdiff_t k, ptrdiff_t n, double *v, double *log_diagonal, gc_watch *watch)
{
    enum { PASSES = 4 };
    for (ptrdiff_t r = 0; r < k; r++) {
        double *row = v + r * n;
        ptrdiff_t replacement = 0;
        log_diagonal[r] = 0;
        for (int pass = 0;; pass++) {
            if (stopped(watch, 2 * (double)(r + 1) * (double)n)) return;
            double log_norm;
            const double norm = norm_of(n, row, &log_norm);
            if ((norm == 0 || pass == PASSES) && replacement < n) {
                log_diagonal[r] = -INFINITY;
                for (ptrdiff_t i = 0; i < n; i++) row[i] = i == replacement;
                replacement++;
                pass = -1;
                continue;
            }
            log_diagonal[r] += log_norm;
            divide(n, row, norm);
            if ((pass && norm > 0.5) || !(norm > 0 && norm < INFINITY)) break;
            for (ptrdiff_t j = 0; j < r; j++) {
                VEC product = FN(v_zero)();
                for (ptrdiff_t i = 0; i < n; i += V)
                    product = FN(v_fma)(FN(v_get)(row + i, n - i), FN(v_get)(v + j * n + i, n - i), product);
                double lanes[V], dot = 0;
                FN(v_store)(lanes, product);
                for (int i = 0; i < V; i++) dot += lanes[i];
                take_one_out(n, row, v + j * n, dot);
            }
        }
    }
}

typedef struct {
    ptrdiff_t B, k, n;
    double *v, *logs;
    ptrdiff_t *pivots;
} separate_job;

static void separate_body(void *arg, gc_team *team, int thread)
{
    const separate_job *job = arg;
    ptrdiff_t first, end;
    share(job->B, team, thread, &first, &end);
    gc_watch watch = {team, thread, 0, 0};
    for (ptrdiff_t b = first; b < end && !watch.stop; b++) {
        double *v = job->v + b * job->k * job->n, *logs = job->logs + b * job->k;
        if (job->pivots)
            separate(job->k, job->n, v, logs, job->pivots + b * job->k, &watch);
        else
            orthonormalise(job->k, job->n, v, logs, &watch);
    }
}

static int jacobian_separate(int threads, ptrdiff_t B, ptrdiff_t k, ptrdiff_t n, double *v, double *logs, ptrdiff_t *pivots)
{
    separate_job job = {B, k, n, v, logs, pivots};
    return gc_parallel((double)(B * k) * (double)(k * n) < SERIAL_WORK ? 1 : threads, 0, separate_body, &job);
}
#endif
