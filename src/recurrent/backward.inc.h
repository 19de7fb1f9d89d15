/* The backward pass, step by step through time, and what the chunks of steps add to the weights' gradients. */
#ifndef REAL
#error "backward.inc.h needs gemm/, chunk.h and cell.inc.h"
#endif

typedef struct {
    const gc_recurrent *s;
    const gc_cell *cell;
    const FN(cell) *functions;
    ptrdiff_t gates_row, h_row, dg_row, d_row;
    REAL *w_ih, *w_hh; /* packed the other way round, their rows in dg's order: (G*H, F), (G*H, H) */
    REAL *dg;          /* a chunk's dL/d(pre-activation), [K][H] */
    REAL *da, *du;     /* d_row apart, what the input's and the recurrent product see of it: the first and the last G*H of a row
                          of dg, or behind layer norm [G][H] of their own */
    REAL *db_ih, *db_hh; /* that a product with these adds to, NULL with layer norm */
    REAL *dc_total;    /* (B, H), for a cell with c */
    REAL *bypass;      /* (B, H), for a cell that has one */
    REAL *products;    /* scratch of gemm_tn, a part for each thread */
    REAL *narrow;      /* with a narrow input, for each thread: (F+1, G*H) gradients; a chunk of (x, 1) */
    ptrdiff_t narrow_size;
    /* with layer norm */
    const FN(cell_norm) *norm;
    ptrdiff_t norm_row, sums_size;
    REAL *gain; /* [H'/V][2G][V] */
    REAL *dn;   /* (2, H) for each row of a chunk, for a cell with c */
    REAL *sums; /* for each thread a chunk's sums, [H'/V][K + 2G + 2][V] */
    /* with zoneout */
    REAL *k;                     /* for each thread (zoneout_units,) */
    REAL *dh_new, *rest, *rest_c; /* (B, H): dL/dh'_t, what goes to dL/dh_{t-1} beside it, and to dL/dc_{t-1} */
} FN(backward_plan);

static size_t FN(plan_backward)(FN(backward_plan) *plan, const gc_recurrent *s)
{
    gc_arena arena = {s->work, 0};
    ptrdiff_t padded = (s->H + V - 1) / V * V;
    const gc_cell *cell = &gc_cells[s->cell];
    const ptrdiff_t GH = cell->G * s->H;
    *plan = (FN(backward_plan)){.s = s, .cell = cell};
    plan->functions = FN(cells)[s->cell];
    plan->gates_row = gc_row(cell->K * padded, sizeof(REAL));
    plan->h_row = gc_row(padded, sizeof(REAL));
    plan->dg_row = gc_row((cell->K * s->H + V - 1) / V * V, sizeof(REAL));
    plan->w_ih = s->dx ? gc_take(&arena, FN(packed_size)(GH, s->F), sizeof(REAL)) : NULL;
    plan->w_hh = gc_take(&arena, FN(packed_size)(GH, s->H), sizeof(REAL));
    plan->dg = gc_take(&arena, chunk_rows(s, BACKWARD_ROWS) * plan->dg_row, sizeof(REAL));
    plan->d_row = plan->dg_row;
    plan->da = plan->dg;
    plan->du = plan->dg ? plan->dg + (cell->K - cell->G) * s->H : NULL;
    plan->db_ih = s->norm.ih ? NULL : s->db_ih;
    plan->db_hh = s->norm.ih ? NULL : s->db_hh;
    plan->norm = s->norm.ih ? &FN(cell_norms)[s->cell] : NULL;
    if (plan->norm) {
        plan->norm_row = FN(norm_row)(cell, s->H);
        plan->d_row = gc_row((GH + V - 1) / V * V, sizeof(REAL));
        plan->sums_size = (cell->K + 2 * cell->G + 2) * padded;
        plan->da = gc_take(&arena, chunk_rows(s, BACKWARD_ROWS) * plan->d_row, sizeof(REAL));
        plan->du = gc_take(&arena, chunk_rows(s, BACKWARD_ROWS) * plan->d_row, sizeof(REAL));
        plan->gain = gc_take(&arena, 2 * cell->G * padded, sizeof(REAL));
        plan->dn = cell->has_c ? gc_take(&arena, chunk_rows(s, BACKWARD_ROWS) * 2 * s->H, sizeof(REAL)) : NULL;
        plan->sums = gc_take(&arena, recurrent_threads(s) * plan->sums_size, sizeof(REAL));
    }
    if (s->zoneout.p > 0) {
        plan->k = gc_take(&arena, recurrent_threads(s) * FN(zoneout_units)(s), sizeof(REAL));
        plan->dh_new = gc_take(&arena, s->B * s->H, sizeof(REAL));
        plan->rest = gc_take(&arena, s->B * s->H, sizeof(REAL));
        plan->rest_c = cell->has_c ? gc_take(&arena, s->B * s->H, sizeof(REAL)) : NULL;
    }
    plan->dc_total = cell->has_c ? gc_take(&arena, s->B * s->H, sizeof(REAL)) : NULL;
    plan->bypass = cell->bypass ? gc_take(&arena, s->B * s->H, sizeof(REAL)) : NULL;
    plan->narrow_size = s->F <= NARROW ? (s->F + 1) * (GH + chunk_rows(s, BACKWARD_ROWS)) : 0;
    plan->narrow = gc_take(&arena, recurrent_threads(s) * plan->narrow_size, sizeof(REAL));
    plan->products = gc_take(&arena, recurrent_threads(s) * FN(gemm_tn_work)(), sizeof(REAL));
    return arena.used;
}

/* clip / norm as two factors: one alone may lie below the normal numbers, which are flushed to zero. The first is a power of
 * two, 1 where the second can do without. */
INLINE void FN(step_scale)(double norm, double clip, REAL scale[2])
{
    const double least = GC_BITS == 32 ? FLT_MIN : DBL_MIN;
    int norm_exponent = 0, clip_exponent = 0;
    if (norm * least > clip) {
        frexp(norm, &norm_exponent);
        frexp(clip, &clip_exponent);
    }
    const double half_way = ldexp(1, (clip_exponent - norm_exponent) / 2);
    scale[0] = (REAL)half_way;
    scale[1] = (REAL)(clip / (norm * half_way));
}

/* The inverse of zone_out for a row: what the cell gets, and what goes past it. */
static void FN(zone_back)(const FN(backward_plan) *plan, FN(cell_row) *p, ptrdiff_t b, ptrdiff_t row, int thread)
{
    const ptrdiff_t H = p->H;
    REAL *k = plan->k + thread * FN(zoneout_units)(plan->s), *dh_new = plan->dh_new + b * H;
    FN(zoneout_row)(plan->s, row, 0, p->u0, p->u1, k);
    FN(zone_apart)(p->u0, p->u1, k, p->dh, p->scale, dh_new, plan->rest + b * H);
    p->dh = dh_new;
    p->scale[0] = p->scale[1] = 1;
    if (!p->dc) return;
    /* h_t is not made of c_t but of what would be c_t without zoneout: nothing else comes to dL/dc_t */
    memcpy(p->dc_total + p->u0, p->dc + p->u0, (size_t)(p->u1 - p->u0) * sizeof(REAL));
    FN(zoneout_row)(plan->s, row, 1, p->u0, p->u1, k);
    FN(zone_apart)(p->u0, p->u1, k, p->dc_total, p->scale, p->dc, plan->rest_c + b * H);
    p->dc_total = p->dc; /* the cell's is of no interest */
}

/* The layer norm of c of a row, as the backward pass has it. */
INLINE FN(c_norm) FN(c_norm_of)(const FN(backward_plan) *plan, const gc_chunk *chunk, ptrdiff_t row)
{
    const gc_recurrent *s = plan->s;
    REAL *kept = (REAL *)s->norm.kept + row * plan->norm_row;
    return (FN(c_norm)){.gain = s->norm.c, .bias = s->norm.c_bias, .c = kept + 2 * plan->cell->G * V,
                        .scale = kept[FN(norm_scales_at)(plan->cell, s->H) + 2], .group = FN(norm_group)(plan->cell),
                        .dn = plan->dn + (row - chunk->row0) * 2 * s->H};
}

/* dL/dc_t gets what comes through the output: the inverse of (n3), from dn, of which the whole row is known. */
static void FN(add_to_dc)(const FN(c_norm) *norm, const FN(cell_row) *p)
{
    const ptrdiff_t H = p->H;
    VEC sum = FN(v_zero)(), product = FN(v_zero)();
    const REAL *dn_c = norm->dn, *dn = dn_c + H;
    for (ptrdiff_t j = 0; j < H; j += V) {
        const VEC gain = FN(v_get)(norm->gain + j, H - j);
        sum = FN(v_fma)(FN(v_get)(dn + j, H - j), gain, sum);
        product = FN(v_fma)(FN(v_get)(dn_c + j, H - j), gain, product);
    }
    const VEC mean = FN(v_set1)((REAL)(FN(total)(1, &sum) / (double)H)), scale = FN(v_set1)(norm->scale);
    const VEC slope = FN(v_set1)((REAL)(FN(total)(1, &product) / (double)H));
    for (ptrdiff_t j = p->u0; j < p->u1; j += V) {
        const ptrdiff_t live = p->u1 - j;
        const VEC e = FN(v_mul)(FN(v_get)(dn + j, live), FN(v_get)(norm->gain + j, live));
        const VEC rest = FN(v_fnma)(FN(v_load)(norm->c + j / V * norm->group), slope, FN(v_sub)(e, mean));
        FN(v_put)(p->dc + j, FN(v_fma)(scale, rest, FN(v_get)(p->dc + j, live)), live);
    }
}

/* One step of a thread's rows and units: from dL/dh_t to dg and dL/dh_{t-1}. */
static void FN(step_back)(const FN(backward_plan) *plan, const gc_chunk *chunk, ptrdiff_t i, gc_watch *watch)
{
    const gc_recurrent *s = plan->s;
    const ptrdiff_t H = s->H, G = plan->cell->G, u0 = chunk->u0;
    const ptrdiff_t t = step_at(s, i), first = chunk->first, rows = own_rows(s, chunk, t), row0 = s->offsets[t] + first;
    REAL *gates = s->gates, *c_in = s->c_in, *dc = s->dc;
    const REAL *h_in = s->h_in;
    REAL *dh = (REAL *)s->dh + first * H, *dg = plan->dg + (row0 - chunk->row0) * plan->dg_row;
    REAL *dc_total = plan->dc_total ? plan->dc_total + first * H : NULL, *bypass = plan->bypass ? plan->bypass + first * H : NULL;
    const int measures = s->dh_norm || s->step_clip < INFINITY;

    for (ptrdiff_t b = 0; b < rows; b++) {
        const REAL *dy = (const REAL *)s->dy + (s->y_at ? s->y_at[row0 + b] : row0 + b) * s->ld_y;
        for (ptrdiff_t j = chunk->u0; j < chunk->u1; j++) dh[b * H + j] += dy[j];
    }
    if (chunk->by_units && gc_wait(watch)) return; /* dL/dh_t is complete */
    for (ptrdiff_t b = 0; b < rows; b++) {
        const ptrdiff_t row = row0 + b;
        const double norm = measures ? FN(l2_norm)(dh + b * H, H) : 0;
        if (s->dh_norm && !u0) s->dh_norm[row] = norm;
        FN(cell_row) p = {.u0 = u0, .u1 = chunk->u1, .H = H, .gates = gates + row * plan->gates_row,
                          .h_in = h_in + row * plan->h_row, .c_in = c_in ? c_in + row * plan->h_row : NULL, .dh = dh + b * H,
                          .scale = {1, 1}, .dc = dc ? dc + (first + b) * H : NULL,
                          .dc_total = dc_total ? dc_total + b * H : NULL, .bypass = bypass ? bypass + b * H : NULL,
                          .dg = dg + b * plan->dg_row};
        if (norm > s->step_clip && !isinf(norm)) FN(step_scale)(norm, s->step_clip, p.scale);
        if (plan->k) FN(zone_back)(plan, &p, first + b, row, watch->thread);
        if (plan->dn) {
            const FN(c_norm) norm_c = FN(c_norm_of)(plan, chunk, row);
            plan->functions->step_from_c_back(&p, &norm_c);
        } else {
            plan->functions->step_back(&p);
        }
    }
    if (plan->dn) {
        if (chunk->by_units && gc_wait(watch)) return; /* dn is complete */
        for (ptrdiff_t b = 0; b < rows; b++) {
            const FN(c_norm) norm_c = FN(c_norm_of)(plan, chunk, row0 + b);
            const FN(cell_row) p = {.u0 = u0, .u1 = chunk->u1, .H = H, .gates = gates + (row0 + b) * plan->gates_row,
                                    .c_in = c_in + (row0 + b) * plan->h_row, .dc = dc + (first + b) * H,
                                    .dc_total = plan->k ? dc + (first + b) * H : dc_total + b * H,
                                    .dg = dg + b * plan->dg_row};
            FN(add_to_dc)(&norm_c, &p);
            plan->functions->step_to_c_back(&p);
        }
    }
    if (chunk->by_units && gc_wait(watch)) return; /* dg, dc_total and the bypass are complete */
    if (s->dc_norm && dc_total) {
        ptrdiff_t from = 0, to = rows;
        if (chunk->by_units) gc_share(rows, watch->team, watch->thread, &from, &to);
        for (ptrdiff_t b = from; b < to; b++) s->dc_norm[row0 + b] = FN(l2_norm)(dc_total + b * H, H);
    }
    const ptrdiff_t at = (row0 - chunk->row0) * plan->d_row;
    if (plan->norm) {
        const FN(norm_back_job) job = {.n = rows, .H = H, .u0 = u0, .u1 = chunk->u1, .dg = dg, .dg_row = plan->dg_row,
                                       .norm = (const REAL *)s->norm.kept + row0 * plan->norm_row, .norm_row = plan->norm_row,
                                       .gain = plan->gain, .da = plan->da + at, .du = plan->du + at, .d_row = plan->d_row};
        plan->norm->back(&job);
        if (chunk->by_units && gc_wait(watch)) return; /* du is complete */
    }
    const int passes_by = s->mask || plan->k; /* what goes to dL/dh_{t-1} is more than a product and the bypass */
    FN(gemm_job) dh_before = {.M = rows, .N = H, .K = G * H, .j0 = u0, .j1 = chunk->u1, .a = plan->du + at,
                              .a_row = plan->d_row, .b = plan->w_hh, .c = dh, .c_row = H, .start = passes_by ? NULL : bypass,
                              .start_row = H, .back = (int)(i % 2)};
    if (i > 0) { /* what the step that is next reads of the tape is fetched meanwhile */
        const REAL *next = gates + (s->offsets[step_at(s, i - 1)] + first) * plan->gates_row;
        dh_before.ahead = (gc_lines){(uintptr_t)next, (uintptr_t)(next + rows * plan->gates_row)};
    }
    FN(gemm)(&dh_before, watch);
    for (ptrdiff_t b = 0; passes_by && b < rows; b++) {
        const ptrdiff_t at_b = (first + b) * H;
        const REAL *mask = s->mask ? (const REAL *)s->mask + at_b : NULL, *rest = plan->k ? plan->rest + at_b : NULL;
        for (ptrdiff_t j = u0; j < chunk->u1; j += V) {
            const ptrdiff_t live = chunk->u1 - j;
            VEC d = FN(v_get)(dh + b * H + j, live);
            if (mask) d = FN(v_mul)(d, FN(v_get)(mask + j, live));
            if (bypass) d = FN(v_add)(d, FN(v_get)(bypass + b * H + j, live));
            if (rest) d = FN(v_add)(d, FN(v_get)(rest + j, live));
            FN(v_put)(dh + b * H + j, d, live);
            if (rest && dc)
                FN(v_put)(dc + at_b + j, FN(v_add)(FN(v_get)(dc + at_b + j, live), FN(v_get)(plan->rest_c + at_b + j, live)), live);
        }
    }
}

/* With layer norm: the gradients of gains and biases from a chunk, for this thread's units. */
static void FN(norm_part)(const FN(backward_plan) *plan, const gc_chunk *chunk, gc_watch *watch)
{
    const gc_recurrent *s = plan->s;
    const gc_cell *cell = plan->cell;
    const ptrdiff_t H = s->H, G = cell->G, K = cell->K;
    ptrdiff_t u0, u1;
    gc_share_tiles(H, V, watch->team, watch->thread, &u0, &u1);
    if (gc_stop_after(watch, (double)chunk->rows * (double)((u1 - u0) * (K + 2 * G)))) return;
    REAL *sums = plan->sums + watch->thread * plan->sums_size;
    memset(sums, 0, (size_t)plan->sums_size * sizeof(REAL));
    const FN(norm_sum_job) job = {.n = chunk->rows, .H = H, .u0 = u0, .u1 = u1, .dg = plan->dg, .dg_row = plan->dg_row,
                                  .norm = (const REAL *)s->norm.kept + chunk->row0 * plan->norm_row,
                                  .norm_row = plan->norm_row, .dn = plan->dn, .to = sums};
    plan->norm->sum(&job);
    REAL *db_ih = s->db_ih, *db_hh = s->db_hh, *d_ih = s->norm.d_ih, *d_hh = s->norm.d_hh;
    REAL *d_c = s->norm.d_c, *d_c_bias = s->norm.d_c_bias;
    for (ptrdiff_t u = u0; u < u1; u++) {
        const REAL *sum = sums + (u - u0) / V * (K + 2 * G + 2) * V + u % V;
        for (ptrdiff_t k = 0; k < G; k++) {
            const ptrdiff_t ih = gate_of(k, cell->first_gate, G) * H + u, hh = k * H + u;
            if (db_ih) db_ih[ih] += sum[k * V], db_hh[hh] += sum[(K - G + k) * V];
            d_ih[ih] += sum[(K + k) * V];
            d_hh[hh] += sum[(K + G + k) * V];
        }
        if (plan->dn) d_c[u] += sum[(K + 2 * G) * V], d_c_bias[u] += sum[(K + 2 * G + 1) * V];
    }
}

/* This thread's rows of the gradient of a weight matrix, and of its bias, from a chunk: dw += dg^T b, db += the sums of dg. The
 * job has all but its part; the gates of dg stand for the rows of dw, M in all, from `first_row` on, and round. */
static void FN(weight_part)(ptrdiff_t M, ptrdiff_t first_row, const FN(gemm_tn_job) *whole, gc_watch *watch)
{
    for (ptrdiff_t wrapped = 0; wrapped < 2; wrapped++) {
        const ptrdiff_t n = wrapped ? first_row : M - first_row, from = wrapped ? M - first_row : 0, to = wrapped ? 0 : first_row;
        FN(gemm_tn_job) job = *whole;
        gc_share_tiles(n, V, watch->team, watch->thread, &job.m0, &job.m1);
        job.a += from;
        job.c += to * job.c_row;
        if (job.sums) job.sums += to;
        FN(gemm_tn)(&job, watch);
    }
}

/* The same for dw_ih (G*H, F) and db_ih with a narrow input: dg takes the place of b, and a one beside x sums it. */
static void FN(narrow_weight_part)(const FN(backward_plan) *plan, const gc_chunk *chunk, ptrdiff_t first_row, REAL *work,
                                   gc_watch *watch)
{
    const gc_recurrent *s = plan->s;
    const ptrdiff_t F = s->F, GH = plan->cell->G * s->H, rows = chunk->rows;
    REAL *sums = plan->narrow + watch->thread * plan->narrow_size, *x_1 = sums + (F + 1) * GH, *dw = s->dw_ih;
    REAL *db = plan->db_ih;
    const REAL *x = (const REAL *)s->x + chunk->row0 * F;
    ptrdiff_t m0, m1;
    gc_share_tiles(GH, V, watch->team, watch->thread, &m0, &m1);
    for (ptrdiff_t k = 0; k < rows; k++) {
        for (ptrdiff_t f = 0; f < F; f++) x_1[k * (F + 1) + f] = x[k * F + f];
        x_1[k * (F + 1) + F] = 1;
    }
    memset(sums, 0, (size_t)((F + 1) * GH) * sizeof(REAL));
    const FN(gemm_tn_job) job = {.m1 = F + 1, .N = m1 - m0, .K = rows, .a = x_1, .a_row = F + 1, .b = plan->da + m0,
                                 .b_row = plan->d_row, .c = sums + m0, .c_row = GH, .work = work};
    FN(gemm_tn)(&job, watch);
    for (ptrdiff_t m = m0; m < m1; m++) {
        ptrdiff_t to = m + first_row < GH ? m + first_row : m + first_row - GH;
        for (ptrdiff_t f = 0; f < F; f++) dw[to * F + f] += sums[f * GH + m];
        if (db) db[to] += sums[F * GH + m];
    }
}

/* gemm of dx (rows, F) for a narrow input; b is W_ih transposed, (F, G*H), its gates in the order of dg. */
static void FN(narrow_dx)(const FN(gemm_job) *job)
{
    const ptrdiff_t F = job->N, GH = job->K;
    for (ptrdiff_t row = 0; row < job->M; row++)
        for (ptrdiff_t f = 0; f < F; f++) {
            const REAL *dg = job->a + row * job->a_row, *w_f = job->b + f * GH;
            VEC sum[2] = {FN(v_zero)(), FN(v_zero)()};
            REAL lanes[V], total = 0;
            for (ptrdiff_t m = 0; m < GH; m += 2 * V)
                for (int i = 0; i < 2; i++) {
                    ptrdiff_t live = gc_max(GH - m - i * V, 0);
                    sum[i] = FN(v_fma)(FN(v_get)(dg + m + i * V, live), FN(v_get)(w_f + m + i * V, live), sum[i]);
                }
            FN(v_store)(lanes, FN(v_add)(sum[0], sum[1]));
            for (int i = 0; i < V; i++) total += lanes[i];
            job->c[row * F + f] = job->start ? job->start[row * F + f] + total : total;
        }
}

static void FN(backward_body)(void *arg, gc_team *team, int thread)
{
    const FN(backward_plan) *plan = arg;
    const gc_recurrent *s = plan->s;
    const ptrdiff_t F = s->F, H = s->H, GH = plan->cell->G * H, first_row = plan->cell->first_gate * H;
    REAL *work = plan->products + thread * FN(gemm_tn_work)();
    const int n_threads = gc_team_size(team);

    gc_watch watch = {team, thread, 0, 0};
    const FN(unpacked) w_hh = {.K = GH, .N = H, .at = s->w_hh, .row = H, .column = 1};
    const FN(unpacked) w_ih = {.K = GH, .N = F, .at = s->w_ih, .row = F, .column = 1, .first_row = first_row};
    FN(pack)(&w_hh, NR, plan->w_hh, thread, n_threads, &watch);
    if (plan->norm && !thread) FN(pack_gains)(s, plan->gain);
    const int narrow = plan->narrow_size > 0;
    if (s->dx && narrow) {
        for (ptrdiff_t m = GH * thread / n_threads; m < GH * (thread + 1) / n_threads; m++) /* (F, G*H) */
            for (ptrdiff_t f = 0; f < F; f++)
                plan->w_ih[f * GH + m] = w_ih.at[(m + first_row < GH ? m + first_row : m + first_row - GH) * F + f];
    } else if (s->dx) {
        FN(pack)(&w_ih, NR, plan->w_ih, thread, n_threads, &watch);
    }
    if (gc_wait(&watch)) return;

    for (ptrdiff_t i1 = s->T; i1 > 0 && !watch.stop;) {
        gc_chunk chunk = chunk_of(s, 1, i1, BACKWARD_ROWS, V, team, thread);
        i1 = chunk.i0;
        for (ptrdiff_t i = chunk.i1 - 1; i >= chunk.i0 && !watch.stop; i--) FN(step_back)(plan, &chunk, i, &watch);
        if (gc_wait(&watch)) return;

        const ptrdiff_t rows = chunk.rows;
        if (plan->norm) FN(norm_part)(plan, &chunk, &watch);
        if (narrow) {
            FN(narrow_weight_part)(plan, &chunk, first_row, work, &watch);
        } else {
            const FN(gemm_tn_job) dw_ih = {.N = F, .K = rows, .a = plan->da, .a_row = plan->d_row,
                                           .b = (const REAL *)s->x + chunk.row0 * F, .b_row = F, .c = s->dw_ih, .c_row = F,
                                           .sums = plan->db_ih, .work = work};
            FN(weight_part)(GH, first_row, &dw_ih, &watch);
        }
        const REAL *h_met = s->mask ? s->h_met : s->h_in;
        const FN(gemm_tn_job) dw_hh = {.N = H, .K = rows, .a = plan->du, .a_row = plan->d_row,
                                       .b = h_met + chunk.row0 * plan->h_row, .b_row = plan->h_row, .c = s->dw_hh, .c_row = H,
                                       .sums = plan->db_hh, .work = work};
        FN(weight_part)(GH, 0, &dw_hh, &watch);
        if (s->dx) {
            ptrdiff_t first, end;
            gc_share_tiles(rows, MR, team, thread, &first, &end);
            REAL *to = (REAL *)s->dx + (chunk.row0 + first) * F;
            const FN(gemm_job) dx = {.M = end - first, .N = F, .K = GH, .j1 = F, .a = plan->da + first * plan->d_row,
                                     .a_row = plan->d_row, .b = plan->w_ih, .c = to, .c_row = F,
                                     .start = s->dx_adds ? to : NULL, .start_row = F};
            if (narrow)
                FN(narrow_dx)(&dx);
            else
                FN(gemm)(&dx, &watch);
        }
        if (gc_wait(&watch)) return;
    }
}
