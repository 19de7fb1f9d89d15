/* What v3.h and v4.h spell alike. */
INLINE VEC FN(v_load)(const REAL *p) { return MM(loadu)(p); }
INLINE void FN(v_store)(REAL *p, VEC v) { MM(storeu)(p, v); }
INLINE void FN(v_stream)(REAL *p, VEC v) { MM(stream)(p, v); }
INLINE VEC FN(v_set1)(REAL a) { return MM(set1)(a); }
INLINE VEC FN(v_zero)(void) { return MM(setzero)(); }
INLINE VEC FN(v_add)(VEC a, VEC b) { return MM(add)(a, b); }
INLINE VEC FN(v_sub)(VEC a, VEC b) { return MM(sub)(a, b); }
INLINE VEC FN(v_mul)(VEC a, VEC b) { return MM(mul)(a, b); }
INLINE VEC FN(v_div)(VEC a, VEC b) { return MM(div)(a, b); }
INLINE VEC FN(v_fma)(VEC a, VEC b, VEC c) { return MM(fmadd)(a, b, c); }
INLINE VEC FN(v_fnma)(VEC a, VEC b, VEC c) { return MM(fnmadd)(a, b, c); }
INLINE VEC FN(v_flip)(VEC a, VEC sign) { return MM(xor)(a, MM(and)(sign, MM(set1)(R(-0.0)))); }
INLINE VEC FN(v_min)(VEC a, VEC b) { return MM(min)(a, b); }
INLINE VEC FN(v_max)(VEC a, VEC b) { return MM(max)(a, b); }
INLINE VEC FN(v_shift)(VEC a, int count) { return MM_BACK(MM_INT(slli)(MM_CAST(a), count)); }
#undef MM
#undef MM_INT
#undef MM_CAST
#undef MM_BACK
#undef MASK
