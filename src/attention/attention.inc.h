/* Attention in tiles (Dao et al. 2022, FlashAttention): a block of queries meets the keys block by block, and the softmax is
 * carried along by its largest logit and its sum. The backward pass makes the same logits again. */
#ifndef REAL
#error "attention.inc.h needs real.inc.h, simd.inc.h, vmath.inc.h and gemm.inc.h"
#endif

#ifndef GC_ATTENTION_ONCE
#define GC_ATTENTION_ONCE
enum {
    QUERIES = BLOCK,   /* of a block: whole tiles */
    KEYS = 128,        /* of a block: whole panels, which stay in L1 while all tiles use them */
    PARALLEL_PARTS = 32 /* into so many at least the backward pass is divided, if it has as many blocks of keys */
};

/* What a head of one sequence has to do, and where it is. */
typedef struct {
    ptrdiff_t b, head, length;
} gc_head;

/* The keys that the queries before `end` see. */
INLINE ptrdiff_t keys_seen(const gc_attention *s, ptrdiff_t length, ptrdiff_t end) { return s->causal ? end : length; }

INLINE ptrdiff_t longest_of(const gc_attention *s)
{
    ptrdiff_t longest = 0;
    for (ptrdiff_t b = 0; b < s->B; b++) longest = gc_max(longest, s->lengths[b]);
    return longest;
}

/* Into how many parts the backward pass cuts the keys of each sequence: the same for any number of threads. */
INLINE ptrdiff_t key_parts(const gc_attention *s)
{
    const ptrdiff_t n = gc_max(s->B * s->heads, 1), blocks = (longest_of(s) + KEYS - 1) / KEYS;
    return gc_max(1, gc_min(blocks, (PARALLEL_PARTS + n - 1) / n));
}

/* Keys [*k0, *k1) of a part. */
INLINE void part_of_keys(ptrdiff_t length, ptrdiff_t part, ptrdiff_t parts, ptrdiff_t *k0, ptrdiff_t *k1)
{
    const ptrdiff_t blocks = (length + KEYS - 1) / KEYS;
    *k0 = gc_min(length, gc_cut(blocks, part, parts) * KEYS);
    *k1 = gc_min(length, gc_cut(blocks, part + 1, parts) * KEYS);
}

/* The logits that the queries [m0, m1) make of the keys [k0, k1). */
INLINE double logits_of(const gc_attention *s, ptrdiff_t m0, ptrdiff_t m1, ptrdiff_t k0, ptrdiff_t k1)
{
    const double all = (double)(m1 - m0) * (double)(k1 - k0);
    if (!s->causal) return all;
    if (m0 >= k1) return all;
    const double high = (double)(m1 - gc_max(m0, k0)); /* a triangle, about */
    return high <= 0 ? 0 : high * high / 2 + 1;
}

static double logits_of_all(const gc_attention *s)
{
    double sum = 0;
    for (ptrdiff_t b = 0; b < s->B; b++) sum += (double)s->heads * (double)s->lengths[b] * (double)s->lengths[b];
    return sum;
}

INLINE int attention_threads(const gc_attention *s) { return logits_of_all(s) * (double)s->D < SERIAL_WORK ? 1 : s->threads; }

/* Counts the work from part to part, and says which parts are this thread's: as much for each, and the first one's never
 * nothing, because it is thread 0 that asks whether to stop. */
typedef struct {
    double done, from, to;
} gc_portion;

INLINE gc_portion portion_of(double whole, gc_team *team, int thread)
{
    const double size = gc_team_size(team);
    return (gc_portion){0, whole * thread / size, thread + 1 == size ? INFINITY : whole * (thread + 1) / size};
}

INLINE int is_mine(gc_portion *portion, double work)
{
    const double at = portion->done;
    portion->done += work;
    return at >= portion->from && at < portion->to;
}
#endif

/* ==== products ========================================================================================================== */

/* Packed B (K, N), as pack.inc.h has it; a product may use a part of its rows and columns. */
typedef struct {
    ptrdiff_t K, N;
    REAL *at;
} FN(packed);

/* C (M, N) = start + A B[k0 : k0 + p->K, j0 : j0 + N], with A, C and start as `p` says; j0 is a multiple of NR. */
static void FN(part_product)(ptrdiff_t M, ptrdiff_t N, const FN(product) *p, FN(packed) b, ptrdiff_t k0, ptrdiff_t j0)
{
    const ptrdiff_t wide = FN(columns_at_once)(M, p->K);
    for (ptrdiff_t j = 0, n; j < N; j += n) {
        const ptrdiff_t panel = j0 + j, width = (gc_min(NR, b.N - panel) + V - 1) / V * V;
        FN(product) part = *p;
        n = gc_min(N - j, N - j <= NR + V ? NR : wide);
        part.b = b.at + panel * b.K + k0 * width;
        part.b_row = width, part.b_panel = NR * b.K;
        part.c += j;
        if (part.start) part.start += j;
        FN(panel)(M, n, &part);
    }
}

/* ==== scratch =========================================================================================================== */

#define LOGITS_ROW (KEYS + V) /* so that rows do not meet in the same sets of the cache */
#define ROWS (QUERIES + V)    /* one more vector may be read and written than there are queries */

typedef struct {
    REAL *keys, *values, *key_rows;   /* packed: K^T; V, or V^T backward; K, backward only */
    REAL *q, *logits, *y;             /* (QUERIES, D), (QUERIES, LOGITS_ROW), (QUERIES, D) */
    REAL *largest, *sum, *factor;     /* (ROWS,) */
    REAL *dy, *packed_q, *packed_dy;  /* backward: (QUERIES, D), as their packed forms; */
    REAL *dlogits, *dk, *dv;          /* (QUERIES, LOGITS_ROW), (keys of a part, D) twice */
} FN(attention_scratch);

typedef struct {
    const gc_attention *s;
    ptrdiff_t parts, part_keys; /* of a sequence's keys, backward, and the most keys of one */
    REAL *dq;                   /* (parts, S, heads, D) if there are several */
    char *scratch;              /* a part for each thread */
    size_t scratch_size;
} FN(attention_plan);

static size_t FN(place_scratch)(FN(attention_scratch) *t, const FN(attention_plan) *plan, char *base)
{
    const gc_attention *s = plan->s;
    const ptrdiff_t D = s->D, rows = QUERIES * D, keys = plan->part_keys;
    gc_arena arena = {base, 0};
    t->keys = gc_take(&arena, FN(packed_size)(D, keys), sizeof(REAL));
    t->values = gc_take(&arena, s->dy ? FN(packed_size)(D, keys) : FN(packed_size)(keys, D), sizeof(REAL));
    t->q = gc_take(&arena, rows, sizeof(REAL));
    t->y = gc_take(&arena, rows, sizeof(REAL));
    t->logits = gc_take(&arena, QUERIES * LOGITS_ROW, sizeof(REAL));
    t->largest = gc_take(&arena, ROWS, sizeof(REAL));
    t->sum = gc_take(&arena, ROWS, sizeof(REAL));
    t->factor = gc_take(&arena, ROWS, sizeof(REAL));
    if (s->dy) {
        t->key_rows = gc_take(&arena, FN(packed_size)(keys, D), sizeof(REAL));
        t->dy = gc_take(&arena, rows, sizeof(REAL));
        t->packed_q = gc_take(&arena, FN(packed_size)(QUERIES, D), sizeof(REAL));
        t->packed_dy = gc_take(&arena, FN(packed_size)(QUERIES, D), sizeof(REAL));
        t->dlogits = gc_take(&arena, QUERIES * LOGITS_ROW, sizeof(REAL));
        t->dk = gc_take(&arena, keys * D, sizeof(REAL));
        t->dv = gc_take(&arena, keys * D, sizeof(REAL));
    }
    return arena.used;
}

static size_t FN(plan_attention)(FN(attention_plan) *plan, const gc_attention *s)
{
    gc_arena arena = {s->work, 0};
    FN(attention_scratch) unused;
    const ptrdiff_t longest = longest_of(s);
    plan->s = s;
    plan->parts = s->dy ? key_parts(s) : 1;
    plan->part_keys = gc_min(longest, ((longest + KEYS - 1) / KEYS + plan->parts - 1) / plan->parts * KEYS);
    plan->dq = plan->parts > 1 ? gc_take(&arena, plan->parts * s->S * s->heads * s->D, sizeof(REAL)) : NULL;
    plan->scratch_size = FN(place_scratch)(&unused, plan, NULL);
    plan->scratch = gc_take(&arena, attention_threads(s), plan->scratch_size);
    return arena.used;
}

static size_t FN(attention_work)(const gc_attention *s)
{
    FN(attention_plan) plan;
    gc_attention measured = *s;
    measured.work = NULL;
    return FN(plan_attention)(&plan, &measured);
}

/* ==== rows ============================================================================================================== */

/* Where query (0), key (1) or value (2) of a head's step t begin, in qkv or dqkv. */
INLINE REAL *FN(part_at)(const gc_attention *s, const void *qkv, gc_head h, ptrdiff_t t, int part)
{
    const ptrdiff_t row = s->first[h.b] + t * s->step;
    return (REAL *)qkv + ((row * 3 + part) * s->heads + h.head) * s->D;
}

/* Where a head's step t begins in y or dy, for D elements, or in the sums, for one. */
INLINE REAL *FN(head_at)(const gc_attention *s, const void *y, gc_head h, ptrdiff_t t, ptrdiff_t D)
{
    const ptrdiff_t row = s->first[h.b] + t * s->step;
    return (REAL *)y + (row * s->heads + h.head) * D;
}

/* to[i] = factor * from[i], n elements */
INLINE void FN(scaled)(ptrdiff_t n, REAL factor, const REAL *from, REAL *to)
{
    const VEC f = FN(v_set1)(factor);
    for (ptrdiff_t i = 0; i < n; i += V) FN(v_put)(to + i, FN(v_mul)(f, FN(v_get)(from + i, n - i)), n - i);
}

INLINE REAL FN(logit_scale)(const gc_attention *s) { return (REAL)(1 / sqrt((double)s->D)); }

/* The queries [m, m + rows), divided by sqrt(D), so that logits need not be: (a1) */
static void FN(take_queries)(const gc_attention *s, gc_head h, ptrdiff_t m, ptrdiff_t rows, REAL *q)
{
    const REAL scale = FN(logit_scale)(s);
    for (ptrdiff_t i = 0; i < rows; i++) FN(scaled)(s->D, scale, FN(part_at)(s, s->qkv, h, m + i, 0), q + i * s->D);
}

/* A head's keys or values [k0, k1), packed: as rows or transposed. */
static void FN(pack_head)(const gc_attention *s, gc_head h, ptrdiff_t k0, ptrdiff_t k1, int part, int transposed, REAL *packed)
{
    const ptrdiff_t row = 3 * s->heads * s->D * s->step, keys = k1 - k0, D = s->D;
    const FN(unpacked) b = {.K = transposed ? D : keys, .N = transposed ? keys : D, .at = FN(part_at)(s, s->qkv, h, k0, part),
                            .row = transposed ? 1 : row, .column = transposed ? row : 1};
    FN(pack)(&b, NR, packed, 0, 1, NULL);
}

/* The keys of n from j on that query i sees. */
INLINE ptrdiff_t FN(seen)(const gc_attention *s, ptrdiff_t i, ptrdiff_t j, ptrdiff_t n)
{
    return s->causal ? gc_max(0, gc_min(n, i + 1 - j)) : n;
}

/* Elements [live, n) of a row are `value`. */
INLINE void FN(fill)(REAL *row, ptrdiff_t live, ptrdiff_t n, REAL value)
{
    for (ptrdiff_t j = live; j < n; j++) row[j] = value;
}

/* ==== forward =========================================================================================================== */

/* From the logits of the queries [m, m + rows) with the n keys from j on to the weights exp(logit - largest), and largest, sum
 * and the factor by which what was summed up before has to be multiplied: (a3). Keys that a query does not see have weight 0.
 * V rows have their sums side by side: transposed they are added up at once. */
static void FN(softmax_block)(const gc_attention *s, const FN(attention_scratch) *t, ptrdiff_t m, ptrdiff_t rows, ptrdiff_t j,
                              ptrdiff_t n)
{
    const VEC least = FN(v_set1)(-INFINITY);
    for (ptrdiff_t i0 = 0; i0 < rows; i0 += V) {
        const ptrdiff_t live_rows = gc_min(V, rows - i0);
        VEC found[V];
        for (ptrdiff_t i = 0; i < V; i++) found[i] = least;
        for (ptrdiff_t i = 0; i < live_rows; i++) {
            REAL *row = t->logits + (i0 + i) * LOGITS_ROW;
            const ptrdiff_t live = FN(seen)(s, m + i0 + i, j, n), end = (live + V - 1) / V * V;
            VEC largest = least;
            FN(fill)(row, live, end, -INFINITY);
            for (ptrdiff_t k = 0; k < end; k += V) largest = FN(v_max)(FN(v_load)(row + k), largest);
            found[i] = largest;
        }
        FN(v_transpose)(found);
        VEC largest = found[0];
        for (ptrdiff_t i = 1; i < V; i++) largest = FN(v_max)(found[i], largest);
        if (j) {
            const VEC before = FN(v_load)(t->largest + i0);
            largest = FN(v_max)(largest, before);
            FN(v_store)(t->factor + i0, FN(v_exp_negative)(FN(v_sub)(before, largest)));
        }
        FN(v_store)(t->largest + i0, largest);
        for (ptrdiff_t i = 0; i < live_rows; i++) {
            REAL *row = t->logits + (i0 + i) * LOGITS_ROW;
            const ptrdiff_t live = FN(seen)(s, m + i0 + i, j, n), end = (live + V - 1) / V * V;
            const VEC most = FN(v_set1)(t->largest[i0 + i]);
            VEC sum = FN(v_zero)();
            for (ptrdiff_t k = 0; k < end; k += V) {
                const VEC weight = FN(v_exp_negative)(FN(v_sub)(FN(v_load)(row + k), most));
                sum = FN(v_add)(sum, weight);
                FN(v_store)(row + k, weight);
            }
            FN(fill)(row, live, n, 0);
            found[i] = sum;
        }
        for (ptrdiff_t i = live_rows; i < V; i++) found[i] = FN(v_zero)();
        FN(v_transpose)(found);
        VEC sum = found[0];
        for (ptrdiff_t i = 1; i < V; i++) sum = FN(v_add)(sum, found[i]);
        if (j) sum = FN(v_fma)(FN(v_load)(t->sum + i0), FN(v_load)(t->factor + i0), sum);
        FN(v_store)(t->sum + i0, sum);
    }
}

/* The queries [m, m + rows) of a head, whose keys and values are packed. */
static void FN(attend)(const gc_attention *s, const FN(attention_scratch) *t, gc_head h, ptrdiff_t m, ptrdiff_t rows,
                       gc_watch *watch)
{
    const ptrdiff_t D = s->D, keys = keys_seen(s, h.length, m + rows);
    const FN(packed) packed_keys = {D, h.length, t->keys}, packed_values = {h.length, D, t->values};
    FN(take_queries)(s, h, m, rows, t->q);
    for (ptrdiff_t j = 0; j < keys; j += KEYS) {
        const ptrdiff_t n = gc_min(KEYS, keys - j);
        if (gc_stop_after(watch, 2.0 * (double)(rows * n) * (double)D)) return;
        const FN(product) logits = {.K = D, .a = t->q, .a_row = D, .a_column = 1, .c = t->logits, .c_row = LOGITS_ROW};
        FN(part_product)(rows, n, &logits, packed_keys, 0, j); /* (a2) */
        FN(softmax_block)(s, t, m, rows, j, n);                /* (a3) */
        if (j)
            for (ptrdiff_t i = 0; i < rows; i++)
                if (t->factor[i] != 1) FN(scaled)(D, t->factor[i], t->y + i * D, t->y + i * D);
        const FN(product) y = {.K = n, .a = t->logits, .a_row = LOGITS_ROW, .a_column = 1, .c = t->y, .c_row = D,
                               .start = j ? t->y : NULL, .start_row = D};
        FN(part_product)(rows, D, &y, packed_values, j, 0); /* (a4) */
    }
    for (ptrdiff_t i = 0; i < rows; i++) {
        FN(scaled)(D, 1 / t->sum[i], t->y + i * D, FN(head_at)(s, s->y, h, m + i, D)); /* (a5) */
        *FN(head_at)(s, s->largest, h, m + i, 1) = t->largest[i];
        *FN(head_at)(s, s->sum, h, m + i, 1) = t->sum[i];
    }
}

/* A thread has blocks of queries that follow each other, so it packs a head's keys and values once. */
static void FN(attention_forward_body)(void *arg, gc_team *team, int thread)
{
    const FN(attention_plan) *plan = arg;
    const gc_attention *s = plan->s;
    FN(attention_scratch) t;
    gc_watch watch = {team, thread, 0, 0};
    FN(place_scratch)(&t, plan, plan->scratch + (size_t)thread * plan->scratch_size);
    double whole = 0;
    for (int pass = 0; pass < 2; pass++) {
        gc_portion portion = portion_of(whole, team, thread);
        for (gc_head h = {.b = 0}; h.b < s->B; h.b++)
            for (h.length = s->lengths[h.b], h.head = 0; h.head < s->heads; h.head++) {
                const ptrdiff_t blocks = (h.length + QUERIES - 1) / QUERIES;
                int packed = 0;
                for (ptrdiff_t block = 0; block < blocks; block++) {
                    const ptrdiff_t m = gc_cut(h.length, block, blocks), end = gc_cut(h.length, block + 1, blocks);
                    const double work = logits_of(s, m, end, 0, h.length);
                    if (!pass) whole += work;
                    if (!pass || !is_mine(&portion, work)) continue;
                    if (!packed) {
                        FN(pack_head)(s, h, 0, h.length, 1, 1, t.keys);
                        FN(pack_head)(s, h, 0, h.length, 2, 0, t.values);
                        packed = 1;
                    }
                    FN(attend)(s, &t, h, m, end - m, &watch);
                    if (watch.stop) return;
                }
            }
    }
}

static int FN(attention_forward)(const gc_attention *s)
{
    FN(attention_plan) plan;
    FN(plan_attention)(&plan, s);
    return gc_parallel(attention_threads(s), 0, FN(attention_forward_body), &plan);
}

/* ==== backward ========================================================================================================== */

/* dL/dY of the queries, divided by their sums so that weights need not be, and factor = the product of each row with Y: inverts
 * (a5) and, as d(softmax) has it, the sums of (a3). */
static void FN(take_outputs)(const gc_attention *s, const FN(attention_scratch) *t, gc_head h, ptrdiff_t m, ptrdiff_t rows)
{
    const ptrdiff_t D = s->D;
    for (ptrdiff_t i0 = 0; i0 < rows; i0 += V) {
        VEC found[V];
        for (ptrdiff_t i = 0; i < V; i++) {
            found[i] = FN(v_zero)();
            if (i0 + i >= rows) continue;
            const REAL *from = FN(head_at)(s, s->dy, h, m + i0 + i, D), *y = FN(head_at)(s, s->y, h, m + i0 + i, D);
            REAL *dy = t->dy + (i0 + i) * D;
            const VEC inverse = FN(v_set1)(1 / *FN(head_at)(s, s->sum, h, m + i0 + i, 1));
            for (ptrdiff_t k = 0; k < D; k += V) {
                const VEC d = FN(v_mul)(FN(v_get)(from + k, D - k), inverse);
                found[i] = FN(v_fma)(d, FN(v_get)(y + k, D - k), found[i]);
                FN(v_put)(dy + k, d, D - k);
            }
            t->largest[i0 + i] = *FN(head_at)(s, s->largest, h, m + i0 + i, 1);
        }
        FN(v_transpose)(found);
        VEC sum = found[0];
        for (ptrdiff_t i = 1; i < V; i++) sum = FN(v_add)(sum, found[i]);
        FN(v_store)(t->factor + i0, sum);
    }
}

/* From logits to weights, and from the gradients with respect to these to those with respect to the logits: inverts (a3). */
static void FN(softmax_back)(const gc_attention *s, const FN(attention_scratch) *t, ptrdiff_t m, ptrdiff_t rows, ptrdiff_t j,
                             ptrdiff_t n)
{
    for (ptrdiff_t i = 0; i < rows; i++) {
        REAL *row = t->logits + i * LOGITS_ROW, *d = t->dlogits + i * LOGITS_ROW;
        const ptrdiff_t live = FN(seen)(s, m + i, j, n), end = (live + V - 1) / V * V;
        const VEC largest = FN(v_set1)(t->largest[i]), mean = FN(v_set1)(t->factor[i]);
        FN(fill)(row, live, end, -INFINITY);
        FN(fill)(d, live, end, 0);
        for (ptrdiff_t k = 0; k < end; k += V) {
            const VEC weight = FN(v_exp_negative)(FN(v_sub)(FN(v_load)(row + k), largest));
            FN(v_store)(row + k, weight);
            FN(v_store)(d + k, FN(v_mul)(weight, FN(v_sub)(FN(v_load)(d + k), mean)));
        }
        FN(fill)(row, live, n, 0);
        FN(fill)(d, live, n, 0);
    }
}

/* What the queries [m, m + rows) add to dk and dv of the keys [k0, k1), which are packed, and their dq from these keys. */
static void FN(attend_back)(const gc_attention *s, const FN(attention_scratch) *t, gc_head h, ptrdiff_t m, ptrdiff_t rows,
                            ptrdiff_t k0, ptrdiff_t k1, gc_watch *watch)
{
    const ptrdiff_t D = s->D, end = gc_min(k1, keys_seen(s, h.length, m + rows)), keys = k1 - k0;
    const FN(packed) packed_keys = {D, keys, t->keys}, packed_values = {D, keys, t->values}, key_rows = {keys, D, t->key_rows};
    const FN(packed) q = {rows, D, t->packed_q}, dy = {rows, D, t->packed_dy};
    FN(take_queries)(s, h, m, rows, t->q);
    FN(take_outputs)(s, t, h, m, rows);
    const FN(unpacked) q_rows = {.K = rows, .N = D, .at = t->q, .row = D, .column = 1};
    const FN(unpacked) dy_rows = {.K = rows, .N = D, .at = t->dy, .row = D, .column = 1};
    FN(pack)(&q_rows, NR, t->packed_q, 0, 1, NULL);
    FN(pack)(&dy_rows, NR, t->packed_dy, 0, 1, NULL);
    for (ptrdiff_t j = k0; j < end; j += KEYS) {
        const ptrdiff_t n = gc_min(KEYS, end - j), at = j - k0;
        if (gc_stop_after(watch, 5.0 * (double)(rows * n) * (double)D)) return;
        const FN(product) logits = {.K = D, .a = t->q, .a_row = D, .a_column = 1, .c = t->logits, .c_row = LOGITS_ROW};
        FN(part_product)(rows, n, &logits, packed_keys, 0, at);
        const FN(product) dweights = {.K = D, .a = t->dy, .a_row = D, .a_column = 1, .c = t->dlogits, .c_row = LOGITS_ROW};
        FN(part_product)(rows, n, &dweights, packed_values, 0, at); /* inverts (a4) for the weights */
        FN(softmax_back)(s, t, m, rows, j, n);
        REAL *to = t->dv + at * D;
        const FN(product) dv = {.K = rows, .a = t->logits, .a_row = 1, .a_column = LOGITS_ROW, .c = to, .c_row = D, .start = to,
                                .start_row = D};
        FN(part_product)(n, D, &dv, dy, 0, 0); /* inverts (a4) for V */
        const FN(product) dq = {.K = n, .a = t->dlogits, .a_row = LOGITS_ROW, .a_column = 1, .c = t->y, .c_row = D,
                                .start = j > k0 ? t->y : NULL, .start_row = D};
        FN(part_product)(rows, D, &dq, key_rows, at, 0); /* inverts (a2) for Q */
        to = t->dk + at * D;
        const FN(product) dk = {.K = rows, .a = t->dlogits, .a_row = 1, .a_column = LOGITS_ROW, .c = to, .c_row = D, .start = to,
                                .start_row = D};
        FN(part_product)(n, D, &dk, q, 0, 0); /* inverts (a2) for K */
    }
}

/* Where part `part` of the keys leaves dq of a head's step t. */
INLINE REAL *FN(dq_at)(const FN(attention_plan) *plan, gc_head h, ptrdiff_t t, ptrdiff_t part)
{
    const gc_attention *s = plan->s;
    if (!plan->dq) return FN(part_at)(s, s->dqkv, h, t, 0);
    return FN(head_at)(s, plan->dq + part * s->S * s->heads * s->D, h, t, s->D);
}

/* All queries of a head with a part of its keys. */
static void FN(head_back)(const FN(attention_plan) *plan, const FN(attention_scratch) *t, gc_head h, ptrdiff_t part,
                          gc_watch *watch)
{
    const gc_attention *s = plan->s;
    const ptrdiff_t D = s->D, blocks = (h.length + QUERIES - 1) / QUERIES;
    const REAL scale = FN(logit_scale)(s);
    ptrdiff_t k0, k1;
    part_of_keys(h.length, part, plan->parts, &k0, &k1);
    FN(pack_head)(s, h, k0, k1, 1, 1, t->keys);
    FN(pack_head)(s, h, k0, k1, 1, 0, t->key_rows);
    FN(pack_head)(s, h, k0, k1, 2, 1, t->values);
    FN(fill)(t->dk, 0, (k1 - k0) * D, 0);
    FN(fill)(t->dv, 0, (k1 - k0) * D, 0);
    for (ptrdiff_t block = 0; block < blocks; block++) {
        const ptrdiff_t m = gc_cut(h.length, block, blocks), rows = gc_cut(h.length, block + 1, blocks) - m;
        if (keys_seen(s, h.length, m + rows) > k0 && k1 > k0)
            FN(attend_back)(s, t, h, m, rows, k0, k1, watch);
        else
            FN(fill)(t->y, 0, rows * D, 0);
        if (watch->stop) return;
        for (ptrdiff_t i = 0; i < rows; i++) /* inverts (a1) */
            FN(scaled)(D, scale, t->y + i * D, FN(dq_at)(plan, h, m + i, part));
    }
    for (ptrdiff_t j = k0; j < k1; j++) {
        FN(scaled)(D, 1, t->dk + (j - k0) * D, FN(part_at)(s, s->dqkv, h, j, 1));
        FN(scaled)(D, 1, t->dv + (j - k0) * D, FN(part_at)(s, s->dqkv, h, j, 2));
    }
}

/* dq as the sum of what the parts of the keys have left, in their order. */
static void FN(sum_parts)(const FN(attention_plan) *plan, gc_team *team, int thread, gc_watch *watch)
{
    const gc_attention *s = plan->s;
    const ptrdiff_t D = s->D;
    for (gc_head h = {.b = 0}; h.b < s->B; h.b++) {
        ptrdiff_t first, end;
        gc_share(s->lengths[h.b], team, thread, &first, &end);
        for (ptrdiff_t t = first; t < end; t++) {
            if (gc_stop_after(watch, (double)(MOVED * plan->parts * s->heads) * (double)D)) return;
            for (h.head = 0; h.head < s->heads; h.head++) {
                REAL *to = FN(part_at)(s, s->dqkv, h, t, 0);
                for (ptrdiff_t k = 0; k < D; k += V) {
                    VEC sum = FN(v_get)(FN(dq_at)(plan, h, t, 0) + k, D - k);
                    for (ptrdiff_t part = 1; part < plan->parts; part++)
                        sum = FN(v_add)(sum, FN(v_get)(FN(dq_at)(plan, h, t, part) + k, D - k));
                    FN(v_put)(to + k, sum, D - k);
                }
            }
        }
    }
}

static void FN(attention_backward_body)(void *arg, gc_team *team, int thread)
{
    const FN(attention_plan) *plan = arg;
    const gc_attention *s = plan->s;
    FN(attention_scratch) t;
    gc_watch watch = {team, thread, 0, 0};
    FN(place_scratch)(&t, plan, plan->scratch + (size_t)thread * plan->scratch_size);
    double whole = 0;
    for (int pass = 0; pass < 2 && !watch.stop; pass++) {
        gc_portion portion = portion_of(whole, team, thread);
        for (gc_head h = {.b = 0}; h.b < s->B; h.b++)
            for (h.length = s->lengths[h.b], h.head = 0; h.head < s->heads; h.head++)
                for (ptrdiff_t part = 0; part < plan->parts && !watch.stop; part++) {
                    ptrdiff_t k0, k1;
                    part_of_keys(h.length, part, plan->parts, &k0, &k1);
                    const double work = logits_of(s, 0, h.length, k0, k1) + 1;
                    if (!pass) whole += work;
                    if (pass && is_mine(&portion, work)) FN(head_back)(plan, &t, h, part, &watch);
                }
    }
    if (!plan->dq || gc_wait(&watch)) return;
    FN(sum_parts)(plan, team, thread, &watch);
}

static int FN(attention_backward)(const gc_attention *s)
{
    FN(attention_plan) plan;
    FN(plan_attention)(&plan, s);
    return gc_parallel(attention_threads(s), 0, FN(attention_backward_body), &plan);
}
#undef LOGITS_ROW
#undef ROWS

static const gc_attention_kernels FN(attention_kernels) = {FN(attention_work), FN(attention_forward), FN(attention_backward)};
