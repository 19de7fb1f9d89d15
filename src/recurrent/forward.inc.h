/* The forward pass. A step goes panel by panel: a panel is as many units as fill the columns of a few tiles, and its
 * pre-activations are turned into gates and state while they are in cache. */
#ifndef REAL
#error "forward.inc.h needs gemm/, chunk.h and cell.inc.h"
#endif

typedef struct {
    const gc_recurrent *s;
    const gc_cell *cell;
    const FN(cell) *functions;
    ptrdiff_t panel;   /* units of a panel */
    ptrdiff_t pre_row; /* its pre-activations: [unit/V][K][V] */
    ptrdiff_t part;    /* columns of a panel's parts, each of which is one product */
    ptrdiff_t gates_row, h_row;
    REAL *w_ih, *w_hh; /* packed: for each panel and part [F or H][column]; a panel's columns are [unit/V][G][V] */
    REAL *bias;        /* [H'/V][K][V] */
    REAL *start;       /* what the input's products start from: the bias, or zeros where it comes after layer norm */
    REAL *pre;         /* pre-activations, pre_row apart: of a chunk for each panel, or of a step's panel for each thread */
    ptrdiff_t panel_pre; /* from one panel to the next in pre */
    REAL *h_in;        /* without a tape (2, B, h_row): the states that enter even and odd steps */
    int whole_chunk, stream;
    /* with layer norm, where a row of pre is [H'/V][K][V] */
    const FN(cell_norm) *norm;
    ptrdiff_t norm_row;
    REAL *gain;           /* [H'/V][2G][V] */
    REAL *recurrent;      /* (B, pre_row), a step's products with h */
    REAL *mixed;          /* for each thread (B, panel * K): a panel's pre-activations */
    FN(moments) *moments; /* for each thread (B, 2) */
    /* with zoneout */
    REAL *k;    /* for each thread (zoneout_units,) */
    REAL *c_in; /* (B, h_row) without a tape, for a cell with c */
} FN(forward_plan);

static size_t FN(plan_forward)(FN(forward_plan) *plan, const gc_recurrent *s)
{
    gc_arena arena = {s->work, 0};
    const gc_cell *cell = &gc_cells[s->cell];
    const ptrdiff_t padded = (s->H + V - 1) / V * V, G = cell->G, K = cell->K;
    *plan = (FN(forward_plan)){.s = s, .cell = cell};
    plan->functions = FN(cells)[s->cell];
    /* two panels of the product wide, where the input's products and the recurrent ones have the same columns */
    plan->panel = G == K ? gc_max(V, 2 * NR / G / V * V) : V;
    plan->norm = s->norm.ih ? &FN(cell_norms)[s->cell] : NULL;
    plan->norm_row = plan->norm ? FN(norm_row)(cell, s->H) : 0;
    plan->pre_row = plan->norm ? gc_row(K * padded, sizeof(REAL)) : plan->panel * K;
    plan->panel_pre = plan->panel * K * (plan->norm ? 1 : chunk_rows(s, FORWARD_ROWS));
    plan->part = G * plan->panel == 3 * V ? 3 * V : NR;
    plan->gates_row = gc_row(K * padded, sizeof(REAL));
    plan->h_row = gc_row(padded, sizeof(REAL));
    plan->whole_chunk = plan->norm || s->B <= MR || s->F * G * s->H * (ptrdiff_t)sizeof(REAL) > TOGETHER_BYTES;
    plan->stream = (double)s->offsets[s->T] * (double)(plan->gates_row + plan->norm_row) * sizeof(REAL) > STREAM_BYTES &&
                   ((uintptr_t)s->gates | (uintptr_t)s->c_in | (uintptr_t)s->norm.kept) % 64 == 0;
    plan->w_ih = gc_take(&arena, s->F * G * padded, sizeof(REAL));
    plan->w_hh = gc_take(&arena, s->H * G * padded, sizeof(REAL));
    plan->bias = gc_take(&arena, K * padded, sizeof(REAL));
    const ptrdiff_t panels = plan->norm ? 1 : (s->H + plan->panel - 1) / plan->panel, threads = recurrent_threads(s);
    plan->pre = gc_take(&arena, (plan->whole_chunk ? panels * chunk_rows(s, FORWARD_ROWS) : threads * s->B) * plan->pre_row,
                        sizeof(REAL));
    plan->h_in = s->gates ? NULL : gc_take(&arena, 2 * s->B * plan->h_row, sizeof(REAL));
    plan->start = plan->norm ? gc_take(&arena, K * padded, sizeof(REAL)) : plan->bias;
    if (plan->norm) {
        plan->gain = gc_take(&arena, 2 * G * padded, sizeof(REAL));
        plan->recurrent = gc_take(&arena, s->B * plan->pre_row, sizeof(REAL));
        plan->mixed = gc_take(&arena, threads * s->B * plan->panel * K, sizeof(REAL));
        plan->moments = gc_take(&arena, threads * s->B * 2, sizeof(FN(moments)));
    }
    plan->k = s->zoneout.p > 0 ? gc_take(&arena, threads * FN(zoneout_units)(s), sizeof(REAL)) : NULL;
    plan->c_in = s->zoneout.p > 0 && !s->gates && cell->has_c ? gc_take(&arena, s->B * plan->h_row, sizeof(REAL)) : NULL;
    return arena.used;
}

/* Pack this thread's share of a (G*H, K) matrix: for V units at a time, their rows of all gates, of which the first is
 * `first_gate`. */
static void FN(pack_gates)(const FN(forward_plan) *plan, ptrdiff_t K, const REAL *w, ptrdiff_t first_gate, REAL *packed,
                           gc_watch *watch)
{
    const ptrdiff_t H = plan->s->H, G = plan->cell->G, panels = (H + plan->panel - 1) / plan->panel;
    const int thread = watch->thread, n_threads = gc_team_size(watch->team);
    for (ptrdiff_t p = panels * thread / n_threads; p < panels * (thread + 1) / n_threads; p++) {
        if (gc_stop_after(watch, (double)K * (double)(MOVED * G * plan->panel))) return;
        ptrdiff_t u0 = p * plan->panel, units = gc_min(plan->panel, H - u0), columns = G * ((units + V - 1) / V * V);
        for (ptrdiff_t k = 0; k < G; k++) {
            const REAL *gate = w + (gate_of(k, first_gate, G) * H + u0) * K;
            for (ptrdiff_t j = 0; j < units; j += V) {
                const ptrdiff_t column = j * G + k * V, part = column / plan->part * plan->part;
                FN(transpose)(K, gc_min(V, units - j), gate + j * K, K, packed + (u0 * G + part) * K + column - part,
                              gc_min(plan->part, columns - part));
            }
        }
    }
}

static void FN(pack_forward)(const FN(forward_plan) *plan, gc_watch *watch)
{
    const gc_recurrent *s = plan->s;
    const REAL *b_ih = s->b_ih, *b_hh = s->b_hh;
    const ptrdiff_t H = s->H, G = plan->cell->G, K = plan->cell->K, first_gate = plan->cell->first_gate;
    FN(pack_gates)(plan, s->F, s->w_ih, first_gate, plan->w_ih, watch);
    FN(pack_gates)(plan, H, s->w_hh, 0, plan->w_hh, watch);
    if (watch->thread) return;
    const size_t bias_size = (size_t)(K * ((H + V - 1) / V * V)) * sizeof(REAL);
    memset(plan->start, 0, bias_size);
    if (plan->norm) {
        memset(plan->bias, 0, bias_size);
        FN(pack_gains)(s, plan->gain);
    }
    if (!b_ih) return;
    for (ptrdiff_t k = 0; k < G; k++) {
        const REAL *ih = b_ih + gate_of(k, first_gate, G) * H, *hh = b_hh + k * H;
        for (ptrdiff_t u = 0; u < H; u++) {
            REAL *bias = plan->bias + u / V * K * V + u % V;
            bias[k * V] += ih[u];
            bias[(K - G + k) * V] += hh[u];
        }
    }
}

/* `rows` rows of the pre-activations of the panel of unit u; the panel of unit `next` comes after it. */
typedef struct {
    ptrdiff_t rows, u, next;
    REAL *pre;
} FN(panel_rows);

/* A product for a panel. */
typedef struct {
    ptrdiff_t K;
    const REAL *a; /* (rows, K), a_row apart */
    ptrdiff_t a_row;
    const REAL *packed; /* W */
    const REAL *start;  /* as gemm's */
    ptrdiff_t start_row;
    REAL *to; /* pre_row apart */
} FN(panel_operands);

/* to = start + A W. Meanwhile the lines `ahead`, which go forward, are fetched. Nothing if it is to stop. */
INLINE void FN(panel_product)(const FN(forward_plan) *plan, const FN(panel_rows) *panel, const FN(panel_operands) *of,
                              gc_lines *ahead, gc_watch *watch)
{
    const ptrdiff_t K = of->K, G = plan->cell->G, H = plan->s->H;
    const ptrdiff_t width = G * ((gc_min(plan->panel, H - panel->u) + V - 1) / V * V);
    if (gc_stop_after(watch, (double)(panel->rows * width) * (double)K)) return;
    const ptrdiff_t most = width == 2 * NR ? FN(columns_at_once)(panel->rows, K) : plan->part;
    for (ptrdiff_t part = 0; part < width; part += most) {
        const ptrdiff_t n = gc_min(most, width - part);
        const REAL *b = of->packed + (panel->u * G + part) * K;
        const REAL *next = part + n < width ? b + n * K : of->packed + panel->next * G * K;
        FN(product) p = {.K = K, .a = of->a, .a_row = of->a_row, .a_column = 1, .b = b, .b_row = gc_min(plan->part, n),
                         .b_panel = NR * K, .c = of->to + part, .c_row = plan->pre_row, .start = of->start + part,
                         .start_row = of->start_row, .ahead = {ahead->line, ahead->end}, .ahead_k = 64, .ahead_tile = K * 64,
                         .next = FN(next_panel)(next, K, G * H)};
        FN(panel)(panel->rows, n, &p);
        ahead->line = p.ahead.line;
    }
}

/* The input's part of the pre-activations, from the bias. */
static void FN(input_part)(const FN(forward_plan) *plan, const FN(panel_rows) *panel, const REAL *x, gc_watch *watch)
{
    const ptrdiff_t G = plan->cell->G, K = plan->cell->K, F = plan->s->F;
    const REAL *start = plan->start + panel->u * K;
    const FN(panel_operands) of = {.K = F, .a = x, .a_row = F, .packed = plan->w_ih, .start = start, .to = panel->pre};
    gc_lines none = {0, 0};
    FN(panel_product)(plan, panel, &of, &none, watch);
    for (ptrdiff_t k = G; k < K; k++) /* blocks of the recurrent products alone */
        for (ptrdiff_t b = 0; b < panel->rows; b++)
            FN(v_store)(panel->pre + b * plan->pre_row + k * V, FN(v_load)(start + k * V));
}

/* They get the recurrent part, which with layer norm stays apart. */
static void FN(recurrent_part)(const FN(forward_plan) *plan, const FN(panel_rows) *panel, const REAL *h_in, gc_lines *ahead,
                               gc_watch *watch)
{
    REAL *to = panel->pre + (plan->cell->K - plan->cell->G) * V;
    const FN(panel_operands) of = {.K = plan->s->H, .a = h_in, .a_row = plan->h_row, .packed = plan->w_hh,
                                   .start = plan->norm ? plan->start : to, .start_row = plan->norm ? 0 : plan->pre_row,
                                   .to = to};
    FN(panel_product)(plan, panel, &of, ahead, watch);
}

/* The rows of step t that a thread has: n sequences from `first` on. Panels differ in their units and `pre` alone. */
INLINE void FN(begin_step)(const FN(forward_plan) *plan, FN(cell_rows) *rows, ptrdiff_t t, ptrdiff_t first, ptrdiff_t n)
{
    const gc_recurrent *s = plan->s;
    const ptrdiff_t H = s->H, row = s->offsets[t] + first;
    REAL *gates = s->gates, *h = s->h, *c = s->c, *c_in = s->c_in, *y = s->y;
    rows->n = n;
    rows->y_at = s->y_at ? s->y_at + row : NULL;
    rows->first.gates = gates ? gates + row * plan->gates_row : NULL;
    rows->first.c_in = c_in ? c_in + row * plan->h_row : NULL;
    rows->first.h = h + first * H;
    rows->first.c = c ? c + first * H : NULL;
    rows->first.y = y + (s->y_at && n ? s->y_at[row] : row) * s->ld_y;
}

/* Gates, state and output of a panel from its pre-activations. */
INLINE void FN(panel_gates)(const FN(forward_plan) *plan, FN(cell_rows) *rows, ptrdiff_t u, const REAL *pre)
{
    rows->first.u0 = u;
    rows->first.u1 = gc_min(u + plan->panel, rows->first.H);
    rows->first.pre = pre;
    if (plan->norm && plan->cell->has_c)
        plan->functions->step_to_c(rows);
    else
        plan->functions->step(rows);
}

/* With layer norm, what follows a step's products: their sums over each row, then gates and state, then with c the output. */
static void FN(normed_gates)(const FN(forward_plan) *plan, FN(cell_rows) *rows, const gc_chunk *chunk, ptrdiff_t row,
                             gc_watch *watch)
{
    const gc_recurrent *s = plan->s;
    const gc_cell *cell = plan->cell;
    const ptrdiff_t H = s->H, n = rows->n, scales_at = FN(norm_scales_at)(cell, H), mixed_row = plan->panel * cell->K;
    const REAL *a = plan->pre + (row - chunk->row0) * plan->pre_row, *u = plan->recurrent + chunk->first * plan->pre_row;
    FN(moments) *moments = plan->moments + watch->thread * s->B * 2;
    REAL *norm = s->norm.kept ? (REAL *)s->norm.kept + row * plan->norm_row : NULL;
    plan->norm->moments(H, n, a, u, plan->pre_row, moments);
    FN(mix_job) mix = {.n = n, .a = a, .u = u, .sums_row = plan->pre_row, .moments = moments, .gain = plan->gain,
                       .bias = plan->bias, .to = plan->mixed + watch->thread * s->B * mixed_row, .to_row = mixed_row,
                       .norm = norm, .norm_row = plan->norm_row, .stream = plan->stream};
    for (ptrdiff_t b = 0; norm && !chunk->u0 && b < n; b++)
        for (int i = 0; i < 2; i++) norm[b * plan->norm_row + scales_at + i] = moments[2 * b + i].scale;
    for (ptrdiff_t panel = chunk->u0; panel < chunk->u1; panel += plan->panel) {
        mix.u0 = panel, mix.u1 = gc_min(panel + plan->panel, chunk->u1);
        plan->norm->mix(&mix);
        FN(panel_gates)(plan, rows, panel, mix.to);
    }
    if (!cell->has_c || (chunk->by_units && gc_wait(watch))) return; /* all of c_t is known */
    FN(cell_row) its = rows->first;
    its.u0 = chunk->u0, its.u1 = chunk->u1;
    for (ptrdiff_t b = 0; b < n; b++, FN(to_next_row)(rows, &its, b)) {
        REAL *kept = norm ? norm + b * plan->norm_row : NULL;
        const FN(moments) of_c = FN(moments_of)(1, H, its.c, V);
        const FN(c_norm) c = {.gain = s->norm.c, .bias = s->norm.c_bias, .mean = of_c.mean, .scale = of_c.scale,
                              .c = kept ? kept + 2 * cell->G * V : NULL, .group = FN(norm_group)(cell)};
        if (kept && !chunk->u0) kept[scales_at + 2] = of_c.scale;
        plan->functions->step_from_c(&its, &c);
    }
    if (plan->k && chunk->by_units) gc_wait(watch); /* before zoneout changes c_t */
}

/* (z1), (z2): h_in and c_in are the state before the step. */
static void FN(zone_out)(const FN(forward_plan) *plan, const FN(cell_rows) *rows, const gc_chunk *chunk, ptrdiff_t row,
                         const REAL *h_in, const REAL *c_in, int thread)
{
    REAL *k = plan->k + thread * FN(zoneout_units)(plan->s);
    FN(cell_row) its = rows->first;
    for (ptrdiff_t b = 0; b < rows->n; b++, FN(to_next_row)(rows, &its, b)) {
        FN(zoneout_row)(plan->s, row + b, 0, chunk->u0, chunk->u1, k);
        FN(zone)(chunk->u0, chunk->u1, k, h_in + b * plan->h_row, its.h);
        memcpy(its.y + chunk->u0, its.h + chunk->u0, (size_t)(chunk->u1 - chunk->u0) * sizeof(REAL));
        if (!its.c) continue;
        FN(zoneout_row)(plan->s, row + b, 1, chunk->u0, chunk->u1, k);
        FN(zone)(chunk->u0, chunk->u1, k, c_in + b * plan->h_row, its.c);
    }
}

static void FN(forward_body)(void *arg, gc_team *team, int thread)
{
    const FN(forward_plan) *plan = arg;
    const gc_recurrent *s = plan->s;
    const ptrdiff_t H = s->H, h_row = plan->h_row, panel = plan->panel;
    const ptrdiff_t panel_pre = plan->panel_pre;
    const REAL *x = s->x, *h = s->h, *c = s->c, *mask = s->mask;
    FN(cell_rows) own = {.gates_row = plan->gates_row, .state_row = h_row,
                         .pre_row = plan->norm ? panel * plan->cell->K : plan->pre_row, .y_row = s->ld_y,
                         .first = {.H = H, .stream = plan->stream}};

    gc_watch watch = {team, thread, 0, 0};
    FN(pack_forward)(plan, &watch);
    for (ptrdiff_t i0 = 0, last = -1; i0 < s->T && !watch.stop;) {
        gc_chunk chunk = chunk_of(s, 0, i0, FORWARD_ROWS, panel, team, thread);
        gc_chunk input = chunk;
        const int all_help = plan->whole_chunk && chunk.alive < gc_team_size(team); /* also those without a sequence */
        if (all_help) share_units(s, &input, panel, team, thread);
        /* no waiting from one chunk to the next of the same shape: each thread keeps to its own sequences and rows */
        const int alone = !all_help && !(plan->norm && chunk.by_units); /* nobody reads what others write into pre */
        const ptrdiff_t same = alone && chunk.rows == chunk.alive * (chunk.i1 - chunk.i0) ? chunk.alive : -1;
        if ((same < 0 || same != last) && gc_wait(&watch)) break;
        last = same;

        for (ptrdiff_t u = input.u0; plan->whole_chunk && u < input.u1; u += panel) {
            const ptrdiff_t next = gc_min(u + panel, (s->H - 1) / panel * panel);
            FN(panel_rows) whole = {input.rows, u, next, plan->pre + u / panel * panel_pre};
            if (input.end - input.first == input.alive) /* all its rows, which follow each other */
                FN(input_part)(plan, &whole, x + input.row0 * s->F, &watch);
            else
                for (ptrdiff_t i = input.i0; i < input.i1; i++) {
                    ptrdiff_t t = step_at(s, i), row = s->offsets[t] + input.first;
                    FN(panel_rows) own = {own_rows(s, &input, t), u, next, whole.pre + (row - input.row0) * plan->pre_row};
                    FN(input_part)(plan, &own, x + row * s->F, &watch);
                }
        }
        if (all_help && gc_wait(&watch)) break;
        for (ptrdiff_t i = chunk.i0; i < chunk.i1 && !watch.stop; i++) {
            ptrdiff_t t = step_at(s, i), rows = own_rows(s, &chunk, t), row = s->offsets[t] + chunk.first;
            REAL *h_in = s->h_in ? (REAL *)s->h_in + row * h_row : plan->h_in + (i % 2 * s->B + chunk.first) * h_row;
            for (ptrdiff_t b = 0; b < rows; b++)
                for (ptrdiff_t u = chunk.u0; u < chunk.u1; u += V)
                    FN(v_store)(h_in + b * h_row + u, FN(v_get)(h + (chunk.first + b) * H + u, chunk.u1 - u));
            REAL *h_met = h_in;
            if (mask) {
                h_met = (REAL *)s->h_met + row * h_row;
                for (ptrdiff_t b = 0; b < rows; b++)
                    for (ptrdiff_t u = chunk.u0; u < chunk.u1; u += V) {
                        const VEC factors = FN(v_get)(mask + (chunk.first + b) * H + u, chunk.u1 - u);
                        FN(v_store)(h_met + b * h_row + u, FN(v_mul)(factors, FN(v_load)(h_in + b * h_row + u)));
                    }
            }
            REAL *c_in = s->c_in ? (REAL *)s->c_in + row * h_row : plan->c_in ? plan->c_in + chunk.first * h_row : NULL;
            for (ptrdiff_t b = 0; plan->c_in && b < rows; b++)
                for (ptrdiff_t u = chunk.u0; u < chunk.u1; u++) c_in[b * h_row + u] = c[(chunk.first + b) * H + u];
            if (chunk.by_units && gc_wait(&watch)) break; /* h_{t-1} is complete */
            /* with few rows one panel's activations do not hide their latency: those of all panels follow each other */
            const int apart = plan->norm || (plan->whole_chunk && rows <= MR);
            FN(begin_step)(plan, &own, t, chunk.first, rows);
            REAL *pre = plan->pre + (plan->whole_chunk ? row - chunk.row0 : thread * s->B) * plan->pre_row;
            /* where the next step's gates will be written, if they do not pass by the caches */
            gc_lines ahead = {0, 0};
            if (s->gates && !plan->stream && !chunk.by_units && i + 1 < s->T) {
                const REAL *gates = s->gates, *next = gates + (s->offsets[step_at(s, i + 1)] + chunk.first) * plan->gates_row;
                ahead = (gc_lines){(uintptr_t)next, (uintptr_t)next + (uintptr_t)(rows * plan->gates_row) * sizeof(REAL)};
            }
            /* to and fro, so that a step begins with what L2 has kept of W_hh from the one before */
            const ptrdiff_t panels = (chunk.u1 - chunk.u0 + panel - 1) / panel, way = i % 2 ? -panel : panel;
            for (ptrdiff_t n = 0, u = chunk.u0 + (i % 2 ? (panels - 1) * panel : 0); n < panels; n++, u += way) {
                const FN(panel_rows) its = {rows, u, n < panels - 1 ? u + way : u,
                                            plan->norm ? plan->recurrent + chunk.first * plan->pre_row + u * plan->cell->K
                                                       : pre + (plan->whole_chunk ? u / panel * panel_pre : 0)};
                if (!plan->whole_chunk) FN(input_part)(plan, &its, x + row * s->F, &watch);
                FN(recurrent_part)(plan, &its, h_met, &ahead, &watch);
                if (!apart) FN(panel_gates)(plan, &own, u, its.pre);
            }
            if (plan->norm) {
                if (chunk.by_units && gc_wait(&watch)) break; /* all products are known */
                FN(normed_gates)(plan, &own, &chunk, row, &watch);
                if (watch.stop) break;
            } else {
                for (ptrdiff_t u = chunk.u0; apart && u < chunk.u1; u += panel)
                    FN(panel_gates)(plan, &own, u, pre + u / panel * panel_pre);
            }
            if (plan->k) FN(zone_out)(plan, &own, &chunk, row, h_in, c_in, thread);
        }
        i0 = chunk.i1;
    }
    STREAM_FENCE();
}
