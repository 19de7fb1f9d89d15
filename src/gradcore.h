/* The table of kernels: what the C side offers and what each pointer means. Read this first.
 *
 * Conventions
 *   - Arrays are C-contiguous and aligned to their element; shapes are in comments, last axis fastest.
 *   - `void *` stands for float * in real[GC_F32] and double * in real[GC_F64]; sizes are ptrdiff_t, in elements.
 *   - Inputs (const) may alias each other; an output aliases nothing unless its comment says so.
 *   - "adds" means +=, the caller zeroes; every other output is overwritten whole.
 *   - Kernels that return int return a status, see below; they never print, never touch Python, and give the same bits for
 *     any thread count.
 */
#ifndef GRADCORE_H
#define GRADCORE_H

#include "activation/activation.h"
#include "activation/prelu.h"
#include "attention/attention.h"
#include "base/rows.h"
#include "base/spans.h"
#include "base/status.h"
#include "base/threads.h"
#include "clip/clip.h"
#include "dropout/dropout.h"
#include "embedding/embedding.h"
#include "jacobian/jacobian.h"
#include "linear/linear.h"
#include "normalization/normalization.h"
#include "optim/optim.h"
#include "pooling/pooling.h"
#include "recurrent/recurrent.h"
#include "residual/residual.h"

/* ---- the table -------------------------------------------------------------------------------------------------------- */

typedef struct gc_kernels {
    ptrdiff_t lanes; /* elements of a vector */
    const gc_recurrent_kernels *recurrent;
    gc_jacobian_factors *jacobian_factors;
    const gc_linear_kernels *linear;
    const gc_activation_kernels *activation;
    const gc_prelu_kernels *prelu;
    const gc_dropout_kernels *dropout;
    const gc_attention_kernels *attention;
    const gc_pooling_kernels *pooling;
    const gc_embedding_kernels *embedding;
    const gc_normalization_kernels *normalization;
    const gc_residual_kernels *residual;
    const gc_clip_kernels *clip;
    const gc_optim_kernels *optim;
    /* n rounds of nothing but multiply-adds on each thread: how many they were. For measuring the processor's limit. */
    double (*multiply_adds)(int threads, ptrdiff_t n);
} gc_kernels;

typedef struct gc_table {
    const char *isa;
    gc_kernels real[2]; /* [GC_F32], [GC_F64] */
    const gc_jacobian_kernels *jacobian;
    /* n elements; halves as their bits. Exact, and back rounded once, to the nearest or else to even. */
    void (*halves_to_doubles)(const uint16_t *half, ptrdiff_t n, double *x);
    void (*doubles_to_halves)(const double *x, ptrdiff_t n, uint16_t *half);
} gc_table;

/* ---- base/dispatch.c ------------------------------------------------------------------------------------------------------- */

/* The table for `wanted`, or for the best instruction set of this processor when `wanted` is NULL or empty; NULL where the
 * processor or the build lacks it. `supported`, of `size` bytes, receives the names that would work, separated by
 * ", ", or as many of them as it holds. */
const gc_table *gc_select(const char *wanted, char *supported, size_t size);

#endif
