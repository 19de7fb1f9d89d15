/* The micro-kernel that all products are made of: C = start + A B for the sums that fit in the registers, and for a panel of
 * columns.
 *
 * Every element of C is one sum over k in ascending order (of DEPTH in gemm, of a block in gemm_tn), whatever the tile it falls
 * in: so its bits depend neither on the thread that computes it nor on how the rows were split.
 */
#ifndef REAL
#error "tile.inc.h needs real.inc.h and simd.inc.h"
#endif

/* A tile is as many rows of two vectors as its sums fill the registers, beside two vectors of B and one of A: four vectors
 * wide it would read B twice as often, and L2 cannot give it that fast (bench/NOTES.md). The three gates of a GRU are one
 * tile, and of LOW rows two panels side by side are, or there were too few sums to hide the latency. */
#ifndef GC_GEMM_BLOCKS
#define GC_GEMM_BLOCKS
#define NV 2
#define NR (NV * V) /* columns of a panel */
#define NW 4        /* vectors of a tile at most */
enum {
    BLOCK = 112,                    /* rows of A at most that stay in L2 while all panels of gemm pass over them */
    PAGE = 4096, WAYS = 8,          /* of L1: of lines that lie whole pages apart it holds so many */
    COLUMNS = 48                    /* of A that gemm_tn packs at once: eight tiles use a panel of B while it is in L1 */
};
#endif
#ifndef GC_LINES
#define GC_LINES
/* Memory that will be needed, [line, end). */
typedef struct {
    uintptr_t line, end;
} gc_lines;
#endif

/* A tile's operands. A[i, k] = a[i * a_row + k * a_column], B[k, j] = b[k * b_row + j] (of four vectors that are more than a
 * panel the second half is in the panel behind), C[i, j] = c[i * c_row + j] and start[i, j] = start[i * start_row + j]: a
 * bias with start_row 0, C itself to add to it, NULL for zeros. Meanwhile what is needed later is fetched from memory, a
 * cache line of `ahead` for every k, as far as it goes for whole tiles, and another from `next` on. */
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
    gc_lines ahead;
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
    const ptrdiff_t start_row = p->start_row, ahead_k = p->ahead.line ? p->ahead_k : 0;
    const REAL *b = p->b, *start = p->start, *from = start;
    uintptr_t ahead = p->ahead.line ? p->ahead.line : (uintptr_t)b, next = p->next;
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
    const ptrdiff_t low = M / gc_max(tiles, 1), high = M - low * tiles; /* so many are one row higher */
    for (ptrdiff_t i = 0, m = 0; i < tiles; i++) {
        const ptrdiff_t rows = low + (i < high);
        p.a = whole->a + m * p.a_row;
        p.c = whole->c + m * p.c_row;
        p.start = start + m * p.start_row;
        m += rows;
        if (p.ahead.line + (uintptr_t)(p.K * p.ahead_k) > p.ahead.end) p.ahead.line = 0;
        FN(tile_of)(rows, n, &p);
        if (p.ahead.line) p.ahead.line += (uintptr_t)p.ahead_tile;
        p.next += (uintptr_t)(p.K * p.next_k);
    }
    whole->ahead.line = p.ahead.line;
}
