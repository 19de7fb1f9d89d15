/* The templates in the order in which they need each other, for one element type. */
#include "real.inc.h"
#include "simd.inc.h"
#include "vmath.inc.h"
#include "gemm.inc.h"
#include "recurrent.inc.h"
#include "linear.inc.h"
#include "real_end.inc.h"
