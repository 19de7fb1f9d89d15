/* The Jacobians of a recurrent layer's steps, d(state after) / d(state before), and their products with vectors.
 *
 * The state is h, or (h, c): P = 1 or 2 parts. A Jacobian is never formed: it is W_hh between diagonals. Of those each step of
 * each sequence keeps D, the factors, as (D, H), always in double. What they are, and how they carry a vector forward and a
 * gradient back, stands with each cell in recurrent/cells/.
 */
#ifndef REAL
#error "jacobian.inc.h needs real.inc.h, simd.inc.h, gemm/ and recurrent/"
#endif

#ifndef GC_JACOBIAN_SIZES
#define GC_JACOBIAN_SIZES
enum { FACTOR_WORK = 300 }; /* multiply-adds that take as long as a unit's factors, a tanh among them */
#endif

/* ==== the factors of a tape's rows, for a tape of either type ========================================================== */

typedef struct {
    const gc_tape *tape;
    ptrdiff_t n;
    const ptrdiff_t *rows;
    double *factors;
} FN(factor_job);

static void FN(factors_body)(void *arg, gc_team *team, int thread)
{
    const FN(factor_job) *job = arg;
    const gc_tape *tape = job->tape;
    const gc_cell *cell = &gc_cells[tape->cell];
    const ptrdiff_t H = tape->H, padded = (H + V - 1) / V * V;
    const ptrdiff_t gates_row = gc_row(cell->K * padded, sizeof(REAL)), state_row = gc_row(padded, sizeof(REAL));
    ptrdiff_t first, end;
    gc_watch watch = {team, thread, 0, 0};
    gc_share(job->n, team, thread, &first, &end);
    for (ptrdiff_t i = first; i < end; i++) {
        if (gc_stop_after(&watch, (double)(H * FACTOR_WORK))) return;
        const ptrdiff_t row = job->rows[i];
        const FN(cell_row) p = {.u1 = H, .H = H, .gates = (REAL *)tape->gates + row * gates_row,
                                 .h_in = tape->h_in ? (REAL *)tape->h_in + row * state_row : NULL,
                                 .c_in = tape->c_in ? (REAL *)tape->c_in + row * state_row : NULL};
        FN(cells)[tape->cell]->factors(&p, job->factors + i * cell->D * H);
    }
}

static int FN(jacobian_factors)(int threads, const gc_tape *tape, ptrdiff_t n, const ptrdiff_t *rows, double *factors)
{
    FN(factor_job) job = {tape, n, rows, factors};
    return gc_parallel((double)n * (double)tape->H * 10 < SERIAL_WORK ? 1 : threads, 0, FN(factors_body), &job);
}

/* ==== products, in double ============================================================================================== */

#if GC_BITS == 64

/* W_hh packed for the products of one way: v W^T forward, u W for the transpose. */
static size_t jacobian_packed(int cell, int transposed, ptrdiff_t H, const double *w_hh, double *packed)
{
    const ptrdiff_t GH = gc_cells[cell].G * H;
    const FN(unpacked) forward = {.K = H, .N = GH, .at = w_hh, .row = 1, .column = H};
    const FN(unpacked) back = {.K = GH, .N = H, .at = w_hh, .row = H, .column = 1};
    if (packed) FN(pack)(transposed ? &back : &forward, NR, packed, 0, 1, NULL);
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

static void jacobian_body(void *arg, gc_team *team, int thread)
{
    const gc_jacobian *s = arg;
    const gc_cell *cell = &gc_cells[s->cell];
    const jacobian_cell *functions = jacobian_cells[s->cell];
    const ptrdiff_t H = s->H, GH = cell->G * H, row = (1 + cell->has_c) * H, pre_row = gc_row(GH, 8), of_sample = cell->D * H;
    ptrdiff_t first, end;
    gc_share(s->B * s->m, team, thread, &first, &end);
    double *v = s->v + first * row, *pre = s->work + first * pre_row;
    gc_watch watch = {team, thread, 0, 0};
    for (ptrdiff_t i = 0; i < s->steps && !watch.stop; i++) {
        const double *factors = s->factors + i * s->B * of_sample;
        FN(gemm_job) product = {.M = end - first, .b = s->packed, .back = (int)(i % 2)};
        if (s->transposed) { /* what bypasses W_hh stays in v, where the product is added to it */
            product.N = product.j1 = H, product.K = GH, product.a = pre, product.a_row = pre_row;
            product.c = v, product.c_row = product.start_row = row, product.start = cell->bypass ? v : NULL;
        } else {
            product.N = product.j1 = GH, product.K = H, product.a = v, product.a_row = row;
            product.c = pre, product.c_row = pre_row;
            FN(gemm)(&product, &watch);
        }
        for (ptrdiff_t k = first; k < end; k++) {
            const double *its_factors = factors + k / s->m * of_sample;
            double *its_v = v + (k - first) * row, *its_pre = pre + (k - first) * pre_row;
            if (s->transposed)
                functions->carry_back(H, its_factors, its_pre, its_v);
            else
                functions->carry(H, its_factors, its_pre, its_v);
        }
        if (s->transposed) FN(gemm)(&product, &watch);
        for (ptrdiff_t k = first; s->log_norm && k < end; k++) {
            double *its_v = v + (k - first) * row;
            const double norm = norm_of(row, its_v, s->log_norm + i * s->B * s->m + k);
            if (norm != 0) divide(row, its_v, norm);
        }
    }
}

static size_t jacobian_work(const gc_jacobian *s)
{
    return (size_t)(s->B * s->m * gc_row(gc_cells[s->cell].G * s->H, 8)) * 8;
}

static int jacobian_product(const gc_jacobian *s)
{
    const double work = (double)s->steps * (double)(s->B * s->m) * (double)(gc_cells[s->cell].G * s->H) * (double)s->H;
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
        if (gc_stop_after(watch, (double)r * (double)n)) return;
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
static void orthonormalize(ptrdiff_t k, ptrdiff_t n, double *v, double *log_diagonal, gc_watch *watch)
{
    enum { PASSES = 4 };
    for (ptrdiff_t r = 0; r < k; r++) {
        double *row = v + r * n;
        ptrdiff_t replacement = 0;
        log_diagonal[r] = 0;
        for (int pass = 0;; pass++) {
            if (gc_stop_after(watch, 2 * (double)(r + 1) * (double)n)) return;
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
    gc_share(job->B, team, thread, &first, &end);
    gc_watch watch = {team, thread, 0, 0};
    for (ptrdiff_t b = first; b < end && !watch.stop; b++) {
        double *v = job->v + b * job->k * job->n, *logs = job->logs + b * job->k;
        if (job->pivots)
            separate(job->k, job->n, v, logs, job->pivots + b * job->k, &watch);
        else
            orthonormalize(job->k, job->n, v, logs, &watch);
    }
}

static int jacobian_separate(int threads, ptrdiff_t B, ptrdiff_t k, ptrdiff_t n, double *v, double *logs, ptrdiff_t *pivots)
{
    separate_job job = {B, k, n, v, logs, pivots};
    return gc_parallel((double)(B * k) * (double)(k * n) < SERIAL_WORK ? 1 : threads, 0, separate_body, &job);
}

static const gc_jacobian_kernels jacobian_kernels = {jacobian_packed, jacobian_work, jacobian_product, jacobian_separate};
#endif
