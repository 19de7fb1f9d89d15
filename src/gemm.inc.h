/* The matrix products of all kernels: C = start + A B, tile by tile.
 *
 * Every element of C is one sum over k in ascending order (within a block of rows in gemm_tn), whatever the tile it falls
 * in: so its bits depend neither on the thread that computes it nor on how the rows were split.
 */
#ifndef REAL
#error "gemm.inc.h needs real.inc.h and simd.inc.h"
#endif

#define MR GC_MICRO_ROWS /* rows of a tile; with NV vectors each its sums fill the registers */
#define NV 4             /* vectors of a row */
#define NR (NV * V)      /* columns of a panel */
#ifndef GC_GEMM_BLOCKS
#define GC_GEMM_BLOCKS
enum {
    KC = 384,              /* rows that one block of gemm_tn sums at most */
    NC_BYTES = 384 * 1024 /* of B in such a block, packed: it stays in L2 beside a panel of A */
};
#endif

/* A tile's operands. A[i, k] = a[i * a_row + k * a_column], B[k, j] = b[k * b_row + j], C[i, j] = c[i * c_row + j] and
 * start[i, j] = start[i * start_row + j]: a bias with start_row 0, C itself to add to it, NULL for zeros. Meanwhile what is
 * needed later is fetched from memory, a cache line from `ahead` on for every k, for whole tiles up to ahead_end. */
typedef struct {
    ptrdiff_t K;
    const REAL *a;
    ptrdiff_t a_row, a_column;
    const REAL *b;
    ptrdiff_t b_row;
    REAL *c;
    ptrdiff_t c_row;
    const REAL *start;
    ptrdiff_t start_row;
    uintptr_t ahead, ahead_end;
    ptrdiff_t ahead_k, ahead_tile; /* bytes from one line to the next; from one tile's first line to the next one's */
} FN(product);

/* C[rows, n] for n columns that fill `vectors` vectors. The first two are constants where this is inlined: the sums live in
 * registers. */
INLINE void FN(tile)(const int rows, const int vectors, ptrdiff_t n, const FN(product) *p)
{
    const ptrdiff_t a_row = p->a_row, a_column = p->a_column, b_row = p->b_row, last = n - (vectors - 1) * V;
    const ptrdiff_t ahead_k = p->ahead ? p->ahead_k : 0;
    const REAL *a = p->a, *b = p->b;
    uintptr_t ahead = p->ahead ? p->ahead : (uintptr_t)a;
    VEC sum[MR][NV];
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) {
            sum[i][v] = FN(v_zero)();
            if (p->start) PREFETCH(p->start + i * p->start_row + v * V);
        }
    for (ptrdiff_t k = p->K; k > 0; k--) {
        VEC bk[NV];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) bk[v] = FN(v_load)(b + v * V);
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++) {
            VEC aik = FN(v_set1)(a[i * a_row]);
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++) sum[i][v] = FN(v_fma)(aik, bk[v], sum[i][v]);
        }
        PREFETCH((const void *)ahead);
        ahead += (uintptr_t)ahead_k;
        a += a_column;
        b += b_row;
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) {
            const ptrdiff_t live = v == vectors - 1 ? last : V;
            VEC value = sum[i][v];
            if (p->start) value = FN(v_add)(FN(v_get)(p->start + i * p->start_row + v * V, live), value);
            FN(v_put)(p->c + i * p->c_row + v * V, value, live);
        }
}

#define TILE(rows, vectors)                                                                                                    \
    case rows:                                                                                                                 \
        FN(tile)(rows, vectors, n, p);                                                                                         \
        break;
#if GC_MICRO_ROWS == 6
#define MORE_ROWS(vectors) TILE(4, vectors) TILE(5, vectors) TILE(6, vectors)
#else
#define MORE_ROWS(vectors)
#endif
#define TILES(vectors)                                                                                                         \
    static void FN(tile_##vectors)(ptrdiff_t rows, ptrdiff_t n, const FN(product) *p)                                          \
    {                                                                                                                          \
        switch (rows) {                                                                                                        \
            TILE(1, vectors) TILE(2, vectors) TILE(3, vectors) MORE_ROWS(vectors)                                              \
        }                                                                                                                      \
    }
TILES(1) TILES(2) TILES(3) TILES(4)
#undef TILES
#undef MORE_ROWS
#undef TILE

typedef void (*FN(tile_kernel))(ptrdiff_t rows, ptrdiff_t n, const FN(product) *p);

/* The kernel for n <= NR columns. */
INLINE FN(tile_kernel) FN(tile_for)(ptrdiff_t n)
{
    static const FN(tile_kernel) kernels[NV] = {FN(tile_1), FN(tile_2), FN(tile_3), FN(tile_4)};
    return kernels[(n - 1) / V];
}

/* C[M, n] of a panel: tiles of about equal heights, because a low one hides less of the latency. */
INLINE void FN(panel)(ptrdiff_t M, ptrdiff_t n, FN(product) *whole, FN(tile_kernel) kernel)
{
    ptrdiff_t tiles = (M + MR - 1) / MR;
    FN(product) p = *whole;
    for (ptrdiff_t i = 0; i < tiles; i++) {
        ptrdiff_t m = M * i / tiles, rows = M * (i + 1) / tiles - m;
        p.a = whole->a + m * p.a_row;
        p.c = whole->c + m * p.c_row;
        p.start = whole->start ? whole->start + m * p.start_row : NULL;
        if (p.ahead + (uintptr_t)(p.K * p.ahead_k) > p.ahead_end) p.ahead = 0;
        kernel(rows, n, &p);
        if (p.ahead) p.ahead += (uintptr_t)p.ahead_tile;
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
 * begin with first_row and go round. */
static void FN(pack)(ptrdiff_t K, ptrdiff_t N, const REAL *src, ptrdiff_t row, ptrdiff_t column, ptrdiff_t first_row,
                     REAL *packed, int thread, int n_threads)
{
    ptrdiff_t panels = (N + NR - 1) / NR;
    for (ptrdiff_t p = panels * thread / n_threads; p < panels * (thread + 1) / n_threads; p++) {
        ptrdiff_t n = gc_min(NR, N - p * NR), width = (n + V - 1) / V * V;
        const REAL *from = src + p * NR * column;
        REAL *to = packed + p * NR * K;
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

/* Columns [j0, j1) of C[M, N] = start + A B with A (M, K) in rows a_row apart and B packed; j0 is a multiple of V. Meanwhile
 * so many elements from `ahead` on are fetched. */
static void FN(gemm)(ptrdiff_t M, ptrdiff_t j0, ptrdiff_t j1, ptrdiff_t N, ptrdiff_t K, const REAL *a, ptrdiff_t a_row,
                     const REAL *packed, REAL *c, ptrdiff_t c_row, const REAL *start, ptrdiff_t start_row, const REAL *ahead,
                     ptrdiff_t n_ahead)
{
    uintptr_t line = (uintptr_t)ahead, end = line + (uintptr_t)n_ahead * sizeof(REAL);
    const ptrdiff_t block = 16 * MR; /* rows of A that stay in L2 while all panels pass over them */
    for (ptrdiff_t m = 0; m < M; m += block) {
        for (ptrdiff_t j = j0, n; j < j1; j += n) {
            const ptrdiff_t panel = j / NR * NR, width = (gc_min(NR, N - panel) + V - 1) / V * V;
            n = gc_min(panel + NR, j1) - j;
            FN(product) p = {K, a + m * a_row, a_row, 1, packed + panel * K + j % NR, width, c + m * c_row + j, c_row,
                             start ? start + m * start_row + j : NULL, start_row, line, end, 64, K * 64};
            FN(panel)(gc_min(block, M - m), n, &p, FN(tile_for)(n));
            line = p.ahead;
        }
    }
}

/* ---- sums over many rows ------------------------------------------------------------------------------------------------ */

/* Elements of scratch that each thread needs for gemm_tn. */
INLINE ptrdiff_t FN(gemm_tn_work)(void) { return NC_BYTES / (ptrdiff_t)sizeof(REAL) + KC * NR; }

/* Columns [m0, m1) of C[M, N] += A^T B and, unless NULL, of sums[m] += the sum over k of A[k, m], with A (K, M) and
 * B (K, N). The sums are made in blocks of at most KC rows. */
static void FN(gemm_tn)(ptrdiff_t m0, ptrdiff_t m1, ptrdiff_t N, ptrdiff_t K, const REAL *a, ptrdiff_t a_row, const REAL *b,
                        ptrdiff_t b_row, REAL *c, ptrdiff_t c_row, REAL *sums, REAL *work)
{
    const ptrdiff_t blocks = (K + KC - 1) / KC;
    REAL *packed_a = work + NC_BYTES / (ptrdiff_t)sizeof(REAL);
    if (m0 == m1) return;
    for (ptrdiff_t block = 0; block < blocks; block++) {
        const ptrdiff_t k0 = K * block / blocks, kc = K * (block + 1) / blocks - k0;
        const ptrdiff_t NC = gc_max(1, NC_BYTES / (ptrdiff_t)sizeof(REAL) / kc / NR) * NR;
        for (ptrdiff_t j0 = 0; j0 < gc_max(N, 1); j0 += NC) { /* once without columns, for the sums */
            const ptrdiff_t columns = gc_min(NC, N - j0);
            FN(pack)(kc, columns, b + k0 * b_row + j0, b_row, 1, 0, work, 0, 1);
            for (ptrdiff_t m = m0; m < m1; m += NR) {
                const ptrdiff_t rows = gc_min(NR, m1 - m), a_width = (rows + V - 1) / V * V;
                FN(pack)(kc, rows, a + k0 * a_row + m, a_row, 1, 0, packed_a, 0, 1);
                if (sums && !j0) {
                    REAL sum[NR] = {0};
                    for (ptrdiff_t k = 0; k < kc; k++)
                        for (ptrdiff_t i = 0; i < a_width; i++) sum[i] += packed_a[k * a_width + i];
                    for (ptrdiff_t i = 0; i < rows; i++) sums[m + i] += sum[i];
                }
                for (ptrdiff_t j = 0; j < columns; j += NR) {
                    const ptrdiff_t n = gc_min(NR, columns - j);
                    REAL *to = c + m * c_row + j0 + j;
                    /* a line of the next columns of A for each tile of the first panel */
                    const uintptr_t ahead = j ? 0 : (uintptr_t)(a + k0 * a_row + m + NR);
                    FN(product) p = {kc, packed_a, 1, a_width, work + j * kc, (n + V - 1) / V * V, to, c_row, to, c_row,
                                     ahead, UINTPTR_MAX, a_row * (ptrdiff_t)sizeof(REAL), 64};
                    FN(panel)(rows, n, &p, FN(tile_for)(n));
                }
            }
        }
    }
}
