/* Closes what real.inc.h and simd.inc.h opened. */
#ifndef REAL
#error "real_end.inc.h without real.inc.h"
#endif
#undef REAL
#undef FN
#undef R
#undef GC_BITS
#undef V
#undef VEC
