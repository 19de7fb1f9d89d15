/* AVX2 with FMA. */
#ifndef GC_SIZES
#define GC_SIZES
#define FUSED 1
#include <immintrin.h>

#define STREAM_FENCE() _mm_sfence()
/* Block sizes, measured with two 256-bit multiply-adds a cycle (bench/NOTES.md); gemm/ says what each is for. */
#define MR 6 /* 12 sums, beside two vectors of B and one of A; 3 x 4 reads B twice as often: 15 to 26 % more time at H >= 650 */
#define MR_3 4
#define LOW 3
#define KC 288 /* a panel fits in L1 beside a stripe of A */
#define NC_BYTES (1024 * 1024) /* it may come from L3, slowly enough, and A is packed less often: 4096 columns 0.79 -> 0.86 */
#define WIDE NR
#define DEPTH 640 /* K = 2600 and 4096: 0.65, 0.61 -> 0.92, 0.88 of peak */
#define PAIR_BYTES 0
#define STRIPE MR
/* 16 rows, K = 1024, 2048, 4096: 0.88, 0.61, 0.64 -> 1.0, 0.89, 0.80 of peak */
#define PREFETCH_NEXT(address) PREFETCH(address)
#define FETCH_BYTES 0
#endif

#if GC_BITS == 32
#define V 8
#define VEC __m256
#define MM(op) _mm256_##op##_ps
#define MM_INT(op) _mm256_##op##_epi32
#define MM_CAST(v) _mm256_castps_si256(v)
#define MM_BACK(v) _mm256_castsi256_ps(v)
#else
#define V 4
#define VEC __m256d
#define MM(op) _mm256_##op##_pd
#define MM_INT(op) _mm256_##op##_epi64
#define MM_CAST(v) _mm256_castpd_si256(v)
#define MM_BACK(v) _mm256_castsi256_pd(v)
#endif
INLINE __m256i FN(mask)(ptrdiff_t n)
{
#if GC_BITS == 32
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
#else
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
#endif
}
INLINE VEC FN(v_load_n)(const REAL *p, ptrdiff_t n) { return MM(maskload)(p, FN(mask)(n)); }
INLINE void FN(v_store_n)(REAL *p, VEC v, ptrdiff_t n) { MM(maskstore)(p, FN(mask)(n), v); }
INLINE VEC FN(v_abs)(VEC a) { return MM(andnot)(MM(set1)(R(-0.0)), a); }
INLINE VEC FN(v_select_gt)(VEC a, VEC b, VEC x, VEC y) { return MM(blendv)(y, x, MM(cmp)(a, b, _CMP_GT_OQ)); }
INLINE VEC FN(v_zip_first)(VEC a, VEC b)
{
#if GC_BITS == 32
    return _mm256_permute2f128_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b), 0x20);
#else
    return _mm256_permute2f128_pd(_mm256_unpacklo_pd(a, b), _mm256_unpackhi_pd(a, b), 0x20);
#endif
}
INLINE VEC FN(v_zip_second)(VEC a, VEC b)
{
#if GC_BITS == 32
    return _mm256_permute2f128_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b), 0x31);
#else
    return _mm256_permute2f128_pd(_mm256_unpacklo_pd(a, b), _mm256_unpackhi_pd(a, b), 0x31);
#endif
}
#include "x86.h"
