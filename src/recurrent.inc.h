/* RNN, LSTM and GRU: a whole sequence forward, and back through time, in one parallel region each.
 *
 * The team shares the work of a step by sequences: each thread takes its own through all steps and waits for nobody. Where
 * there are too few sequences it shares the units instead, and waits for all of h_t once a step (twice backward).
 *
 * The steps are walked in chunks. Forward, the input's part of the gates is one product over a chunk (or, where W_ih is
 * small, made step by step); each step adds the recurrent part, panel by panel, and turns each panel into gates and state
 * while it is in cache. Backward, a chunk's dL/d(pre-activation) goes into the weights' gradients and dL/dx before the next
 * chunk overwrites it.
 *
 * What a row of the tape or of the scratch holds, H' being H rounded up to whole vectors:
 *   gates  [H'/V][K][V]    K blocks for every V units; RNN: h; LSTM: i, f, g, o; GRU: n, r, z, q, in this order so that both
 *                          the input's part (n, r, z) and the recurrent part (r, z, q) of a panel are neighbours
 *   dg     [K][H]          dL/d(pre-activation), gate by gate in the same order
 */
#ifndef REAL
#error "recurrent.inc.h needs real.inc.h, simd.inc.h, vmath.inc.h and gemm.inc.h"
#endif

#ifndef GC_RECURRENT_SIZES
#define GC_RECURRENT_SIZES
enum {
    FORWARD_ROWS = 128,          /* rows of a chunk forward: as often each panel of W_ih is used before the next */
    BACKWARD_ROWS = 512,         /* backward: the more, the fewer passes over the weights' gradients */
    TOGETHER_BYTES = 256 * 1024, /* size of W_ih up to which each step reads it again beside W_hh */
    NARROW = 4,                  /* input features up to which a vector of them would be mostly empty */
    STREAM_BYTES = 16 << 20,     /* size of the gates beyond which they are not worth keeping in the caches */
    FEW_ROWS = 4,                /* sequences for each thread below which it costs less to share the units, if ... */
    UNIT_WORK = 15000,           /* ... a step has as many multiply-adds for each thread: they outweigh waiting */
    LARGE_W = 1000 * 1000,       /* elements of W_hh, far more than L2 holds: all threads would read it from L3, ... */
    SOME_ROWS = 17               /* ... so that sharing the units pays up to here */
};

INLINE ptrdiff_t cell_gates(int cell) { return cell == GC_LSTM ? 4 : cell == GC_GRU ? 3 : 1; }
INLINE ptrdiff_t cell_kept(int cell) { return cell == GC_LSTM || cell == GC_GRU ? 4 : 1; }
INLINE ptrdiff_t n_gates(const gc_recurrent *s) { return cell_gates(s->cell); }
INLINE ptrdiff_t n_kept(const gc_recurrent *s) { return cell_kept(s->cell); }
INLINE ptrdiff_t n_alive(const gc_recurrent *s, ptrdiff_t t) { return s->offsets[t + 1] - s->offsets[t]; }

/* The step that is walked as number i. */
INLINE ptrdiff_t step_at(const gc_recurrent *s, ptrdiff_t i) { return s->reverse ? s->T - 1 - i : i; }

/* Memory that will be needed, [line, end). */
typedef struct {
    uintptr_t line, end;
} gc_lines;

/* One thread's part of a chunk of steps, [i0, i1) in the order of the walk. */
typedef struct {
    ptrdiff_t i0, i1;
    ptrdiff_t alive, first, end; /* sequences that live in the chunk; the thread's own */
    ptrdiff_t u0, u1;            /* the thread's own units */
    ptrdiff_t row0, rows;        /* the chunk's first row, and how many it has */
    int by_units;
} gc_chunk;

/* The thread works for all sequences, on its share of the units, in multiples of `panel`. */
INLINE void share_units(const gc_recurrent *s, gc_chunk *chunk, ptrdiff_t panel, gc_team *team, int thread)
{
    share_tiles(s->H, panel, team, thread, &chunk->u0, &chunk->u1);
    chunk->first = 0;
    chunk->end = chunk->alive;
}

/* The chunk that begins (forward) or ends (backward) with step `at` and has about `most` rows, shared by sequences or by
 * units. Where it ends does not depend on the team, because the weights' gradients are summed chunk by chunk. */
INLINE gc_chunk chunk_of(const gc_recurrent *s, int backward, ptrdiff_t at, ptrdiff_t most, ptrdiff_t panel, gc_team *team,
                         int thread)
{
    gc_chunk chunk = {at, at, 0, 0, 0, 0, s->H, 0, 0, 0};
    const int size = gc_team_size(team);
    while (chunk.rows < most && (backward ? chunk.i0 > 0 : chunk.i1 < s->T))
        chunk.rows += n_alive(s, step_at(s, backward ? --chunk.i0 : chunk.i1++));
    ptrdiff_t t = s->reverse ? step_at(s, chunk.i1 - 1) : chunk.i0; /* the earliest step, where most are alive */
    chunk.alive = n_alive(s, t);
    chunk.row0 = s->offsets[t];
    const double w = (double)(n_gates(s) * s->H) * (double)s->H;
    chunk.by_units = size > 1 && chunk.alive < (ptrdiff_t)size * (w > LARGE_W ? SOME_ROWS : FEW_ROWS) &&
                     (s->H + panel - 1) / panel >= size && (double)chunk.alive * w > (double)UNIT_WORK * size;
    if (chunk.by_units)
        share_units(s, &chunk, panel, team, thread);
    else
        share(chunk.alive, team, thread, &chunk.first, &chunk.end);
    return chunk;
}

/* How many of the thread's sequences live at step t. */
INLINE ptrdiff_t own_rows(const gc_recurrent *s, const gc_chunk *chunk, ptrdiff_t t)
{
    return gc_max(0, gc_min(chunk->end, n_alive(s, t)) - chunk->first);
}

/* Where there are fewer sequences than threads and not enough units to share either, only the input's part and the weights'
 * gradients are shared out, and every chunk waits for them: that wants more work to pay. */
INLINE int recurrent_threads(const gc_recurrent *s)
{
    const double GH = (double)(n_gates(s) * s->H), rows = (double)s->offsets[s->T];
    const int shared = s->B >= s->threads || (double)s->B * GH * (double)s->H > (double)UNIT_WORK * s->threads;
    const double work = shared ? rows * GH * (double)(s->F + s->H) : rows * GH * (double)s->F / 16;
    return work < SERIAL_WORK ? 1 : s->threads;
}

/* Rows of scratch that hold any chunk. */
INLINE ptrdiff_t chunk_rows(const gc_recurrent *s, ptrdiff_t most) { return gc_min(most - 1 + s->B, s->offsets[s->T]); }

/* Which of the weights' gates stand in gates and dg, in their order. */
INLINE const int *gate_order(const gc_recurrent *s, int of_input)
{
    static const int same[] = {0, 1, 2, 3}, n_first[] = {2, 0, 1};
    return s->cell == GC_GRU && of_input ? n_first : same;
}
#endif

/* ==== forward ========================================================================================================== */

#define PANEL (4 * V) /* columns of a panel of pre-activations: a vector of each of four gates */

typedef struct {
    const gc_recurrent *s;
    ptrdiff_t G, K, panel; /* units of a panel: V, or PANEL for the RNN, so that a panel has at most PANEL columns */
    ptrdiff_t part;        /* columns of a panel's parts, each of which is one product */
    ptrdiff_t gates_row, h_row;
    REAL *w_ih, *w_hh;     /* packed: for each panel and part [F or H][column]; a panel's columns are [gate][unit] */
    REAL *bias;            /* [H'/V][K][V]: what the pre-activations start from */
    REAL *pre;             /* pre-activations, rows of PANEL: of a chunk for each panel, or of a step's panel for each thread */
    REAL *h_in;            /* without a tape (2, B, h_row): the states that enter even and odd steps */
    int whole_chunk, stream;
} FN(forward_plan);

static size_t FN(plan_forward)(FN(forward_plan) *plan, const gc_recurrent *s)
{
    gc_arena arena = {s->work, 0};
    const ptrdiff_t padded = (s->H + V - 1) / V * V;
    plan->s = s;
    plan->G = n_gates(s), plan->K = n_kept(s);
    plan->panel = plan->K == 1 ? PANEL : V;
    plan->part = plan->G == 3 ? 3 * V : NR;
    plan->gates_row = gc_row(plan->K * padded, sizeof(REAL));
    plan->h_row = gc_row(padded, sizeof(REAL));
    plan->whole_chunk = s->B <= MR || s->F * plan->G * s->H * (ptrdiff_t)sizeof(REAL) > TOGETHER_BYTES;
    plan->stream = (double)s->offsets[s->T] * (double)plan->gates_row * sizeof(REAL) > STREAM_BYTES &&
                   ((uintptr_t)s->gates | (uintptr_t)s->c_in) % 64 == 0;
    plan->w_ih = take(&arena, s->F * plan->G * padded, sizeof(REAL));
    plan->w_hh = take(&arena, s->H * plan->G * padded, sizeof(REAL));
    plan->bias = take(&arena, plan->K * padded, sizeof(REAL));
    plan->pre = take(&arena, (plan->whole_chunk ? (s->H + plan->panel - 1) / plan->panel * chunk_rows(s, FORWARD_ROWS)
                                                : recurrent_threads(s) * s->B) * PANEL, sizeof(REAL));
    plan->h_in = s->gates ? NULL : take(&arena, 2 * s->B * plan->h_row, sizeof(REAL));
    return arena.used;
}

/* Pack this thread's share of a (G*H, K) matrix: for V units at a time, their rows of all gates. */
static void FN(pack_gates)(const FN(forward_plan) *plan, ptrdiff_t K, const REAL *w, const int *order, REAL *packed, int thread,
                           int n_threads, gc_watch *watch)
{
    const ptrdiff_t H = plan->s->H, panels = (H + plan->panel - 1) / plan->panel;
    for (ptrdiff_t p = panels * thread / n_threads; p < panels * (thread + 1) / n_threads; p++) {
        if (stopped(watch, (double)K * (double)(MOVED * PANEL))) return;
        ptrdiff_t u0 = p * plan->panel, units = gc_min(plan->panel, H - u0), padded = (units + V - 1) / V * V;
        for (ptrdiff_t g = 0; g < plan->G; g++)
            for (ptrdiff_t j = 0; j < units; j += V) {
                const ptrdiff_t column = g * padded + j, part = column / plan->part * plan->part;
                FN(transpose)(K, gc_min(V, units - j), w + (order[g] * H + u0 + j) * K, K,
                              packed + (u0 * plan->G + part) * K + column - part,
                              gc_min(plan->part, plan->G * padded - part));
            }
    }
}

static void FN(pack_forward)(const FN(forward_plan) *plan, int thread, int n_threads, gc_watch *watch)
{
    const gc_recurrent *s = plan->s;
    const REAL *b_ih = s->b_ih, *b_hh = s->b_hh;
    const ptrdiff_t H = s->H, K = plan->K;
    FN(pack_gates)(plan, s->F, s->w_ih, gate_order(s, 1), plan->w_ih, thread, n_threads, watch);
    FN(pack_gates)(plan, H, s->w_hh, gate_order(s, 0), plan->w_hh, thread, n_threads, watch);
    if (thread) return;
    memset(plan->bias, 0, (size_t)(K * ((H + V - 1) / V * V)) * sizeof(REAL));
    if (!b_ih) return;
    for (ptrdiff_t u = 0; u < H; u++) {
        REAL *bias = plan->bias + u / V * K * V + u % V;
        if (s->cell == GC_GRU) {
            bias[0] = b_ih[2 * H + u];
            bias[V] = b_ih[u] + b_hh[u];
            bias[2 * V] = b_ih[H + u] + b_hh[H + u];
            bias[3 * V] = b_hh[2 * H + u];
        } else {
            for (ptrdiff_t g = 0; g < K; g++) bias[g * V] = b_ih[g * H + u] + b_hh[g * H + u];
        }
    }
}

/* One panel of one step: `rows` rows of the arrays, whose pointers stand at the panel's first unit; `units` are real. */
typedef struct {
    ptrdiff_t rows, units;
    const REAL *pre;         /* PANEL apart */
    REAL *h, *c;             /* H apart: state before the step, and after it */
    ptrdiff_t H;
    REAL *y, *gates, *c_in;  /* gates and c_in are NULL without a tape */
    const ptrdiff_t *y_at;   /* the rows of y, y_row apart; NULL for 0, 1, ... */
    ptrdiff_t y_row, gates_row, c_row;
    int stream;
} FN(panel_step);

/* Row b of y. */
INLINE REAL *FN(output)(const FN(panel_step) *p, ptrdiff_t b) { return p->y + (p->y_at ? p->y_at[b] : b) * p->y_row; }

/* To the tape: past the caches when it is too long for them. */
INLINE void FN(keep)(const FN(panel_step) *p, REAL *to, VEC value)
{
    if (p->stream)
        FN(v_stream)(to, value);
    else
        FN(v_store)(to, value);
}

/* (f1) h = act(g) */
static void FN(rnn_step)(const FN(panel_step) *p, int relu)
{
    for (ptrdiff_t b = 0; b < p->rows; b++) {
        REAL *y = FN(output)(p, b);
        for (ptrdiff_t j = 0; j < p->units; j += V) {
            VEC a = FN(v_load)(p->pre + b * PANEL + j), h = relu ? FN(v_max)(FN(v_zero)(), a) : FN(v_tanh)(a);
            if (p->gates) FN(keep)(p, p->gates + b * p->gates_row + j, h);
            FN(v_put)(p->h + b * p->H + j, h, p->units - j);
            FN(v_put)(y + j, h, p->units - j);
        }
    }
}

/* c_t from the gates and c_{t-1}; the backward pass recomputes it to the same bits */
INLINE VEC FN(lstm_cell)(VEC i, VEC f, VEC g, VEC c) { return FN(v_fma)(f, c, FN(v_mul)(i, g)); }

/* (f2) c = f c + i g;  h = o tanh(c) */
static void FN(lstm_step)(const FN(panel_step) *p)
{
    const ptrdiff_t n = p->units;
    for (ptrdiff_t b = 0; b < p->rows; b++) {
        const REAL *pre = p->pre + b * PANEL;
        VEC i = FN(v_sigmoid)(FN(v_load)(pre)), f = FN(v_sigmoid)(FN(v_load)(pre + V));
        VEC g = FN(v_tanh)(FN(v_load)(pre + 2 * V)), o = FN(v_sigmoid)(FN(v_load)(pre + 3 * V));
        VEC before = FN(v_get)(p->c + b * p->H, n), c = FN(lstm_cell)(i, f, g, before), h = FN(v_mul)(o, FN(v_tanh)(c));
        if (p->gates) {
            REAL *gates = p->gates + b * p->gates_row;
            FN(keep)(p, gates, i);
            FN(keep)(p, gates + V, f);
            FN(keep)(p, gates + 2 * V, g);
            FN(keep)(p, gates + 3 * V, o);
            FN(keep)(p, p->c_in + b * p->c_row, before);
        }
        FN(v_put)(p->c + b * p->H, c, n);
        FN(v_put)(p->h + b * p->H, h, n);
        FN(v_put)(FN(output)(p, b), h, n);
    }
}

/* (f3) n = tanh(W x + b_in + r q);  h = n + z (h - n) */
static void FN(gru_step)(const FN(panel_step) *p)
{
    for (ptrdiff_t b = 0; b < p->rows; b++) {
        const REAL *pre = p->pre + b * PANEL;
        VEC r = FN(v_sigmoid)(FN(v_load)(pre + V)), z = FN(v_sigmoid)(FN(v_load)(pre + 2 * V)), q = FN(v_load)(pre + 3 * V);
        VEC n = FN(v_tanh)(FN(v_fma)(r, q, FN(v_load)(pre)));
        VEC h = FN(v_fma)(z, FN(v_sub)(FN(v_get)(p->h + b * p->H, p->units), n), n);
        if (p->gates) {
            REAL *gates = p->gates + b * p->gates_row;
            FN(keep)(p, gates, n);
            FN(keep)(p, gates + V, r);
            FN(keep)(p, gates + 2 * V, z);
            FN(keep)(p, gates + 3 * V, q);
        }
        FN(v_put)(p->h + b * p->H, h, p->units);
        FN(v_put)(FN(output)(p, b), h, p->units);
    }
}

/* pre = start + A W for `rows` rows of A and the panel of unit u, whose columns in pre begin with `start`'s; the panel of
 * unit `next` comes after it. Meanwhile the lines `ahead`, which go forward, are fetched. Nothing if it is to stop. */
INLINE void FN(panel_product)(const FN(forward_plan) *plan, ptrdiff_t rows, ptrdiff_t u, ptrdiff_t next, ptrdiff_t K,
                              const REAL *a, ptrdiff_t a_row, const REAL *packed, const REAL *start, ptrdiff_t start_row,
                              REAL *pre, gc_lines *ahead, gc_watch *watch)
{
    if (stopped(watch, (double)(rows * PANEL) * (double)K)) return;
    const ptrdiff_t width = plan->G * ((gc_min(plan->panel, plan->s->H - u) + V - 1) / V * V);
    const ptrdiff_t most = width == PANEL && FN(columns_at_once)(rows, K) == PANEL ? PANEL : plan->part;
    for (ptrdiff_t part = 0; part < width; part += most) {
        const ptrdiff_t n = gc_min(most, width - part);
        const REAL *b = packed + (u * plan->G + part) * K, *then = part + n < width ? b + n * K : packed + next * plan->G * K;
        FN(product) p = {K, a, a_row, 1, b, gc_min(plan->part, n), NR * K, pre + part, PANEL, start + part,
                         start_row, ahead->line, ahead->end, 64, K * 64, FN(next_panel)(then, K, plan->G * plan->s->H), 0};
        FN(panel)(rows, n, &p);
        ahead->line = p.ahead;
    }
}

/* The pre-activations of `rows` rows and the panel of unit u: the input's part, from the bias. */
static void FN(input_part)(const FN(forward_plan) *plan, ptrdiff_t rows, ptrdiff_t u, ptrdiff_t next, const REAL *x, REAL *pre,
                           gc_watch *watch)
{
    const gc_recurrent *s = plan->s;
    const REAL *bias = plan->bias + u * plan->K;
    gc_lines none = {0, 0};
    FN(panel_product)(plan, rows, u, next, s->F, x, s->F, plan->w_ih, bias, 0, pre, &none, watch);
    if (s->cell == GC_GRU)
        for (ptrdiff_t b = 0; b < rows; b++) FN(v_store)(pre + b * PANEL + 3 * V, FN(v_load)(bias + 3 * V));
}

/* They get the recurrent part. */
static void FN(recurrent_part)(const FN(forward_plan) *plan, ptrdiff_t rows, ptrdiff_t u, ptrdiff_t next, const REAL *h_in,
                               REAL *pre, gc_lines *ahead, gc_watch *watch)
{
    REAL *to = pre + (plan->s->cell == GC_GRU ? V : 0);
    FN(panel_product)(plan, rows, u, next, plan->s->H, h_in, plan->h_row, plan->w_hh, to, PANEL, to, ahead, watch);
}

/* The panel of unit u from its pre-activations: `rows` sequences from `first` on, whose rows begin with `row`. */
static void FN(panel_gates)(const FN(forward_plan) *plan, ptrdiff_t rows, ptrdiff_t first, ptrdiff_t row, ptrdiff_t u,
                         const REAL *pre)
{
    const gc_recurrent *s = plan->s;
    const ptrdiff_t H = s->H;
    REAL *gates = s->gates, *c = s->c, *c_in = s->c_in;
    FN(panel_step) p = {.rows = rows, .units = gc_min(plan->panel, H - u), .pre = pre, .h = (REAL *)s->h + first * H + u,
                        .c = c ? c + first * H + u : NULL, .H = H, .y = (REAL *)s->y + (s->y_at ? 0 : row) * s->ld_y + u,
                        .gates = gates ? gates + row * plan->gates_row + u * plan->K : NULL,
                        .c_in = c_in ? c_in + row * plan->h_row + u : NULL, .y_at = s->y_at ? s->y_at + row : NULL,
                        .y_row = s->ld_y, .gates_row = plan->gates_row, .c_row = plan->h_row, .stream = plan->stream};
    if (s->cell == GC_LSTM)
        FN(lstm_step)(&p);
    else if (s->cell == GC_GRU)
        FN(gru_step)(&p);
    else
        FN(rnn_step)(&p, s->cell == GC_RNN_RELU);
}

static void FN(forward_body)(void *arg, gc_team *team, int thread)
{
    const FN(forward_plan) *plan = arg;
    const gc_recurrent *s = plan->s;
    const ptrdiff_t H = s->H, h_row = plan->h_row, panel = plan->panel;
    const ptrdiff_t panel_pre = chunk_rows(s, FORWARD_ROWS) * PANEL; /* from one panel's pre-activations to the next one's */
    const REAL *x = s->x, *h = s->h;

    gc_watch watch = {team, thread, 0, 0};
    FN(pack_forward)(plan, thread, gc_team_size(team), &watch);
    for (ptrdiff_t i0 = 0, last = -1; i0 < s->T && !watch.stop;) {
        gc_chunk chunk = chunk_of(s, 0, i0, FORWARD_ROWS, panel, team, thread);
        gc_chunk input = chunk;
        const int all_help = plan->whole_chunk && chunk.alive < gc_team_size(team); /* also those without a sequence */
        if (all_help) share_units(s, &input, panel, team, thread);
        /* no waiting from one chunk to the next of the same shape: each thread keeps to its own sequences and rows */
        const ptrdiff_t same = !all_help && chunk.rows == chunk.alive * (chunk.i1 - chunk.i0) ? chunk.alive : -1;
        if ((same < 0 || same != last) && barrier(&watch)) break;
        last = same;

        for (ptrdiff_t u = input.u0; plan->whole_chunk && u < input.u1; u += panel) {
            REAL *pre = plan->pre + u / panel * panel_pre;
            const ptrdiff_t next = gc_min(u + panel, (s->H - 1) / panel * panel);
            if (input.end - input.first == input.alive) /* all its rows, which follow each other */
                FN(input_part)(plan, input.rows, u, next, x + input.row0 * s->F, pre, &watch);
            else
                for (ptrdiff_t i = input.i0; i < input.i1; i++) {
                    ptrdiff_t t = step_at(s, i), row = s->offsets[t] + input.first;
                    FN(input_part)(plan, own_rows(s, &input, t), u, next, x + row * s->F, pre + (row - input.row0) * PANEL,
                                   &watch);
                }
        }
        if (all_help && barrier(&watch)) break;
        for (ptrdiff_t i = chunk.i0; i < chunk.i1 && !watch.stop; i++) {
            ptrdiff_t t = step_at(s, i), rows = own_rows(s, &chunk, t), row = s->offsets[t] + chunk.first;
            REAL *h_in = s->h_in ? (REAL *)s->h_in + row * h_row : plan->h_in + (i % 2 * s->B + chunk.first) * h_row;
            for (ptrdiff_t b = 0; b < rows; b++)
                for (ptrdiff_t u = chunk.u0; u < chunk.u1; u += V)
                    FN(v_store)(h_in + b * h_row + u, FN(v_get)(h + (chunk.first + b) * H + u, chunk.u1 - u));
            if (chunk.by_units && barrier(&watch)) break; /* h_{t-1} is complete */
            /* with few rows one panel's activations do not hide their latency: those of all panels follow each other */
            const int apart = plan->whole_chunk && rows <= MR;
            REAL *pre = plan->pre + (plan->whole_chunk ? row - chunk.row0 : thread * s->B) * PANEL;
            /* where the next step's gates will be written, if they do not pass by the caches */
            gc_lines ahead = {0, 0};
            if (s->gates && !plan->stream && !chunk.by_units && i + 1 < s->T) {
                const REAL *gates = s->gates, *next = gates + (s->offsets[step_at(s, i + 1)] + chunk.first) * plan->gates_row;
                ahead = (gc_lines){(uintptr_t)next, (uintptr_t)next + (uintptr_t)(rows * plan->gates_row) * sizeof(REAL)};
            }
            /* to and fro, so that a step begins with what L2 has kept of W_hh from the one before */
            const ptrdiff_t panels = (chunk.u1 - chunk.u0 + panel - 1) / panel, way = i % 2 ? -panel : panel;
            for (ptrdiff_t n = 0, u = chunk.u0 + (i % 2 ? (panels - 1) * panel : 0); n < panels; n++, u += way) {
                const ptrdiff_t next = n < panels - 1 ? u + way : u;
                REAL *panel_of_u = pre + (plan->whole_chunk ? u / panel * panel_pre : 0);
                if (!plan->whole_chunk) FN(input_part)(plan, rows, u, next, x + row * s->F, panel_of_u, &watch);
                FN(recurrent_part)(plan, rows, u, next, h_in, panel_of_u, &ahead, &watch);
                if (!apart) FN(panel_gates)(plan, rows, chunk.first, row, u, panel_of_u);
            }
            for (ptrdiff_t u = chunk.u0; apart && u < chunk.u1; u += panel)
                FN(panel_gates)(plan, rows, chunk.first, row, u, pre + u / panel * panel_pre);
        }
        i0 = chunk.i1;
    }
    STREAM_FENCE();
}

static int FN(recurrent_forward)(const gc_recurrent *s)
{
    FN(forward_plan) plan;
    FN(plan_forward)(&plan, s);
    return gc_parallel(recurrent_threads(s), 0, FN(forward_body), &plan);
}

/* ==== backward ========================================================================================================= */

typedef struct {
    const gc_recurrent *s;
    ptrdiff_t G, K;
    ptrdiff_t gates_row, h_row, dg_row;
    REAL *w_ih, *w_hh; /* packed the other way round, their rows in dg's order: (G*H, F), (G*H, H) */
    REAL *dg;          /* a chunk's dL/d(pre-activation); what the input's product sees is the first G*H of a row, what the
                          recurrent one sees the last G*H */
    REAL *carry;       /* (B, H) LSTM: the total dL/dc_t; GRU: the part of dL/dh_{t-1} that does not pass W_hh */
    REAL *products;    /* scratch of gemm_tn, a part for each thread */
    REAL *narrow;      /* with a narrow input, for each thread: (F+1, G*H) gradients; a chunk of (x, 1) */
    ptrdiff_t narrow_size;
} FN(backward_plan);

static size_t FN(plan_backward)(FN(backward_plan) *plan, const gc_recurrent *s)
{
    gc_arena arena = {s->work, 0};
    ptrdiff_t padded = (s->H + V - 1) / V * V;
    plan->s = s;
    plan->G = n_gates(s), plan->K = n_kept(s);
    plan->gates_row = gc_row(plan->K * padded, sizeof(REAL));
    plan->h_row = gc_row(padded, sizeof(REAL));
    plan->dg_row = gc_row((plan->K * s->H + V - 1) / V * V, sizeof(REAL));
    plan->w_ih = s->dx ? take(&arena, FN(packed_size)(plan->G * s->H, s->F), sizeof(REAL)) : NULL;
    plan->w_hh = take(&arena, FN(packed_size)(plan->G * s->H, s->H), sizeof(REAL));
    plan->dg = take(&arena, chunk_rows(s, BACKWARD_ROWS) * plan->dg_row, sizeof(REAL));
    plan->carry = plan->K > 1 ? take(&arena, s->B * s->H, sizeof(REAL)) : NULL;
    plan->narrow_size = s->F <= NARROW ? (s->F + 1) * (plan->G * s->H + chunk_rows(s, BACKWARD_ROWS)) : 0;
    plan->narrow = take(&arena, recurrent_threads(s) * plan->narrow_size, sizeof(REAL));
    plan->products = take(&arena, recurrent_threads(s) * FN(gemm_tn_work)(), sizeof(REAL));
    return arena.used;
}

static size_t FN(recurrent_backward_work)(const gc_recurrent *s)
{
    FN(backward_plan) plan;
    gc_recurrent measured = *s;
    measured.work = NULL;
    return FN(plan_backward)(&plan, &measured);
}

/* With a tape as much as the backward pass will want, so that one buffer serves both. */
static size_t FN(recurrent_forward_work)(const gc_recurrent *s)
{
    FN(forward_plan) plan;
    gc_recurrent measured = *s;
    measured.work = NULL;
    const size_t forward = FN(plan_forward)(&plan, &measured);
    measured.dx = s->y; /* it will be wanted */
    const size_t backward = s->gates ? FN(recurrent_backward_work)(&measured) : 0;
    return forward > backward ? forward : backward;
}

/* dL/da of a = tanh(.) or sigmoid(.), from dL/dvalue and the value: 1 - a^2 in one rounding, a (1 - a) */
INLINE VEC FN(d_tanh)(VEC d, VEC a)
{
    return FN(v_mul)(d, FN(v_fma)(FN(v_sub)(FN(v_zero)(), a), a, FN(v_set1)(R(1.0))));
}
INLINE VEC FN(d_sigmoid)(VEC d, VEC a) { return FN(v_mul)(d, FN(v_mul)(a, FN(v_sub)(FN(v_set1)(R(1.0)), a))); }

/* One row of one step, units [u0, u1) of it; `scale` is what step clipping makes of dh. */
typedef struct {
    ptrdiff_t u0, u1, H;
    const REAL *gates, *h_in, *c_in, *dh;
    REAL scale[2];
    REAL *dg, *dc, *carry;
} FN(row_step);

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

/* dL/dh of the units from j on, after step clipping. */
INLINE VEC FN(clipped_dh)(const FN(row_step) *p, ptrdiff_t j)
{
    return FN(v_mul)(FN(v_mul)(FN(v_get)(p->dh + j, p->u1 - j), FN(v_set1)(p->scale[0])), FN(v_set1)(p->scale[1]));
}

/* inverts (f1) */
static void FN(rnn_step_back)(const FN(row_step) *p, int relu)
{
    /* h > 0, written so that a NaN in h does not hide the gradient; smaller numbers have been flushed to zero */
    VEC least = FN(v_set1)(GC_BITS == 32 ? (REAL)FLT_MIN : (REAL)DBL_MIN);
    for (ptrdiff_t j = p->u0; j < p->u1; j += V) {
        ptrdiff_t live = p->u1 - j;
        VEC h = FN(v_load)(p->gates + j), d = FN(clipped_dh)(p, j);
        FN(v_put)(p->dg + j, relu ? FN(v_select_gt)(least, h, FN(v_zero)(), d) : FN(d_tanh)(d, h), live);
    }
}

/* inverts (f2); the carry becomes the total dL/dc_t, dc becomes dL/dc_{t-1} */
static void FN(lstm_step_back)(const FN(row_step) *p)
{
    for (ptrdiff_t j = p->u0; j < p->u1; j += V) {
        ptrdiff_t live = p->u1 - j;
        const REAL *gates = p->gates + 4 * j;
        VEC i = FN(v_load)(gates), f = FN(v_load)(gates + V), g = FN(v_load)(gates + 2 * V), o = FN(v_load)(gates + 3 * V);
        VEC c_in = FN(v_get)(p->c_in + j, live), d = FN(clipped_dh)(p, j);
        VEC tanh_c = FN(v_tanh)(FN(lstm_cell)(i, f, g, c_in));
        VEC dc = FN(v_add)(FN(v_get)(p->dc + j, live), FN(d_tanh)(FN(v_mul)(d, o), tanh_c));
        FN(v_put)(p->carry + j, dc, live);
        FN(v_put)(p->dc + j, FN(v_mul)(dc, f), live);
        FN(v_put)(p->dg + j, FN(d_sigmoid)(FN(v_mul)(dc, g), i), live);
        FN(v_put)(p->dg + p->H + j, FN(d_sigmoid)(FN(v_mul)(dc, c_in), f), live);
        FN(v_put)(p->dg + 2 * p->H + j, FN(d_tanh)(FN(v_mul)(dc, i), g), live);
        FN(v_put)(p->dg + 3 * p->H + j, FN(d_sigmoid)(FN(v_mul)(d, tanh_c), o), live);
    }
}

/* inverts (f3) */
static void FN(gru_step_back)(const FN(row_step) *p)
{
    VEC one = FN(v_set1)(R(1.0));
    for (ptrdiff_t j = p->u0; j < p->u1; j += V) {
        ptrdiff_t live = p->u1 - j;
        const REAL *gates = p->gates + 4 * j;
        VEC n = FN(v_load)(gates), r = FN(v_load)(gates + V), z = FN(v_load)(gates + 2 * V), q = FN(v_load)(gates + 3 * V);
        VEC d = FN(clipped_dh)(p, j);
        VEC dn = FN(d_tanh)(FN(v_mul)(d, FN(v_sub)(one, z)), n);
        FN(v_put)(p->dg + j, dn, live);
        FN(v_put)(p->dg + p->H + j, FN(d_sigmoid)(FN(v_mul)(dn, q), r), live);
        FN(v_put)(p->dg + 2 * p->H + j, FN(d_sigmoid)(FN(v_mul)(d, FN(v_sub)(FN(v_get)(p->h_in + j, live), n)), z), live);
        FN(v_put)(p->dg + 3 * p->H + j, FN(v_mul)(dn, r), live);
        FN(v_put)(p->carry + j, FN(v_mul)(d, z), live);
    }
}

/* One step of a thread's rows and units: from dL/dh_t to dg and dL/dh_{t-1}. */
static void FN(step_back)(const FN(backward_plan) *plan, const gc_chunk *chunk, ptrdiff_t i, gc_watch *watch)
{
    const gc_recurrent *s = plan->s;
    const ptrdiff_t H = s->H, GH = plan->G * H, t = step_at(s, i), first = chunk->first, rows = own_rows(s, chunk, t);
    const ptrdiff_t row0 = s->offsets[t] + first;
    const REAL *gates = s->gates, *h_in = s->h_in, *c_in = s->c_in;
    REAL *dh = (REAL *)s->dh + first * H, *dc = s->dc ? (REAL *)s->dc + first * H : NULL;
    REAL *dg = plan->dg + (row0 - chunk->row0) * plan->dg_row, *carry = plan->carry ? plan->carry + first * H : NULL;
    /* what the step that is next reads of the tape is fetched meanwhile */
    const REAL *before = i > 0 ? gates + (s->offsets[step_at(s, i - 1)] + first) * plan->gates_row : NULL;
    const int measures = s->dh_norm || s->step_clip < INFINITY;

    for (ptrdiff_t b = 0; b < rows; b++) {
        const REAL *dy = (const REAL *)s->dy + (s->y_at ? s->y_at[row0 + b] : row0 + b) * s->ld_y;
        for (ptrdiff_t j = chunk->u0; j < chunk->u1; j++) dh[b * H + j] += dy[j];
    }
    if (chunk->by_units && barrier(watch)) return; /* dL/dh_t is complete */
    for (ptrdiff_t b = 0; b < rows; b++) {
        const ptrdiff_t row = row0 + b;
        double norm = measures ? FN(l2_norm)(dh + b * H, H) : 0;
        if (s->dh_norm && !chunk->u0) s->dh_norm[row] = norm;
        FN(row_step) p = {chunk->u0, chunk->u1, H, gates + row * plan->gates_row, h_in + row * plan->h_row,
                          c_in ? c_in + row * plan->h_row : NULL, dh + b * H,
                          {1, 1},
                          dg + b * plan->dg_row, dc ? dc + b * H : NULL, carry ? carry + b * H : NULL};
        if (norm > s->step_clip && !isinf(norm)) FN(step_scale)(norm, s->step_clip, p.scale);
        if (s->cell == GC_LSTM)
            FN(lstm_step_back)(&p);
        else if (s->cell == GC_GRU)
            FN(gru_step_back)(&p);
        else
            FN(rnn_step_back)(&p, s->cell == GC_RNN_RELU);
    }
    if (chunk->by_units && barrier(watch)) return; /* dg and the carry are complete */
    if (s->dc_norm && s->cell == GC_LSTM) {
        ptrdiff_t from = 0, to = rows;
        if (chunk->by_units) share(rows, watch->team, watch->thread, &from, &to);
        for (ptrdiff_t b = from; b < to; b++) s->dc_norm[row0 + b] = FN(l2_norm)(carry + b * H, H);
    }
    if (s->cell != GC_GRU) carry = NULL;
    FN(gemm)(rows, chunk->u0, chunk->u1, H, GH, dg + (plan->K - plan->G) * H, plan->dg_row, plan->w_hh, (int)(i % 2), dh, H,
             carry, H, before, rows * plan->gates_row, watch);
}

/* Rows [m0, m1) of the gradient of a weight matrix, and of its bias, from a chunk: dw += dg^T b, db += the sums of dg. The
 * gates of dg stand for the rows of dw from `first_row` on, and round. */
static void FN(weight_part)(ptrdiff_t M, ptrdiff_t first_row, ptrdiff_t N, ptrdiff_t rows, const REAL *dg, ptrdiff_t dg_row,
                            const REAL *b, ptrdiff_t b_row, REAL *dw, REAL *db, REAL *work, gc_watch *watch)
{
    for (ptrdiff_t wrapped = 0; wrapped < 2; wrapped++) {
        ptrdiff_t n = wrapped ? first_row : M - first_row, to = wrapped ? 0 : first_row, m0, m1;
        share_tiles(n, V, watch->team, watch->thread, &m0, &m1);
        FN(gemm_tn)(m0, m1, N, rows, dg + (wrapped ? M - first_row : 0), dg_row, b, b_row, dw + to * N, N,
                    db ? db + to : NULL, work, watch);
    }
}

/* The same for dw_ih (G*H, F) and db_ih with a narrow input: dg takes the place of b, and a one beside x sums it. */
static void FN(narrow_weight_part)(const FN(backward_plan) *plan, const gc_chunk *chunk, ptrdiff_t first_row, REAL *work,
                                   gc_watch *watch)
{
    const gc_recurrent *s = plan->s;
    const ptrdiff_t F = s->F, GH = plan->G * s->H, rows = chunk->rows;
    REAL *sums = plan->narrow + watch->thread * plan->narrow_size, *x_1 = sums + (F + 1) * GH, *dw = s->dw_ih, *db = s->db_ih;
    const REAL *x = (const REAL *)s->x + chunk->row0 * F;
    ptrdiff_t m0, m1;
    share_tiles(GH, V, watch->team, watch->thread, &m0, &m1);
    for (ptrdiff_t k = 0; k < rows; k++) {
        for (ptrdiff_t f = 0; f < F; f++) x_1[k * (F + 1) + f] = x[k * F + f];
        x_1[k * (F + 1) + F] = 1;
    }
    memset(sums, 0, (size_t)((F + 1) * GH) * sizeof(REAL));
    FN(gemm_tn)(0, F + 1, m1 - m0, rows, x_1, F + 1, plan->dg + m0, plan->dg_row, sums + m0, GH, NULL, work, watch);
    for (ptrdiff_t m = m0; m < m1; m++) {
        ptrdiff_t to = m + first_row < GH ? m + first_row : m + first_row - GH;
        for (ptrdiff_t f = 0; f < F; f++) dw[to * F + f] += sums[f * GH + m];
        if (db) db[to] += sums[F * GH + m];
    }
}

/* dx (rows, F) (+)= dg w for a narrow input; w is W_ih transposed, (F, G*H), its gates in the order of dg. */
static void FN(narrow_dx)(ptrdiff_t rows, ptrdiff_t F, ptrdiff_t GH, const REAL *dg, ptrdiff_t dg_row, const REAL *w, REAL *dx,
                          int adds)
{
    for (ptrdiff_t b = 0; b < rows; b++)
        for (ptrdiff_t f = 0; f < F; f++) {
            const REAL *from = dg + b * dg_row, *w_f = w + f * GH;
            VEC sum[2] = {FN(v_zero)(), FN(v_zero)()};
            REAL lanes[V], total = 0;
            for (ptrdiff_t m = 0; m < GH; m += 2 * V)
                for (int i = 0; i < 2; i++) {
                    ptrdiff_t live = gc_max(GH - m - i * V, 0);
                    sum[i] = FN(v_fma)(FN(v_get)(from + m + i * V, live), FN(v_get)(w_f + m + i * V, live), sum[i]);
                }
            FN(v_store)(lanes, FN(v_add)(sum[0], sum[1]));
            for (int i = 0; i < V; i++) total += lanes[i];
            dx[b * F + f] = adds ? dx[b * F + f] + total : total;
        }
}

static void FN(backward_body)(void *arg, gc_team *team, int thread)
{
    const FN(backward_plan) *plan = arg;
    const gc_recurrent *s = plan->s;
    const ptrdiff_t F = s->F, H = s->H, GH = plan->G * H, n_first = gate_order(s, 1)[0] * H;
    REAL *work = plan->products + thread * FN(gemm_tn_work)();
    const int n_threads = gc_team_size(team);

    gc_watch watch = {team, thread, 0, 0};
    FN(pack)(GH, H, NR, s->w_hh, H, 1, 0, plan->w_hh, thread, n_threads, &watch);
    const int narrow = plan->narrow_size > 0;
    if (s->dx && narrow) {
        for (ptrdiff_t m = GH * thread / n_threads; m < GH * (thread + 1) / n_threads; m++) /* (F, G*H) */
            for (ptrdiff_t f = 0; f < F; f++)
                plan->w_ih[f * GH + m] = ((const REAL *)s->w_ih)[(m + n_first < GH ? m + n_first : m + n_first - GH) * F + f];
    } else if (s->dx) {
        FN(pack)(GH, F, NR, s->w_ih, F, 1, n_first, plan->w_ih, thread, n_threads, &watch);
    }
    if (barrier(&watch)) return;

    for (ptrdiff_t i1 = s->T; i1 > 0 && !watch.stop;) {
        gc_chunk chunk = chunk_of(s, 1, i1, BACKWARD_ROWS, V, team, thread);
        i1 = chunk.i0;
        for (ptrdiff_t i = chunk.i1 - 1; i >= chunk.i0 && !watch.stop; i--) FN(step_back)(plan, &chunk, i, &watch);
        if (barrier(&watch)) return;

        ptrdiff_t rows = chunk.rows, first, end;
        if (narrow)
            FN(narrow_weight_part)(plan, &chunk, n_first, work, &watch);
        else
            FN(weight_part)(GH, n_first, F, rows, plan->dg, plan->dg_row, (const REAL *)s->x + chunk.row0 * F, F, s->dw_ih,
                            s->db_ih, work, &watch);
        FN(weight_part)(GH, 0, H, rows, plan->dg + (plan->K - plan->G) * H, plan->dg_row,
                        (const REAL *)s->h_in + chunk.row0 * plan->h_row, plan->h_row, s->dw_hh, s->db_hh, work, &watch);
        if (s->dx) {
            share_tiles(rows, MR, team, thread, &first, &end);
            REAL *dx = (REAL *)s->dx + (chunk.row0 + first) * F;
            if (narrow)
                FN(narrow_dx)(end - first, F, GH, plan->dg + first * plan->dg_row, plan->dg_row, plan->w_ih, dx, s->dx_adds);
            else
                FN(gemm)(end - first, 0, F, F, GH, plan->dg + first * plan->dg_row, plan->dg_row, plan->w_ih, 0, dx, F,
                     s->dx_adds ? dx : NULL, F, NULL, 0, &watch);
        }
        if (barrier(&watch)) return;
    }
}

static int FN(recurrent_backward)(const gc_recurrent *s)
{
    FN(backward_plan) plan;
    FN(plan_backward)(&plan, s);
    return gc_parallel(recurrent_threads(s), 0, FN(backward_body), &plan);
}
