/* AVX-512. */
#ifndef GC_SIZES
#define GC_SIZES
#define FUSED 1
#include <immintrin.h>

#define STREAM_FENCE() _mm_sfence()
/* Block sizes, measured with one and with two 512-bit multiply-adds a cycle (bench/NOTES.md); gemm/ says what each is for. */
#define MR 14 /* 28 sums, beside two vectors of B and one of A: 0.93 to 0.98 of peak; 6 x 4 reads B twice as often */
#define MR_3 9
#define LOW 6
#define KC 384
#define NC_BYTES (384 * 1024)
#define WIDE (2 * NR) /* 6 x 4, because A is packed and B in L2, both used as often: 14 x 2 is 2 to 8 % slower */
#define DEPTH 1024    /* K = 2600 and 4096: 154, 131 -> 160, 147 GFLOP/s; 512, 768, 1536 the same */
#define PAIR_BYTES (32 * 1024)
#define STRIPE COLUMNS
/* A panel fills L1, so the next one goes to L2, unless the matrix stays there by itself: 20 rows, K = 650: 119 -> 164 GFLOP/s;
 * to L1 it costs 5 % where W is in L2. */
#define PREFETCH_NEXT(address) PREFETCH_L2(address)
#define FETCH_BYTES (1 << 19)
#endif

#if GC_BITS == 32
#define V 16
#define VEC __m512
#define MM(op) _mm512_##op##_ps
#define MM_INT(op) _mm512_##op##_epi32
#define MM_CAST(v) _mm512_castps_si512(v)
#define MM_BACK(v) _mm512_castsi512_ps(v)
#define MASK(n) ((__mmask16)((1u << (n)) - 1))
#else
#define V 8
#define VEC __m512d
#define MM(op) _mm512_##op##_pd
#define MM_INT(op) _mm512_##op##_epi64
#define MM_CAST(v) _mm512_castpd_si512(v)
#define MM_BACK(v) _mm512_castsi512_pd(v)
#define MASK(n) ((__mmask8)((1u << (n)) - 1))
#endif
INLINE VEC FN(v_load_n)(const REAL *p, ptrdiff_t n) { return MM(maskz_loadu)(MASK(n), p); }
INLINE void FN(v_store_n)(REAL *p, VEC v, ptrdiff_t n) { MM(mask_storeu)(p, MASK(n), v); }
INLINE VEC FN(v_abs)(VEC a) { return MM(abs)(a); }
INLINE VEC FN(v_select_gt)(VEC a, VEC b, VEC x, VEC y)
{
#if GC_BITS == 32
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), y, x);
#else
    return _mm512_mask_blend_pd(_mm512_cmp_pd_mask(a, b, _CMP_GT_OQ), y, x);
#endif
}
#if GC_BITS == 32
INLINE VEC FN(v_zip_first)(VEC a, VEC b)
{
    return _mm512_permutex2var_ps(a, _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23), b);
}
INLINE VEC FN(v_zip_second)(VEC a, VEC b)
{
    return _mm512_permutex2var_ps(a, _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31), b);
}
#else
INLINE VEC FN(v_zip_first)(VEC a, VEC b)
{
    return _mm512_permutex2var_pd(a, _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11), b);
}
INLINE VEC FN(v_zip_second)(VEC a, VEC b)
{
    return _mm512_permutex2var_pd(a, _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15), b);
}
#endif
#include "x86.h"
