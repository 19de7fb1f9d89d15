/* The Jacobians of a recurrent layer's steps, d(state after) / d(state before), and their products with vectors.
 *
 * The state is h, or (h, c): P = 1 or 2 parts. A Jacobian is never formed: it is W_hh between diagonals. Of those each step of
 * each sequence keeps D, the factors, as (D, H), always in double. What they are, and how they carry a vector forward and a
 * gradient back, stands with each cell in recurrent/cells/. Beside the cell, and in rows of their own behind its factors:
 *   layer norm         W_hh v becomes P W_hh v with P y = y - mean(y) - u' mean(u' y), which is its own transpose; what it is
 *                      multiplied by is in the factors. LSTM's c' the same on its way to h
 *   zoneout            J = k + (1 - k) J' with the J' of the cell
 *   recurrent dropout  W_hh (mask v)
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
    int masked;
    ptrdiff_t n;
    const ptrdiff_t *rows;
    double *factors;
} FN(factor_job);

/* The rows of layer norm, and what it brings to those of the cell. */
static void FN(norm_factors)(const gc_tape *tape, const REAL *norm, double *cell_rows, double *to)
{
    const gc_cell *cell = &gc_cells[tape->cell];
    const ptrdiff_t H = tape->H, G = cell->G, group = FN(norm_group)(cell);
    const REAL *gain = tape->norm.hh;
    const double scale = norm[FN(norm_scales_at)(cell, H) + 1];
    for (ptrdiff_t k = 0; k < G; k++)
        for (ptrdiff_t j = 0; j < H; j++) {
            cell_rows[k * H + j] *= gain[k * H + j] * scale;
            to[k * H + j] = norm[j / V * group + (G + k) * V + j % V];
        }
    for (ptrdiff_t j = 0; cell->has_c && j < H; j++) to[G * H + j] = norm[j / V * group + 2 * G * V + j % V];
}

static void FN(zoneout_factors)(const gc_tape *tape, ptrdiff_t row, double *to)
{
    const ptrdiff_t H = tape->H, parts = 1 + gc_cells[tape->cell].has_c;
    for (int part = 0; part < parts; part++)
        for (ptrdiff_t first = 0; first < H; first += THREEFRY_WORDS) {
            REAL k[THREEFRY_WORDS];
            FN(zoneout_block)(&tape->zoneout, H, row, part, first, k);
            for (ptrdiff_t j = first; j < gc_min(H, first + THREEFRY_WORDS); j++) {
                to[part * H + j] = k[j - first];
                to[(parts + part) * H + j] = 1 - (double)k[j - first];
            }
        }
}

static void FN(factors_body)(void *arg, gc_team *team, int thread)
{
    const FN(factor_job) *job = arg;
    const gc_tape *tape = job->tape;
    const gc_cell *cell = &gc_cells[tape->cell];
    const ptrdiff_t H = tape->H, padded = (H + V - 1) / V * V;
    const ptrdiff_t gates_row = gc_row(cell->K * padded, sizeof(REAL)), state_row = gc_row(padded, sizeof(REAL));
    const ptrdiff_t norm_row = FN(norm_row)(cell, H);
    const int beside = (tape->norm.hh ? GC_NORMED : 0) | (tape->zoneout.p > 0 ? GC_ZONED : 0) | (job->masked ? GC_MASKED : 0);
    const ptrdiff_t of_row = gc_jacobian_rows(tape->cell, beside) * H, normed_at = cell->D * H;
    const ptrdiff_t zoned_at = gc_jacobian_rows(tape->cell, beside & GC_NORMED) * H;
    ptrdiff_t first, end;
    gc_watch watch = {team, thread, 0, 0};
    gc_share(job->n, team, thread, &first, &end);
    for (ptrdiff_t i = first; i < end; i++) {
        if (gc_stop_after(&watch, (double)(H * FACTOR_WORK))) return;
        const ptrdiff_t row = job->rows[i];
        const FN(cell_row) p = {.u1 = H, .H = H, .gates = (REAL *)tape->gates + row * gates_row,
                                 .h_in = tape->h_in ? (REAL *)tape->h_in + row * state_row : NULL,
                                 .c_in = tape->c_in ? (REAL *)tape->c_in + row * state_row : NULL};
        const REAL *norm = beside & GC_NORMED ? (const REAL *)tape->norm.kept + row * norm_row : NULL;
        double *to = job->factors + i * of_row;
        FN(c_norm) of_c = {.gain = tape->norm.c, .bias = tape->norm.c_bias, .group = FN(norm_group)(cell)};
        if (norm) of_c.c = (REAL *)norm + 2 * cell->G * V, of_c.scale = norm[FN(norm_scales_at)(cell, H) + 2];
        FN(cells)[tape->cell]->factors(&p, norm && cell->has_c ? &of_c : NULL, to);
        if (norm) FN(norm_factors)(tape, norm, to, to + normed_at);
        if (beside & GC_ZONED) FN(zoneout_factors)(tape, row, to + zoned_at);
    }
}

static int FN(jacobian_factors)(int threads, const gc_tape *tape, int masked, ptrdiff_t n, const ptrdiff_t *rows,
                                double *factors)
{
    FN(factor_job) job = {tape, masked, n, rows, factors};
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

/* y = P y for n numbers, with u' as above; H of each n / H gates. */
static void take_out_norm(ptrdiff_t n, const double *normed, double *y)
{
    VEC sum = FN(v_zero)(), product = FN(v_zero)();
    for (ptrdiff_t i = 0; i < n; i += V) {
        const VEC its = FN(v_get)(y + i, n - i);
        sum = FN(v_add)(sum, its);
        product = FN(v_fma)(its, FN(v_get)(normed + i, n - i), product);
    }
    const VEC mean = FN(v_set1)(FN(total)(1, &sum) / (double)n), slope = FN(v_set1)(FN(total)(1, &product) / (double)n);
    for (ptrdiff_t i = 0; i < n; i += V) {
        const VEC less = FN(v_sub)(FN(v_get)(y + i, n - i), mean);
        FN(v_put)(y + i, FN(v_fnma)(FN(v_get)(normed + i, n - i), slope, less), n - i);
    }
}

/* to = k * from, of n numbers. */
INLINE void scaled(ptrdiff_t n, const double *k, const double *from, double *to)
{
    for (ptrdiff_t i = 0; i < n; i++) to[i] = k[i] * from[i];
}

INLINE void add_to(ptrdiff_t n, const double *from, double *to)
{
    for (ptrdiff_t i = 0; i < n; i++) to[i] += from[i];
}

/* Where a step has what beside its cell; NULL where it has not. */
typedef struct {
    const double *cell, *u, *c, *k, *rest, *mask;
} step_factors;

static step_factors factors_of(const gc_jacobian *s, ptrdiff_t step, ptrdiff_t sample)
{
    const gc_cell *cell = &gc_cells[s->cell];
    const ptrdiff_t H = s->H, P = 1 + cell->has_c;
    const double *at = s->factors + (step * s->B + sample) * gc_jacobian_rows(s->cell, s->beside) * H;
    step_factors its = {.cell = at};
    at += cell->D * H;
    if (s->beside & GC_NORMED) {
        its.u = at;
        if (cell->has_c) its.c = at + cell->G * H;
        at += (cell->G + cell->has_c) * H;
    }
    if (s->beside & GC_ZONED) its.k = at, its.rest = at + P * H, at += 2 * P * H;
    if (s->beside & GC_MASKED) its.mask = at;
    return its;
}

/* Elements of scratch for each vector: W_hh v, and with anything beside the cell what meets W_hh or comes of it transposed, and
 * what passes by the cell. */
INLINE ptrdiff_t jacobian_row(const gc_jacobian *s)
{
    const gc_cell *cell = &gc_cells[s->cell];
    return gc_row(cell->G * s->H + (s->beside ? (2 + cell->has_c) * s->H : 0), 8);
}

static void jacobian_body(void *arg, gc_team *team, int thread)
{
    const gc_jacobian *s = arg;
    const gc_cell *cell = &gc_cells[s->cell];
    const jacobian_cell *functions = jacobian_cells[s->cell];
    const ptrdiff_t H = s->H, GH = cell->G * H, row = (1 + cell->has_c) * H, pre_row = jacobian_row(s);
    const int bypass = cell->bypass && !s->beside;
    ptrdiff_t first, end;
    gc_share(s->B * s->m, team, thread, &first, &end);
    double *v = s->v + first * row, *pre = s->work + first * pre_row, *met = pre + GH;
    gc_watch watch = {team, thread, 0, 0};
    for (ptrdiff_t i = 0; i < s->steps && !watch.stop; i++) {
        FN(gemm_job) product = {.M = end - first, .b = s->packed, .back = (int)(i % 2)};
        if (s->transposed) { /* what bypasses W_hh stays in v, where the product is added to it */
            product.N = product.j1 = H, product.K = GH, product.a = pre, product.a_row = pre_row;
            product.c = s->beside ? met : v, product.c_row = s->beside ? pre_row : row;
            product.start = bypass ? v : NULL, product.start_row = row;
        } else {
            product.N = product.j1 = GH, product.K = H, product.a = v, product.a_row = row;
            product.c = pre, product.c_row = pre_row;
            if (s->beside & GC_MASKED) {
                product.a = met, product.a_row = pre_row;
                for (ptrdiff_t k = first; k < end; k++)
                    scaled(H, factors_of(s, i, k / s->m).mask, v + (k - first) * row, met + (k - first) * pre_row);
            }
            FN(gemm)(&product, &watch);
        }
        for (ptrdiff_t k = first; k < end; k++) {
            const step_factors its = factors_of(s, i, k / s->m);
            double *its_v = v + (k - first) * row, *its_pre = pre + (k - first) * pre_row, *past = its_pre + GH + H;
            if (its.k) scaled(row, its.k, its_v, past);
            if (s->transposed) {
                if (its.k) scaled(row, its.rest, its_v, its_v);
                functions->carry_back(H, its.cell, its.c, its_pre, its_v);
                if (its.u) take_out_norm(GH, its.u, its_pre);
            } else {
                if (its.u) take_out_norm(GH, its.u, its_pre);
                functions->carry(H, its.cell, its.c, its_pre, its_v);
                if (its.k) scaled(row, its.rest, its_v, its_v), add_to(row, past, its_v);
            }
        }
        if (s->transposed) FN(gemm)(&product, &watch);
        for (ptrdiff_t k = first; s->transposed && s->beside && k < end; k++) {
            const step_factors its = factors_of(s, i, k / s->m);
            double *its_v = v + (k - first) * row, *its_met = met + (k - first) * pre_row;
            if (its.mask) scaled(H, its.mask, its_met, its_met);
            if (cell->bypass)
                add_to(H, its_met, its_v);
            else
                memcpy(its_v, its_met, (size_t)H * 8);
            if (its.k) add_to(row, its_met + H, its_v);
        }
        for (ptrdiff_t k = first; s->log_norm && k < end; k++) {
            double *its_v = v + (k - first) * row;
            const double norm = norm_of(row, its_v, s->log_norm + i * s->B * s->m + k);
            if (norm != 0) divide(row, its_v, norm);
        }
    }
}

static size_t jacobian_work(const gc_jacobian *s)
{
    return (size_t)(s->B * s->m * jacobian_row(s)) * 8;
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
