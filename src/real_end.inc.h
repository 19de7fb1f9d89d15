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
#undef GC_MICRO_VECTORS
#undef MR
#undef NW
#undef DEPTH
#undef STRIPE
#undef STRIPE_SIZE
#undef FETCH_NEXT
#undef NR
#undef NV
#undef PANEL
#undef STREAM_FENCE
