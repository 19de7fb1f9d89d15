/* All kernels for one instruction set: compiled once for each, with GC_ISA its name. Everything but the table is static, or
 * the linker might keep one set's copy of a shared function for all of them. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "base/compiler.h"
#include "base/half.h"
#include "base/work.h"
#include "gradcore.h"
#include "math/threefry.h"

#ifndef GC_ISA
#error "define GC_ISA as the name of the instruction set"
#endif
#define GC_JOIN_(a, b) a##b
#define GC_JOIN(a, b) GC_JOIN_(a, b)
#define GC_TEXT_(a) #a
#define GC_TEXT(a) GC_TEXT_(a)

#define GC_BITS 32
#include "kernels.inc.h"
#define GC_BITS 64
#include "kernels.inc.h"

#define KERNELS(suffix)                                                                                                        \
    {                                                                                                                          \
        .lanes = lanes_##suffix,                                                                                               \
        .recurrent = &recurrent_kernels_##suffix,                                                                              \
        .jacobian_factors = jacobian_factors_##suffix,                                                                         \
        .linear = &linear_kernels_##suffix,                                                                                    \
        .activation = &activation_kernels_##suffix,                                                                            \
        .prelu = &prelu_kernels_##suffix,                                                                                      \
        .dropout = &dropout_kernels_##suffix,                                                                                  \
        .attention = &attention_kernels_##suffix,                                                                              \
        .pooling = &pooling_kernels_##suffix,                                                                                  \
        .embedding = &embedding_kernels_##suffix,                                                                              \
        .normalization = &normalization_kernels_##suffix,                                                                      \
        .residual = &residual_kernels_##suffix,                                                                                \
        .clip = &clip_kernels_##suffix,                                                                                        \
        .optim = &optim_kernels_##suffix,                                                                                      \
        .multiply_adds = multiply_adds_##suffix,                                                                               \
    }

/* Its symbol, isa_v3 for one, tells in a disassembly whose functions these are: tests/wheel.py looks for it. */
static const char GC_JOIN(isa_, GC_ISA)[] = GC_TEXT(GC_ISA);

extern const gc_table GC_JOIN(gc_table_, GC_ISA);
const gc_table GC_JOIN(gc_table_, GC_ISA) = {
    .isa = GC_JOIN(isa_, GC_ISA),
    .real = {KERNELS(f32), KERNELS(f64)},
    .jacobian = &jacobian_kernels,
    .halves_to_doubles = halves_to_doubles,
    .doubles_to_halves = doubles_to_halves,
};
