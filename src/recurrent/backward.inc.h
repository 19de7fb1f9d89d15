/* The backward pass, step by step through time, and what the chunks of steps add to the weights' gradients. */
#ifndef REAL
#error "backward.inc.h needs gemm/, chunk.h and cell.inc.h"
#endif

typedef struct {
    const gc_recurrent *s;
    const gc_cell *cell;
    const FN(cell) *functions;
    ptrdiff_t gates_row, h_row, dg_row;
    REAL *w_ih, *w_hh; /* packed the other way round, their rows in dg's order: (G*H, F), (G*H, H) */
    REAL *dg;          /* a chunk's dL/d(pre-activation), [K][H]; what the input's product sees is the first G*H of a row, what
                          the recurrent one sees the last G*H */
    REAL *dc_total;    /* (B, H), for a cell with c */
    REAL *bypass;      /* (B, H), for a cell that has one */
    REAL *products;    /* scratch of gemm_tn, a part for each thread */
    REAL *narrow;      /* with a narrow input, for each thread: (F+1, G*H) gradients; a chunk of (x, 1) */
    ptrdiff_t narrow_size;
} FN(backward_plan);

static size_t FN(plan_backward)(FN(backward_plan) *plan, const gc_recurrent *s)
{
    gc_arena arena = {s->work, 0};
    ptrdiff_t padded = (s->H + V - 1) / V * V;
    const gc_cell *cell = &gc_cells[s->cell];
    const ptrdiff_t GH = cell->G * s->H;
    plan->s = s;
    plan->cell = cell;
    plan->functions = FN(cells)[s->cell];
    plan->gates_row = gc_row(cell->K * padded, sizeof(REAL));
    plan->h_row = gc_row(padded, sizeof(REAL));
    plan->dg_row = gc_row((cell->K * s->H + V - 1) / V * V, sizeof(REAL));
    plan->w_ih = s->dx ? gc_take(&arena, FN(packed_size)(GH, s->F), sizeof(REAL)) : NULL;
    plan->w_hh = gc_take(&arena, FN(packed_size)(GH, s->H), sizeof(REAL));
    plan->dg = gc_take(&arena, chunk_rows(s, BACKWARD_ROWS) * plan->dg_row, sizeof(REAL));
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

/* One step of a thread's rows and units: from dL/dh_t to dg and dL/dh_{t-1}. */
static void FN(step_back)(const FN(backward_plan) *plan, const gc_chunk *chunk, ptrdiff_t i, gc_watch *watch)
{
    const gc_recurrent *s = plan->s;
    const ptrdiff_t H = s->H, G = plan->cell->G, K = plan->cell->K, u0 = chunk->u0;
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
        plan->functions->step_back(&p);
    }
    if (chunk->by_units && gc_wait(watch)) return; /* dg, dc_total and the bypass are complete */
    if (s->dc_norm && dc_total) {
        ptrdiff_t from = 0, to = rows;
        if (chunk->by_units) gc_share(rows, watch->team, watch->thread, &from, &to);
        for (ptrdiff_t b = from; b < to; b++) s->dc_norm[row0 + b] = FN(l2_norm)(dc_total + b * H, H);
    }
    FN(gemm_job) dh_before = {.M = rows, .N = H, .K = G * H, .j0 = u0, .j1 = chunk->u1, .a = dg + (K - G) * H,
                              .a_row = plan->dg_row, .b = plan->w_hh, .c = dh, .c_row = H, .start = bypass, .start_row = H,
                              .back = (int)(i % 2)};
    if (i > 0) { /* what the step that is next reads of the tape is fetched meanwhile */
        const REAL *next = gates + (s->offsets[step_at(s, i - 1)] + first) * plan->gates_row;
        dh_before.ahead = (gc_lines){(uintptr_t)next, (uintptr_t)(next + rows * plan->gates_row)};
    }
    FN(gemm)(&dh_before, watch);
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
    REAL *sums = plan->narrow + watch->thread * plan->narrow_size, *x_1 = sums + (F + 1) * GH, *dw = s->dw_ih, *db = s->db_ih;
    const REAL *x = (const REAL *)s->x + chunk->row0 * F;
    ptrdiff_t m0, m1;
    gc_share_tiles(GH, V, watch->team, watch->thread, &m0, &m1);
    for (ptrdiff_t k = 0; k < rows; k++) {
        for (ptrdiff_t f = 0; f < F; f++) x_1[k * (F + 1) + f] = x[k * F + f];
        x_1[k * (F + 1) + F] = 1;
    }
    memset(sums, 0, (size_t)((F + 1) * GH) * sizeof(REAL));
    const FN(gemm_tn_job) job = {.m1 = F + 1, .N = m1 - m0, .K = rows, .a = x_1, .a_row = F + 1, .b = plan->dg + m0,
                                 .b_row = plan->dg_row, .c = sums + m0, .c_row = GH, .work = work};
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
        if (narrow) {
            FN(narrow_weight_part)(plan, &chunk, first_row, work, &watch);
        } else {
            const FN(gemm_tn_job) dw_ih = {.N = F, .K = rows, .a = plan->dg, .a_row = plan->dg_row,
                                           .b = (const REAL *)s->x + chunk.row0 * F, .b_row = F, .c = s->dw_ih, .c_row = F,
                                           .sums = s->db_ih, .work = work};
            FN(weight_part)(GH, first_row, &dw_ih, &watch);
        }
        const FN(gemm_tn_job) dw_hh = {.N = H, .K = rows, .a = plan->dg + (plan->cell->K - plan->cell->G) * H,
                                       .a_row = plan->dg_row, .b = (const REAL *)s->h_in + chunk.row0 * plan->h_row,
                                       .b_row = plan->h_row, .c = s->dw_hh, .c_row = H, .sums = s->db_hh, .work = work};
        FN(weight_part)(GH, 0, &dw_hh, &watch);
        if (s->dx) {
            ptrdiff_t first, end;
            gc_share_tiles(rows, MR, team, thread, &first, &end);
            REAL *to = (REAL *)s->dx + (chunk.row0 + first) * F;
            const FN(gemm_job) dx = {.M = end - first, .N = F, .K = GH, .j1 = F, .a = plan->dg + first * plan->dg_row,
                                     .a_row = plan->dg_row, .b = plan->w_ih, .c = to, .c_row = F,
                                     .start = s->dx_adds ? to : NULL, .start_row = F};
            if (narrow)
                FN(narrow_dx)(&dx);
            else
                FN(gemm)(&dx, &watch);
        }
        if (gc_wait(&watch)) return;
    }
}
