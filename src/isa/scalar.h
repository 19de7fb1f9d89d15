/* One element at a time, in plain C; GC_SCALAR asks for it, to test it. */
#ifndef GC_SIZES
#define GC_SIZES
#define FUSED 0
/* Block sizes: v3's. */
#define MR 6
#define MR_3 4
#define LOW 3
#define KC 288
#define NC_BYTES (1024 * 1024)
#define WIDE NR
#define DEPTH 640
#define PAIR_BYTES 0
#define STRIPE MR
#define PREFETCH_NEXT(address) PREFETCH(address)
#define FETCH_BYTES 0
#endif

#define V 1
#define VEC REAL
INLINE VEC FN(v_load)(const REAL *p) { return *p; }
INLINE void FN(v_store)(REAL *p, VEC v) { *p = v; }
INLINE void FN(v_stream)(REAL *p, VEC v) { *p = v; }
INLINE VEC FN(v_set1)(REAL a) { return a; }
INLINE VEC FN(v_zero)(void) { return 0; }
INLINE VEC FN(v_add)(VEC a, VEC b) { return a + b; }
INLINE VEC FN(v_sub)(VEC a, VEC b) { return a - b; }
INLINE VEC FN(v_mul)(VEC a, VEC b) { return a * b; }
INLINE VEC FN(v_div)(VEC a, VEC b) { return a / b; }
INLINE VEC FN(v_fma)(VEC a, VEC b, VEC c) { return a * b + c; }
INLINE VEC FN(v_fnma)(VEC a, VEC b, VEC c) { return c - a * b; }
INLINE VEC FN(v_select_gt)(VEC a, VEC b, VEC x, VEC y) { return a > b ? x : y; }
INLINE VEC FN(v_flushed)(VEC a) { return a == 0 ? a * 0 : a; } /* subnormal numbers may count as zeros: see gnu.h */
INLINE VEC FN(v_min)(VEC a, VEC b) { return b > a ? a : FN(v_flushed)(b); }
INLINE VEC FN(v_max)(VEC a, VEC b) { return a > b ? a : FN(v_flushed)(b); }
INLINE VEC FN(v_abs)(VEC a) { return (REAL)fabs(a); }
INLINE VEC FN(v_flip)(VEC a, VEC sign) { return signbit(sign) ? -a : a; }
INLINE VEC FN(v_shift)(VEC a, int count)
{
#if GC_BITS == 32
    uint32_t bits;
#else
    uint64_t bits;
#endif
    memcpy(&bits, &a, sizeof a);
    bits <<= count;
    memcpy(&a, &bits, sizeof a);
    return a;
}
INLINE VEC FN(v_load_n)(const REAL *p, ptrdiff_t n) { return n ? *p : 0; }
INLINE void FN(v_store_n)(REAL *p, VEC v, ptrdiff_t n) { if (n) *p = v; }
