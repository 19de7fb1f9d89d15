/* RNN, LSTM and GRU: a whole sequence forward, and back through time, in one parallel region each.
 *
 * The steps are walked in chunks. For each chunk the team first computes the input's part of all its gates, one product over
 * all rows of the chunk; then every thread takes its share of the sequences through the chunk's steps without waiting for
 * anybody. Backward, the weight gradients and dL/dx are products over all rows, after the last step.
 */
#ifndef REAL
#error "recurrent.inc.h needs real.inc.h, simd.inc.h, vmath.inc.h and gemm.inc.h"
#endif

#ifndef GC_RECURRENT_SIZES
#define GC_RECURRENT_SIZES
enum {
    CHUNK_BYTES = 256 * 1024 /* gates of a chunk for each thread: a part of L2, beside the packed weights */
};

INLINE ptrdiff_t n_gates(const gc_recurrent *s) { return s->cell == GC_LSTM ? 4 : s->cell == GC_GRU ? 3 : 1; }
INLINE ptrdiff_t n_kept(const gc_recurrent *s) { return s->cell == GC_LSTM || s->cell == GC_GRU ? 4 : 1; }
INLINE ptrdiff_t n_alive(const gc_recurrent *s, ptrdiff_t t) { return s->offsets[t + 1] - s->offsets[t]; }

/* The step that is walked as number i. */
INLINE ptrdiff_t step_at(const gc_recurrent *s, ptrdiff_t i) { return s->reverse ? s->T - 1 - i : i; }

/* Sequences share nothing until the weights' gradients, so more threads than sequences would idle. */
INLINE int recurrent_threads(const gc_recurrent *s)
{
    double work = (double)s->offsets[s->T] * (double)(n_gates(s) * s->H) * (double)(s->F + s->H);
    return work < SERIAL_WORK ? 1 : (int)gc_min(s->threads, gc_max(s->B, 1));
}

/* Steps of a chunk, so that its gates take about CHUNK_BYTES for each thread. */
INLINE ptrdiff_t chunk_steps(const gc_recurrent *s, size_t real_size)
{
    ptrdiff_t step_bytes = gc_max(s->B, 1) * n_kept(s) * s->H * (ptrdiff_t)real_size;
    return gc_min(gc_max(1, CHUNK_BYTES * (ptrdiff_t)s->threads / gc_max(step_bytes, 1)), gc_max(s->T, 1));
}
#endif

/* ==== forward ========================================================================================================== */

typedef struct {
    const gc_recurrent *s;
    REAL *w_ih, *w_hh, *w_hn; /* packed; w_hn is the GRU's new gate, apart because its product is not added to the input's */
    REAL *bias;               /* (K*H,) what the products start from; GRU: b_ih + b_hh of r and z, then b_in, then b_hn */
    REAL *chunk_gates;        /* (rows of a chunk, K*H) without a tape */
    ptrdiff_t steps;          /* of a chunk */
} FN(forward_plan);

static size_t FN(plan_forward)(FN(forward_plan) *plan, const gc_recurrent *s)
{
    gc_arena arena = {s->work, 0};
    ptrdiff_t G = n_gates(s), H = s->H, recurrent_gates = s->cell == GC_GRU ? 2 : G;
    plan->s = s;
    plan->steps = chunk_steps(s, sizeof(REAL));
    plan->w_ih = take(&arena, FN(packed_size)(s->F, G * H), sizeof(REAL));
    plan->w_hh = take(&arena, FN(packed_size)(H, recurrent_gates * H), sizeof(REAL));
    plan->w_hn = s->cell == GC_GRU ? take(&arena, FN(packed_size)(H, H), sizeof(REAL)) : NULL;
    plan->bias = take(&arena, n_kept(s) * H, sizeof(REAL));
    plan->chunk_gates = s->gates ? NULL : take(&arena, plan->steps * s->B * n_kept(s) * H, sizeof(REAL));
    return arena.used;
}

static size_t FN(recurrent_forward_work)(const gc_recurrent *s)
{
    FN(forward_plan) plan;
    gc_recurrent measured = *s;
    measured.work = NULL;
    return FN(plan_forward)(&plan, &measured);
}

static void FN(pack_forward)(const FN(forward_plan) *plan, int thread, int n_threads)
{
    const gc_recurrent *s = plan->s;
    const REAL *b_ih = s->b_ih, *b_hh = s->b_hh, *w_hh = s->w_hh;
    ptrdiff_t G = n_gates(s), H = s->H;
    FN(pack)(s->F, G * H, s->w_ih, 1, s->F, plan->w_ih, thread, n_threads);
    if (s->cell == GC_GRU) {
        FN(pack)(H, 2 * H, w_hh, 1, H, plan->w_hh, thread, n_threads);
        FN(pack)(H, H, w_hh + 2 * H * H, 1, H, plan->w_hn, thread, n_threads);
    } else {
        FN(pack)(H, G * H, w_hh, 1, H, plan->w_hh, thread, n_threads);
    }
    if (thread) return;
    for (ptrdiff_t j = 0; j < n_kept(s) * H; j++) {
        if (!b_ih)
            plan->bias[j] = 0;
        else if (s->cell == GC_GRU && j >= 2 * H)
            plan->bias[j] = j < 3 * H ? b_ih[j] : b_hh[j - H];
        else
            plan->bias[j] = b_ih[j] + b_hh[j];
    }
}

/* (f1) h = act(g) */
static void FN(rnn_step)(int relu, ptrdiff_t H, REAL *g, REAL *h)
{
    for (ptrdiff_t j = 0; j < H; j += V) {
        VEC a = FN(v_get)(g + j, H - j);
        VEC value = relu ? FN(v_max)(FN(v_zero)(), a) : FN(v_tanh)(a);
        FN(v_put)(g + j, value, H - j);
        FN(v_put)(h + j, value, H - j);
    }
}

/* c_t from the gates and c_{t-1}; the backward pass recomputes it to the same bits */
INLINE VEC FN(lstm_cell)(VEC i, VEC f, VEC g, VEC c) { return FN(v_fma)(f, c, FN(v_mul)(i, g)); }

/* (f2) c = f c + i g;  h = o tanh(c) */
static void FN(lstm_step)(ptrdiff_t H, REAL *gates, REAL *h, REAL *c)
{
    for (ptrdiff_t j = 0; j < H; j += V) {
        ptrdiff_t n = H - j;
        VEC i = FN(v_sigmoid)(FN(v_get)(gates + j, n)), f = FN(v_sigmoid)(FN(v_get)(gates + H + j, n));
        VEC g = FN(v_tanh)(FN(v_get)(gates + 2 * H + j, n)), o = FN(v_sigmoid)(FN(v_get)(gates + 3 * H + j, n));
        VEC cell = FN(lstm_cell)(i, f, g, FN(v_get)(c + j, n));
        FN(v_put)(gates + j, i, n);
        FN(v_put)(gates + H + j, f, n);
        FN(v_put)(gates + 2 * H + j, g, n);
        FN(v_put)(gates + 3 * H + j, o, n);
        FN(v_put)(c + j, cell, n);
        FN(v_put)(h + j, FN(v_mul)(o, FN(v_tanh)(cell)), n);
    }
}

/* (f3) n = tanh(W x + b_in + r q);  h = n + z (h - n) */
static void FN(gru_step)(ptrdiff_t H, REAL *gates, REAL *h)
{
    for (ptrdiff_t j = 0; j < H; j += V) {
        ptrdiff_t live = H - j;
        VEC r = FN(v_sigmoid)(FN(v_get)(gates + j, live)), z = FN(v_sigmoid)(FN(v_get)(gates + H + j, live));
        VEC q = FN(v_get)(gates + 3 * H + j, live), old = FN(v_get)(h + j, live);
        VEC n = FN(v_tanh)(FN(v_fma)(r, q, FN(v_get)(gates + 2 * H + j, live)));
        FN(v_put)(gates + j, r, live);
        FN(v_put)(gates + H + j, z, live);
        FN(v_put)(gates + 2 * H + j, n, live);
        FN(v_put)(h + j, FN(v_fma)(z, FN(v_sub)(old, n), n), live);
    }
}

static void FN(forward_body)(void *arg, gc_team *team, int thread)
{
    const FN(forward_plan) *plan = arg;
    const gc_recurrent *s = plan->s;
    const ptrdiff_t F = s->F, H = s->H, GH = n_gates(s) * H, KH = n_kept(s) * H;
    const REAL *x = s->x;
    REAL *h = s->h, *c = s->c, *y = s->y, *h_in = s->h_in, *c_in = s->c_in;
    const size_t row_bytes = (size_t)H * sizeof(REAL);
    unsigned long long mode = gc_ftz_enter();

    FN(pack_forward)(plan, thread, gc_team_size(team));
    gc_barrier(team);
    for (ptrdiff_t i0 = 0; i0 < s->T; i0 += plan->steps) {
        ptrdiff_t i1 = gc_min(i0 + plan->steps, s->T);
        ptrdiff_t t_low = gc_min(step_at(s, i0), step_at(s, i1 - 1)), row0 = s->offsets[t_low];
        REAL *gates = s->gates ? (REAL *)s->gates + row0 * KH : plan->chunk_gates; /* of row0 */
        ptrdiff_t first, end;

        share_tiles(s->offsets[t_low + i1 - i0] - row0, MR, team, thread, &first, &end);
        FN(gemm)(end - first, GH, F, x + (row0 + first) * F, F, plan->w_ih, gates + first * KH, KH, plan->bias, 0);
        gc_barrier(team);

        share(n_alive(s, t_low), team, thread, &first, &end);
        for (ptrdiff_t i = i0; i < i1; i++) {
            ptrdiff_t t = step_at(s, i), rows = gc_min(end, n_alive(s, t)) - first, row = s->offsets[t] + first;
            if (rows <= 0) continue;
            REAL *g = gates + (row - row0) * KH;
            if (h_in) memcpy(h_in + row * H, h + first * H, (size_t)rows * row_bytes);
            if (c_in) memcpy(c_in + row * H, c + first * H, (size_t)rows * row_bytes);
            if (s->cell == GC_GRU) {
                FN(gemm)(rows, 2 * H, H, h + first * H, H, plan->w_hh, g, KH, NULL, 1);
                FN(gemm)(rows, H, H, h + first * H, H, plan->w_hn, g + 3 * H, KH, plan->bias + 3 * H, 0);
            } else {
                FN(gemm)(rows, GH, H, h + first * H, H, plan->w_hh, g, KH, NULL, 1);
            }
            for (ptrdiff_t b = first; b < first + rows; b++, g += KH) {
                if (s->cell == GC_LSTM)
                    FN(lstm_step)(H, g, h + b * H, c + b * H);
                else if (s->cell == GC_GRU)
                    FN(gru_step)(H, g, h + b * H);
                else
                    FN(rnn_step)(s->cell == GC_RNN_RELU, H, g, h + b * H);
                memcpy(y + (s->offsets[t] + b) * s->ld_y, h + b * H, row_bytes);
            }
        }
        gc_barrier(team);
    }
    gc_ftz_leave(mode);
}

static void FN(recurrent_forward)(const gc_recurrent *s)
{
    FN(forward_plan) plan;
    FN(plan_forward)(&plan, s);
    gc_parallel(recurrent_threads(s), FN(forward_body), &plan);
}

/* ==== backward ========================================================================================================= */

typedef struct {
    const gc_recurrent *s;
    REAL *w_ih, *w_hh; /* packed the other way round: (G*H, F), (G*H, H) */
    REAL *dg_x, *dg_h; /* (S, G*H) dL/d(pre-activation), as the input's and the recurrent product see it: one but for GRU */
    REAL *products;    /* scratch of gemm_tn, a part for each thread */
    ptrdiff_t product_size, steps;
} FN(backward_plan);

static size_t FN(plan_backward)(FN(backward_plan) *plan, const gc_recurrent *s)
{
    gc_arena arena = {s->work, 0};
    ptrdiff_t GH = n_gates(s) * s->H, S = s->offsets[s->T];
    plan->s = s;
    plan->steps = chunk_steps(s, sizeof(REAL));
    plan->product_size = FN(gemm_tn_work)(gc_max(s->F, s->H));
    plan->w_ih = s->dx ? take(&arena, FN(packed_size)(GH, s->F), sizeof(REAL)) : NULL;
    plan->w_hh = take(&arena, FN(packed_size)(GH, s->H), sizeof(REAL));
    plan->dg_x = take(&arena, S * GH, sizeof(REAL));
    plan->dg_h = s->cell == GC_GRU ? take(&arena, S * GH, sizeof(REAL)) : plan->dg_x;
    plan->products = take(&arena, recurrent_threads(s) * plan->product_size, sizeof(REAL));
    return arena.used;
}

static size_t FN(recurrent_backward_work)(const gc_recurrent *s)
{
    FN(backward_plan) plan;
    gc_recurrent measured = *s;
    measured.work = NULL;
    return FN(plan_backward)(&plan, &measured);
}

/* dL/da of a = tanh(.) or sigmoid(.), from dL/dvalue and the value: 1 - a^2 in one rounding, a (1 - a) */
INLINE VEC FN(d_tanh)(VEC d, VEC a)
{
    return FN(v_mul)(d, FN(v_fma)(FN(v_sub)(FN(v_zero)(), a), a, FN(v_set1)(R(1.0))));
}
INLINE VEC FN(d_sigmoid)(VEC d, VEC a) { return FN(v_mul)(d, FN(v_mul)(a, FN(v_sub)(FN(v_set1)(R(1.0)), a))); }

/* inverts (f1); dh is left for the product with W_hh to overwrite */
static void FN(rnn_step_back)(int relu, ptrdiff_t H, const REAL *h, const REAL *dh, REAL *dg)
{
    /* h > 0, written so that a NaN in h does not hide the gradient; smaller numbers have been flushed to zero */
    VEC least = FN(v_set1)(GC_BITS == 32 ? (REAL)FLT_MIN : (REAL)DBL_MIN);
    for (ptrdiff_t j = 0; j < H; j += V) {
        VEC value = FN(v_get)(h + j, H - j), d = FN(v_get)(dh + j, H - j);
        d = relu ? FN(v_select_gt)(least, value, FN(v_zero)(), d) : FN(d_tanh)(d, value);
        FN(v_put)(dg + j, d, H - j);
    }
}

/* inverts (f2), first part: dc becomes the total dL/dc_t, and dg's last block dL/d(o's pre-activation) */
static void FN(lstm_step_back_cell)(ptrdiff_t H, const REAL *gates, const REAL *c_in, const REAL *dh, REAL *dc, REAL *dg)
{
    for (ptrdiff_t j = 0; j < H; j += V) {
        ptrdiff_t n = H - j;
        VEC o = FN(v_get)(gates + 3 * H + j, n), d = FN(v_get)(dh + j, n);
        VEC cell = FN(lstm_cell)(FN(v_get)(gates + j, n), FN(v_get)(gates + H + j, n), FN(v_get)(gates + 2 * H + j, n),
                                 FN(v_get)(c_in + j, n));
        VEC tanh_c = FN(v_tanh)(cell);
        FN(v_put)(dc + j, FN(v_add)(FN(v_get)(dc + j, n), FN(d_tanh)(FN(v_mul)(d, o), tanh_c)), n);
        FN(v_put)(dg + 3 * H + j, FN(d_sigmoid)(FN(v_mul)(d, tanh_c), o), n);
    }
}

/* inverts (f2), second part: dc becomes dL/dc_{t-1} */
static void FN(lstm_step_back_gates)(ptrdiff_t H, const REAL *gates, const REAL *c_in, REAL *dc, REAL *dg)
{
    for (ptrdiff_t j = 0; j < H; j += V) {
        ptrdiff_t n = H - j;
        VEC i = FN(v_get)(gates + j, n), f = FN(v_get)(gates + H + j, n), g = FN(v_get)(gates + 2 * H + j, n);
        VEC d = FN(v_get)(dc + j, n);
        FN(v_put)(dg + j, FN(d_sigmoid)(FN(v_mul)(d, g), i), n);
        FN(v_put)(dg + H + j, FN(d_sigmoid)(FN(v_mul)(d, FN(v_get)(c_in + j, n)), f), n);
        FN(v_put)(dg + 2 * H + j, FN(d_tanh)(FN(v_mul)(d, i), g), n);
        FN(v_put)(dc + j, FN(v_mul)(d, f), n);
    }
}

/* inverts (f3); dh becomes the part of dL/dh_{t-1} that does not pass W_hh */
static void FN(gru_step_back)(ptrdiff_t H, const REAL *gates, const REAL *h_in, REAL *dh, REAL *dg_x, REAL *dg_h)
{
    for (ptrdiff_t j = 0; j < H; j += V) {
        ptrdiff_t live = H - j;
        VEC r = FN(v_get)(gates + j, live), z = FN(v_get)(gates + H + j, live), n = FN(v_get)(gates + 2 * H + j, live);
        VEC q = FN(v_get)(gates + 3 * H + j, live), d = FN(v_get)(dh + j, live);
        VEC dn = FN(d_tanh)(FN(v_mul)(d, FN(v_sub)(FN(v_set1)(R(1.0)), z)), n);
        VEC dz = FN(d_sigmoid)(FN(v_mul)(d, FN(v_sub)(FN(v_get)(h_in + j, live), n)), z);
        VEC dr = FN(d_sigmoid)(FN(v_mul)(dn, q), r);
        FN(v_put)(dg_x + j, dr, live);
        FN(v_put)(dg_h + j, dr, live);
        FN(v_put)(dg_x + H + j, dz, live);
        FN(v_put)(dg_h + H + j, dz, live);
        FN(v_put)(dg_x + 2 * H + j, dn, live);
        FN(v_put)(dg_h + 2 * H + j, FN(v_mul)(dn, r), live);
        FN(v_put)(dh + j, FN(v_mul)(d, z), live);
    }
}

/* dL/dh_t of one row is complete: its norm, and its rescaling to at most `limit` */
static double FN(norm_and_clip)(ptrdiff_t H, REAL *dh, double limit)
{
    double norm = FN(l2_norm)(dh, H);
    if (norm > limit && !isinf(norm)) {
        double scale = limit / norm;
        for (ptrdiff_t j = 0; j < H; j++) dh[j] = (REAL)(dh[j] * scale);
    }
    return norm;
}

static void FN(backward_body)(void *arg, gc_team *team, int thread)
{
    const FN(backward_plan) *plan = arg;
    const gc_recurrent *s = plan->s;
    const ptrdiff_t F = s->F, H = s->H, GH = n_gates(s) * H, KH = n_kept(s) * H, S = s->offsets[s->T];
    const REAL *gates = s->gates, *h_in = s->h_in, *c_in = s->c_in, *dy = s->dy;
    REAL *dh = s->dh, *dc = s->dc, *dg_x = plan->dg_x, *dg_h = plan->dg_h;
    const int n_threads = gc_team_size(team);
    ptrdiff_t first, end;
    unsigned long long mode = gc_ftz_enter();

    FN(pack)(GH, H, s->w_hh, H, 1, plan->w_hh, thread, n_threads);
    if (s->dx) FN(pack)(GH, F, s->w_ih, F, 1, plan->w_ih, thread, n_threads);
    gc_barrier(team);

    for (ptrdiff_t i1 = s->T; i1 > 0; i1 = gc_max(i1 - plan->steps, 0)) {
        ptrdiff_t i0 = gc_max(i1 - plan->steps, 0);
        share(n_alive(s, gc_min(step_at(s, i0), step_at(s, i1 - 1))), team, thread, &first, &end);
        for (ptrdiff_t i = i1 - 1; i >= i0; i--) {
            ptrdiff_t t = step_at(s, i), rows = gc_min(end, n_alive(s, t)) - first, row0 = s->offsets[t] + first;
            if (rows <= 0) continue;
            for (ptrdiff_t k = 0; k < rows; k++) {
                ptrdiff_t row = row0 + k;
                REAL *dh_b = dh + (first + k) * H;
                for (ptrdiff_t j = 0; j < H; j++) dh_b[j] += dy[row * s->ld_y + j];
                s->dh_norm[row] = FN(norm_and_clip)(H, dh_b, s->step_clip);
                if (s->cell == GC_LSTM) {
                    REAL *dc_b = dc + (first + k) * H;
                    FN(lstm_step_back_cell)(H, gates + row * KH, c_in + row * H, dh_b, dc_b, dg_x + row * GH);
                    s->dc_norm[row] = FN(l2_norm)(dc_b, H);
                    FN(lstm_step_back_gates)(H, gates + row * KH, c_in + row * H, dc_b, dg_x + row * GH);
                } else if (s->cell == GC_GRU) {
                    FN(gru_step_back)(H, gates + row * KH, h_in + row * H, dh_b, dg_x + row * GH, dg_h + row * GH);
                } else {
                    FN(rnn_step_back)(s->cell == GC_RNN_RELU, H, gates + row * KH, dh_b, dg_x + row * GH);
                }
            }
            FN(gemm)(rows, H, GH, dg_h + row0 * GH, GH, plan->w_hh, dh + first * H, H, NULL, s->cell == GC_GRU);
        }
        gc_barrier(team);
    }

    share_tiles(GH, MR, team, thread, &first, &end);
    REAL *work = plan->products + thread * plan->product_size;
    FN(gemm_tn)(first, end, F, S, dg_x, GH, s->x, s->dw_ih, work);
    FN(gemm_tn)(first, end, H, S, dg_h, GH, h_in, s->dw_hh, work);
    if (s->db_ih) FN(column_sums)(first, end, S, dg_x, GH, s->db_ih);
    if (s->db_hh) FN(column_sums)(first, end, S, dg_h, GH, s->db_hh);
    if (s->dx) {
        share_tiles(S, MR, team, thread, &first, &end);
        FN(gemm)(end - first, F, GH, dg_x + first * GH, GH, plan->w_ih, (REAL *)s->dx + first * F, F, NULL, s->dx_adds);
    }
    gc_ftz_leave(mode);
}

static void FN(recurrent_backward)(const gc_recurrent *s)
{
    FN(backward_plan) plan;
    FN(plan_backward)(&plan, s);
    gc_parallel(recurrent_threads(s), FN(backward_body), &plan);
}
