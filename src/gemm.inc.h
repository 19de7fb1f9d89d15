/* The matrix products of all kernels: B is packed once into panels, A is read where it lies.
 *
 * Every element of C is one sum over k in ascending order (within a block of KC in gemm_tn), whatever the tile it falls in:
 * so its bits depend neither on the thread that computes it nor on how the rows were split.
 */
#ifndef REAL
#error "gemm.inc.h needs real.inc.h and simd.inc.h"
#endif

#define MR GC_MICRO_ROWS /* rows of a tile */
#define NR (2 * V)       /* columns of a panel */
#ifndef GC_GEMM_BLOCKS
#define GC_GEMM_BLOCKS
enum {
    KC = 256,      /* rows that one block of gemm_tn sums, so that the packed block stays in L2 */
    WIDE_ROWS = 3, /* tiles of so few rows take PANELS panels at once, or the latency of the sums would show */
    PANELS = 4
};
#endif

INLINE ptrdiff_t FN(packed_columns)(ptrdiff_t N) { return (N + NR - 1) / NR * NR; }

/* Elements of the packed form of a (K, N) matrix: panels of NR columns, [N/NR][K][NR], the last one filled with zeros. */
INLINE ptrdiff_t FN(packed_size)(ptrdiff_t K, ptrdiff_t N) { return K * FN(packed_columns)(N); }

/* Pack this thread's share of B[k, n] = src[k * row + n * column] into dst. */
static void FN(pack)(ptrdiff_t K, ptrdiff_t N, const REAL *src, ptrdiff_t row, ptrdiff_t column, REAL *dst, int thread,
                     int n_threads)
{
    ptrdiff_t panels = FN(packed_columns)(N) / NR;
    for (ptrdiff_t p = panels * thread / n_threads; p < panels * (thread + 1) / n_threads; p++) {
        ptrdiff_t n = gc_min(NR, N - p * NR);
        const REAL *from = src + p * NR * column;
        REAL *to = dst + p * NR * K;
        if (n < NR) memset(to, 0, (size_t)(K * NR) * sizeof(REAL));
        if (column == 1)
            for (ptrdiff_t k = 0; k < K; k++) memcpy(to + k * NR, from + k * row, (size_t)n * sizeof(REAL));
        else
            for (ptrdiff_t j = 0; j < n; j++)
                for (ptrdiff_t k = 0; k < K; k++) to[k * NR + j] = from[k * row + j * column];
    }
}

/* C[rows, n] = A B (+ bias), or C += A B, for `panels` neighbouring panels of B, n of their columns being real. A[i, k] is
 * a[i * row + k * column]. `rows` and `panels` are constants where this is inlined: the sums live in registers. */
INLINE void FN(tile)(const int rows, const int panels, ptrdiff_t K, const REAL *a, ptrdiff_t row, ptrdiff_t column,
                     const REAL *b, REAL *c, ptrdiff_t ld_c, ptrdiff_t n, const REAL *bias, int accumulate)
{
    VEC sum[MR > WIDE_ROWS * PANELS ? MR : WIDE_ROWS * PANELS][2];
#pragma GCC unroll 16
    for (int i = 0; i < rows * panels; i++) sum[i][0] = sum[i][1] = FN(v_zero)();
    for (ptrdiff_t k = 0; k < K; k++) {
#pragma GCC unroll 4
        for (int p = 0; p < panels; p++) {
            VEC b0 = FN(v_load)(b + p * K * NR + k * NR), b1 = FN(v_load)(b + p * K * NR + k * NR + V);
#pragma GCC unroll 16
            for (int i = 0; i < rows; i++) {
                VEC aik = FN(v_set1)(a[i * row + k * column]);
                sum[i * panels + p][0] = FN(v_fma)(aik, b0, sum[i * panels + p][0]);
                sum[i * panels + p][1] = FN(v_fma)(aik, b1, sum[i * panels + p][1]);
            }
        }
    }
#pragma GCC unroll 4
    for (int p = 0; p < panels; p++)
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
            for (int half = 0; half < 2; half++) {
                ptrdiff_t j = p * NR + half * V, live = n - j;
                if (live <= 0) continue;
                VEC value = sum[i * panels + p][half];
                if (bias) value = FN(v_add)(value, FN(v_get)(bias + j, live));
                if (accumulate) value = FN(v_add)(value, FN(v_get)(c + i * ld_c + j, live));
                FN(v_put)(c + i * ld_c + j, value, live);
            }
}

#define TILE(rows, panels)                                                                                                     \
    case rows:                                                                                                                 \
        FN(tile)(rows, panels, K, a, row, column, b, c, ld_c, n, bias, accumulate);                                            \
        break;

static void FN(narrow_tile)(ptrdiff_t rows, ptrdiff_t K, const REAL *a, ptrdiff_t row, ptrdiff_t column, const REAL *b, REAL *c,
                            ptrdiff_t ld_c, ptrdiff_t n, const REAL *bias, int accumulate)
{
    switch (rows) {
        TILE(1, 1) TILE(2, 1) TILE(3, 1) TILE(4, 1)
#if GC_MICRO_ROWS >= 6
        TILE(5, 1) TILE(6, 1)
#endif
#if GC_MICRO_ROWS >= 14
        TILE(7, 1) TILE(8, 1) TILE(9, 1) TILE(10, 1) TILE(11, 1) TILE(12, 1) TILE(13, 1) TILE(14, 1)
#endif
    }
}

static void FN(wide_tile)(ptrdiff_t rows, ptrdiff_t K, const REAL *a, ptrdiff_t row, ptrdiff_t column, const REAL *b, REAL *c,
                          ptrdiff_t ld_c, ptrdiff_t n, const REAL *bias, int accumulate)
{
    switch (rows) {
        TILE(1, PANELS) TILE(2, PANELS) TILE(3, PANELS)
    }
}
#undef TILE

/* C[M, N] = A B + bias, or C += A B, with A (M, K) in rows ld_a apart and B packed. bias is (N,) or NULL. */
static void FN(gemm)(ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, const REAL *a, ptrdiff_t ld_a, const REAL *packed, REAL *c,
                     ptrdiff_t ld_c, const REAL *bias, int accumulate)
{
    const ptrdiff_t block = 16 * MR; /* rows of A that stay in L2 while all panels pass over them */
    for (ptrdiff_t m0 = 0; m0 < M; m0 += block) {
        ptrdiff_t m1 = gc_min(m0 + block, M), wide = M <= WIDE_ROWS ? PANELS * NR : NR;
        for (ptrdiff_t j = 0; j < N; j += wide) {
            if (j + wide > FN(packed_columns)(N)) wide = NR;
            for (ptrdiff_t m = m0; m < m1; m += MR)
                (wide == NR ? FN(narrow_tile) : FN(wide_tile))(gc_min(MR, m1 - m), K, a + m * ld_a, ld_a, 1, packed + j * K,
                                                               c + m * ld_c + j, ld_c, gc_min(wide, N - j),
                                                               bias ? bias + j : NULL, accumulate);
        }
    }
}

/* Elements of scratch that one thread needs for gemm_tn. */
INLINE ptrdiff_t FN(gemm_tn_work)(ptrdiff_t N) { return KC * (FN(packed_columns)(N) + 16); }

/* Rows [m0, m1) of C[M, N] += A^T B, with A (K, M) in rows ld_a apart and B (K, N) contiguous; K is long, the sum is made in
 * blocks of KC. */
static void FN(gemm_tn)(ptrdiff_t m0, ptrdiff_t m1, ptrdiff_t N, ptrdiff_t K, const REAL *a, ptrdiff_t ld_a, const REAL *b,
                        REAL *c, REAL *work)
{
    REAL *packed_a = work, *packed_b = work + KC * 16;
    if (m0 >= m1) return;
    for (ptrdiff_t k0 = 0; k0 < K; k0 += KC) {
        ptrdiff_t kc = gc_min(KC, K - k0);
        FN(pack)(kc, N, b + k0 * N, N, 1, packed_b, 0, 1);
        for (ptrdiff_t m = m0; m < m1; m += MR) {
            ptrdiff_t rows = gc_min(MR, m1 - m);
            for (ptrdiff_t k = 0; k < kc; k++)
                memcpy(packed_a + k * MR, a + (k0 + k) * ld_a + m, (size_t)rows * sizeof(REAL));
            for (ptrdiff_t j = 0; j < N; j += NR)
                FN(narrow_tile)(rows, kc, packed_a, 1, MR, packed_b + j * kc, c + m * N + j, N, gc_min(NR, N - j), NULL, 1);
        }
    }
}

/* Columns [m0, m1) of sum[m] += the sum over k of a[k, m], in blocks of KC rows. */
static void FN(column_sums)(ptrdiff_t m0, ptrdiff_t m1, ptrdiff_t K, const REAL *a, ptrdiff_t ld_a, REAL *sum)
{
    enum { WIDTH = 64 };
    for (ptrdiff_t m = m0; m < m1; m += WIDTH) {
        ptrdiff_t n = gc_min(WIDTH, m1 - m);
        for (ptrdiff_t k0 = 0; k0 < K; k0 += KC) {
            REAL block[WIDTH] = {0};
            for (ptrdiff_t k = k0; k < gc_min(k0 + KC, K); k++)
                for (ptrdiff_t j = 0; j < n; j++) block[j] += a[k * ld_a + m + j];
            for (ptrdiff_t j = 0; j < n; j++) sum[m + j] += block[j];
        }
    }
}
