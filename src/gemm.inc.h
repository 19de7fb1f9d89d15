/* The matrix products of all kernels: C = start + A B, tile by tile.
 *
 * Every element of C is one sum over k in ascending order (of DEPTH in gemm, of a block in gemm_tn), whatever the tile it falls
 * in: so its bits depend neither on the thread that computes it nor on how the rows were split.
 */
#ifndef REAL
#error "gemm.inc.h needs real.inc.h and simd.inc.h"
#endif

/* A tile is as many rows of two vectors as its sums fill the registers, beside two vectors of B and one of A: four vectors
 * wide it would read B twice as often, and L2 cannot give it that fast (bench/NOTES.md). The three gates of a GRU are one
 * tile, and of LOW rows two panels side by side are, or there were too few sums to hide the latency. */
#define NV 2
#define NR (NV * V) /* columns of a panel */
#define NW 4        /* vectors of a tile at most */
#ifndef GC_GEMM_BLOCKS
#define GC_GEMM_BLOCKS
enum {
    BLOCK = 112,                    /* rows of A at most that stay in L2 while all panels of gemm pass over them */
    COLUMNS = 48                    /* of A that gemm_tn packs at once: eight tiles use a panel of B while it is in L1 */
};
#endif
/* A tile's operands. A[i, k] = a[i * a_row + k * a_column], B[k, j] = b[k * b_row + j] (of four vectors that are more than a
 * panel the second half is in the panel behind), C[i, j] = c[i * c_row + j] and start[i, j] = start[i * start_row + j]: a
 * bias with start_row 0, C itself to add to it, NULL for zeros. Meanwhile what is needed later is fetched from memory, a
 * cache line from `ahead` on for every k, for whole tiles up to ahead_end, and another from `next` on. */
typedef struct {
    ptrdiff_t K;
    const REAL *a;
    ptrdiff_t a_row, a_column;
    const REAL *b;
    ptrdiff_t b_row, b_panel; /* elements from one row to the next, and from one panel of NR columns to the next */
    REAL *c;
    ptrdiff_t c_row;
    const REAL *start;
    ptrdiff_t start_row;
    uintptr_t ahead, ahead_end;
    ptrdiff_t ahead_k, ahead_tile; /* bytes from one line to the next; from one tile's first line to the next one's */
    uintptr_t next;                /* the packed panel that is used after this one; `panel` sets next_k */
    ptrdiff_t next_k;
} FN(product);

/* Columns of B of which a tile takes up to four vectors: two panels side by side for so few rows that there were too few sums
 * otherwise, and where both stay in L1 as long as all tiles need them. */
INLINE ptrdiff_t FN(columns_at_once)(ptrdiff_t M, ptrdiff_t K)
{
    return M <= LOW || K * 2 * NR * (ptrdiff_t)sizeof(REAL) <= PAIR_BYTES ? 2 * NR : NR;
}

/* How the packed panel that comes next is fetched: near the registers where vectors are narrow. Where they are wide a panel
 * fills L1, so it goes to L2, and a matrix that stays there by itself is left alone. */

/* The panel at `next` of a packed matrix (K, N), if it is to be fetched. */
INLINE uintptr_t FN(next_panel)(const REAL *next, ptrdiff_t K, ptrdiff_t N)
{
    return K * N * (ptrdiff_t)sizeof(REAL) > FETCH_BYTES ? (uintptr_t)next : 0;
}

/* C = start + the sums of a tile, whose last vector has `last` elements. */
INLINE void FN(finish)(const int rows, const int vectors, const ptrdiff_t last, VEC sum[MR][NW], const REAL *start,
                       ptrdiff_t start_row, REAL *c, ptrdiff_t c_row)
{
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++, start += start_row, c += c_row) {
        ADDRESS(start);
        ADDRESS(c);
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) {
            const ptrdiff_t live = v == vectors - 1 ? last : V;
            const VEC from = FN(v_get)(start + v * V, live);
            FN(v_put)(c + v * V, FN(v_add)(from, sum[i][v]), live);
        }
    }
}

/* C[rows, n] for n columns that fill `vectors` vectors. The first two are constants where this is inlined: the sums live in
 * registers. */
INLINE void FN(tile)(const int rows, const int vectors, ptrdiff_t n, const FN(product) *p)
{
    const ptrdiff_t b_row = p->b_row, last = n - (vectors - 1) * V;
    const ptrdiff_t start_row = p->start_row, ahead_k = p->ahead ? p->ahead_k : 0;
    const REAL *b = p->b, *start = p->start, *from = start;
    uintptr_t ahead = p->ahead ? p->ahead : (uintptr_t)b, next = p->next;
    const ptrdiff_t behind = vectors == 4 ? p->b_panel - NR : 0, next_k = p->next_k;
    const ptrdiff_t a_column = p->a_column * (ptrdiff_t)sizeof(REAL);
    ptrdiff_t row = p->a_row * (ptrdiff_t)sizeof(REAL), rows_3 = 3 * row;
    const char *a[] = {(const char *)p->a, (const char *)p->a + 5 * row, (const char *)p->a + 10 * row};
    VEC sum[MR][NW];
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++, from += start_row) {
        ADDRESS(from);
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) {
            sum[i][v] = FN(v_zero)();
            if (v * V * sizeof(REAL) % 64 == 0) PREFETCH(from + v * V);
        }
    }
    for (ptrdiff_t k = p->K; k > 0; k--) {
        VEC bk[NW];
        ADDRESS(row);
        ADDRESS(rows_3);
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) bk[v] = FN(v_load)(b + v * V + (v >= NV ? behind : 0));
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++) {
            const REAL *element = (const REAL *)(a[i / 5] + (i % 5 == 3 ? rows_3 : i % 5 * row));
            VEC aik = FN(v_set1)(*element);
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++) sum[i][v] = FN(v_fma)(aik, bk[v], sum[i][v]);
        }
        PREFETCH((const void *)ahead);
        ahead += (uintptr_t)ahead_k;
        if (rows > LOW) {
            PREFETCH_NEXT((const void *)next);
            next += (uintptr_t)next_k;
        }
#pragma GCC unroll 3
        for (int i = 0; i < (rows + 4) / 5; i++) a[i] += a_column;
        b += b_row;
    }
    if (last == V) /* as it mostly is: no test for each row */
        FN(finish)(rows, vectors, V, sum, start, start_row, p->c, p->c_row);
    else
        FN(finish)(rows, vectors, last, sum, start, start_row, p->c, p->c_row);
}

/* A function for each tile: in a large function for all of them registers of one are spilled for another's sake. */
#define TILE(rows, vectors)                                                                                                    \
    static void FN(tile_##rows##x##vectors)(ptrdiff_t n, const FN(product) * p) { FN(tile)(rows, vectors, n, p); }
#define TILE_NAME(rows, vectors) FN(tile_##rows##x##vectors),
#define UP_TO_3(DO, vectors) DO(1, vectors) DO(2, vectors) DO(3, vectors)
#define UP_TO_4(DO, vectors) UP_TO_3(DO, vectors) DO(4, vectors)
#define UP_TO_5(DO, vectors) UP_TO_4(DO, vectors) DO(5, vectors)
#define UP_TO_6(DO, vectors) UP_TO_5(DO, vectors) DO(6, vectors)
#define UP_TO_7(DO, vectors) UP_TO_6(DO, vectors) DO(7, vectors)
#define UP_TO_9(DO, vectors) UP_TO_7(DO, vectors) DO(8, vectors) DO(9, vectors)
#define UP_TO_10(DO, vectors) UP_TO_9(DO, vectors) DO(10, vectors)
#define UP_TO_14(DO, vectors) UP_TO_10(DO, vectors) DO(11, vectors) DO(12, vectors) DO(13, vectors) DO(14, vectors)
#define UP_TO(n) GC_JOIN(UP_TO_, n)
UP_TO(MR)(TILE, 1) UP_TO(MR)(TILE, 2) UP_TO(MR_3)(TILE, 3) UP_TO(LOW)(TILE, 4)

/* C[rows, n] for n <= NW * V columns. */
INLINE void FN(tile_of)(ptrdiff_t rows, ptrdiff_t n, const FN(product) *p)
{
    static void (*const kernels[NW][MR])(ptrdiff_t, const FN(product) *) = {
        {UP_TO(MR)(TILE_NAME, 1)}, {UP_TO(MR)(TILE_NAME, 2)}, {UP_TO(MR_3)(TILE_NAME, 3)}, {UP_TO(LOW)(TILE_NAME, 4)}};
    kernels[(n - 1) / V][rows - 1](n, p);
}
#undef TILE
#undef TILE_NAME
#undef UP_TO_3
#undef UP_TO_4
#undef UP_TO_5
#undef UP_TO_6
#undef UP_TO_7
#undef UP_TO_9
#undef UP_TO_10
#undef UP_TO_14
#undef UP_TO

/* C[M, n] of a panel: tiles of about equal heights, because a low one hides less of the latency. At most MR rows for NR
 * columns, MR_3 for three vectors, LOW for four that are two panels. */
INLINE void FN(panel)(ptrdiff_t M, ptrdiff_t n, FN(product) *whole)
{
    const ptrdiff_t most = n <= NR ? MR : n <= 3 * V ? MR_3 : LOW, tiles = (M + most - 1) / most;
    static const REAL zeros[NW * V];
    FN(product) p = *whole;
    if (!p.start) p.start = zeros, p.start_row = 0;
    const REAL *start = p.start;
    if (p.next) /* shared out between the tiles */
        p.next_k = gc_min(64, gc_max(16, (n + V - 1) / V * V * (ptrdiff_t)sizeof(REAL) / gc_max(tiles, 1)));
    else
        p.next = (uintptr_t)p.a, p.next_k = 0;
    for (ptrdiff_t i = 0; i < tiles; i++) {
        ptrdiff_t m = M * i / tiles, rows = M * (i + 1) / tiles - m;
        p.a = whole->a + m * p.a_row;
        p.c = whole->c + m * p.c_row;
        p.start = start + m * p.start_row;
        if (p.ahead + (uintptr_t)(p.K * p.ahead_k) > p.ahead_end) p.ahead = 0;
        FN(tile_of)(rows, n, &p);
        if (p.ahead) p.ahead += (uintptr_t)p.ahead_tile;
        p.next += (uintptr_t)(p.K * p.next_k);
    }
    whole->ahead = p.ahead;
}

/* ---- B packed into panels ---------------------------------------------------------------------------------------------- */

/* A (K, N) matrix is packed as panels [K][NR], the last one as narrow as whole vectors allow and filled up with zeros; the
 * panel of column j, a multiple of NR, begins at element j * K. */
INLINE ptrdiff_t FN(packed_size)(ptrdiff_t K, ptrdiff_t N) { return K * ((N + V - 1) / V * V); }

/* to[k * to_row + j] = from[j * from_row + k] for j < n <= V, and 0 up to V: V columns of packed B from rows. */
static void FN(transpose)(ptrdiff_t K, ptrdiff_t n, const REAL *from, ptrdiff_t from_row, REAL *to, ptrdiff_t to_row)
{
    for (ptrdiff_t k = 0; k < K; k += V) {
        VEC rows[V];
#pragma GCC unroll 16
        for (int j = 0; j < V; j++) rows[j] = j < n ? FN(v_get)(from + j * from_row + k, K - k) : FN(v_zero)();
        FN(v_transpose)(rows);
        if (K - k >= V) {
#pragma GCC unroll 16
            for (int i = 0; i < V; i++) FN(v_store)(to + (k + i) * to_row, rows[i]);
        } else {
            for (int i = 0; i < K - k; i++) FN(v_store)(to + (k + i) * to_row, rows[i]);
        }
    }
}

/* Pack this thread's share of B[k, n] = src[k * row + n * column], where one of the two is 1. If that is column, the rows
 * begin with first_row and go round. Panels of `nr` columns: NR, WIDE for gemm_tn. Returns early if it is to stop, which
 * cannot be where watch is NULL. */
static void FN(pack)(ptrdiff_t K, ptrdiff_t N, ptrdiff_t nr, const REAL *src, ptrdiff_t row, ptrdiff_t column,
                     ptrdiff_t first_row, REAL *packed, int thread, int n_threads, gc_watch *watch)
{
    ptrdiff_t panels = (N + nr - 1) / nr;
    for (ptrdiff_t p = panels * thread / n_threads; p < panels * (thread + 1) / n_threads; p++) {
        if (watch && stopped(watch, (double)K * (double)(MOVED * nr))) return;
        ptrdiff_t n = gc_min(nr, N - p * nr), width = (n + V - 1) / V * V;
        const REAL *from = src + p * nr * column;
        REAL *to = packed + p * nr * K;
        if (row == 1) {
            for (ptrdiff_t j = 0; j < n; j += V) FN(transpose)(K, gc_min(V, n - j), from + j * column, column, to + j, width);
            continue;
        }
        for (ptrdiff_t k = 0; k < K; k++, to += width) {
            const REAL *from_k = from + (k + first_row < K ? k + first_row : k + first_row - K) * row;
            for (ptrdiff_t j = 0; j < n; j += V) FN(v_store)(to + j, FN(v_get)(from_k + j, n - j));
        }
    }
}

/* Columns [j0, j1) of C[M, N] = start + A B with A (M, K) in rows a_row apart and B packed; j0 is a multiple of V. B is walked
 * through once for each block of rows, to and fro, the first time from its end if `back`: what L2 has kept of one walk is
 * where the next begins. Meanwhile so many elements from `ahead` on are fetched. Returns early if it is to stop. */
static void FN(gemm)(ptrdiff_t M, ptrdiff_t j0, ptrdiff_t j1, ptrdiff_t N, ptrdiff_t K, const REAL *a, ptrdiff_t a_row,
                     const REAL *packed, int back, REAL *c, ptrdiff_t c_row, const REAL *start, ptrdiff_t start_row,
                     const REAL *ahead, ptrdiff_t n_ahead, gc_watch *watch)
{
    if (j0 == j1) return; /* of rows that hold nothing there may be more than can be counted */
    uintptr_t line = (uintptr_t)ahead, end = line + (uintptr_t)n_ahead * sizeof(REAL);
    const ptrdiff_t blocks = (M + BLOCK - 1) / BLOCK, depths = gc_max(1, (K + DEPTH - 1) / DEPTH);
    const ptrdiff_t wide = FN(columns_at_once)(M, K), first = j0 / NR * NR, steps = (j1 - first + wide - 1) / wide;
    const ptrdiff_t last = (j1 - 1) / NR * NR;
    for (ptrdiff_t block = 0; block < blocks; block++, back = !back) {
        const ptrdiff_t m = cut(M, block, blocks), rows = cut(M, block + 1, blocks) - m;
        for (ptrdiff_t i = 0; i < steps; i++) {
            const ptrdiff_t at = first + (back ? steps - 1 - i : i) * wide, j_end = gc_min(j1, at + wide);
            if (stopped(watch, (double)(rows * wide) * (double)K)) return;
            for (ptrdiff_t j = gc_max(j0, at), n; j < j_end; j += n) {
                const ptrdiff_t panel = j / NR * NR, width = (gc_min(NR, N - panel) + V - 1) / V * V;
                const ptrdiff_t next_panel = back ? gc_max(panel - NR, first) : gc_min(panel + NR, last);
                REAL *to = c + m * c_row + j;
                n = j_end - j <= NR + V ? gc_min(panel + NR, j_end) - j : j_end - j;
                for (ptrdiff_t depth = 0; depth < depths; depth++) {
                    const ptrdiff_t k0 = cut(K, depth, depths), depth_k = cut(K, depth + 1, depths) - k0;
                    const REAL *b = packed + panel * K + k0 * width + j % NR;
                    const REAL *next = depth < depths - 1 ? b + width * depth_k : packed + next_panel * K;
                    FN(product) p = {depth_k, a + m * a_row + k0, a_row, 1, b, width, NR * K, to, c_row,
                                     depth ? to : start ? start + m * start_row + j : NULL, depth ? c_row : start_row,
                                     line, end, 64, depth_k * 64, FN(next_panel)(next, K, N), 0};
                    FN(panel)(rows, n, &p);
                    line = p.ahead;
                }
            }
        }
    }
}

/* ---- sums over many rows ------------------------------------------------------------------------------------------------ */

/* A tile reads MR elements of each row of A^T. Where the registers hold few vectors they are packed as stripes of just MR
 * columns, so that nothing else comes to L1 beside the panel of B; V elements are left between two stripes, because the last
 * vector of a row reaches over its end. Stores of whole cache lines that overlap would cost more than they save. */
#define STRIPE_SIZE(kc) ((kc)*STRIPE + V)

/* Elements of scratch that each thread needs for gemm_tn. */
INLINE ptrdiff_t FN(gemm_tn_work)(void)
{
    return NC_BYTES / (ptrdiff_t)sizeof(REAL) + COLUMNS / STRIPE * STRIPE_SIZE(KC);
}

/* Pack n <= COLUMNS columns of A (K, n) as stripes, and add to `sums`, unless it is NULL, each column's sum. */
INLINE void FN(pack_columns)(ptrdiff_t K, const ptrdiff_t n, const REAL *a, ptrdiff_t a_row, REAL *packed, REAL *sums)
{
    VEC sum[COLUMNS / V];
    for (ptrdiff_t j = 0; j < n; j += V) sum[j / V] = FN(v_zero)();
    for (ptrdiff_t k = 0; k < K; k++, a += a_row) {
        for (ptrdiff_t s = 0; s < n; s += STRIPE) {
            REAL *to = packed + s / STRIPE * STRIPE_SIZE(K) + k * STRIPE;
            for (ptrdiff_t i = 0; i < gc_min(STRIPE, n - s); i += V) FN(v_store)(to + i, FN(v_get)(a + s + i, n - s - i));
        }
        for (ptrdiff_t j = 0; j < n; j += V) sum[j / V] = FN(v_add)(sum[j / V], FN(v_get)(a + j, n - j));
    }
    for (ptrdiff_t j = 0; sums && j < n; j += V) FN(v_put)(sums + j, FN(v_add)(FN(v_get)(sums + j, n - j), sum[j / V]), n - j);
}

static void FN(pack_stripes)(ptrdiff_t K, ptrdiff_t n, const REAL *a, ptrdiff_t a_row, REAL *packed, REAL *sums)
{
    if (n == COLUMNS)
        FN(pack_columns)(K, COLUMNS, a, a_row, packed, sums);
    else
        FN(pack_columns)(K, n, a, a_row, packed, sums);
}

/* Columns [m0, m1) of C[M, N] += A^T B and, unless NULL, of sums[m] += the sum over k of A[k, m], with A (K, M) and
 * B (K, N). The sums are made in blocks of at most KC rows. Returns early if it is to stop. */
static void FN(gemm_tn)(ptrdiff_t m0, ptrdiff_t m1, ptrdiff_t N, ptrdiff_t K, const REAL *a, ptrdiff_t a_row, const REAL *b,
                        ptrdiff_t b_row, REAL *c, ptrdiff_t c_row, REAL *sums, REAL *work, gc_watch *watch)
{
    const ptrdiff_t blocks = (K + KC - 1) / KC, line = 64 / (ptrdiff_t)sizeof(REAL);
    REAL *packed_a = work + NC_BYTES / (ptrdiff_t)sizeof(REAL);
    if (m0 == m1) return;
    for (ptrdiff_t block = 0; block < blocks; block++) {
        const ptrdiff_t k0 = cut(K, block, blocks), kc = cut(K, block + 1, blocks) - k0;
        const ptrdiff_t NC = gc_max(1, NC_BYTES / (ptrdiff_t)sizeof(REAL) / kc / WIDE) * WIDE;
        for (ptrdiff_t j0 = 0; j0 < gc_max(N, 1); j0 += NC) { /* once without columns, for the sums */
            const ptrdiff_t columns = gc_min(NC, N - j0);
            FN(pack)(kc, columns, WIDE, b + k0 * b_row + j0, b_row, 1, 0, work, 0, 1, watch);
            for (ptrdiff_t m = m0; m < m1; m += COLUMNS) {
                const ptrdiff_t rows = gc_min(COLUMNS, m1 - m);
                if (stopped(watch, (double)(rows * columns) * (double)kc)) return;
                const REAL *from = a + k0 * a_row + m;
                const uintptr_t ahead_end = (uintptr_t)(from + kc * a_row + 2 * COLUMNS - 1);
                FN(pack_stripes)(kc, rows, from, a_row, packed_a, sums && !j0 ? sums + m : NULL);
                for (ptrdiff_t j = 0; j < columns; j += WIDE) {
                    const ptrdiff_t n = gc_min(WIDE, columns - j);
                    for (ptrdiff_t i = 0; i < rows; i += STRIPE) {
                        REAL *to = c + (m + i) * c_row + j0 + j;
                        /* the columns of A that come next, a line of their rows for each tile */
                        const uintptr_t ahead = j ? 0 : (uintptr_t)(from + COLUMNS + i / STRIPE * line);
                        FN(product) p = {kc, packed_a + i / STRIPE * STRIPE_SIZE(kc), 1, STRIPE, work + j * kc,
                                         (n + V - 1) / V * V, NR, to, c_row, to, c_row, ahead, ahead_end,
                                         a_row * (ptrdiff_t)sizeof(REAL), 64, 0, 0};
                        FN(panel)(gc_min(STRIPE, rows - i), n, &p);
                    }
                }
            }
        }
    }
}
