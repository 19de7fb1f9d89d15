/* The norm of a list of arrays, put together from what the block kernels find; scaling and clamping the list. */
#include <math.h>
#include <stdlib.h>

#include "gradcore.h"

/* Entries in here have squares, and 2^40 squares have a sum, that neither overflow nor lose a digit. */
static const double LEAST = 0x1p-480, MOST = 0x1p480;

typedef struct clip_job {
    const gc_table *table;
    const gc_span *spans;
    double p;
    const double *units;    /* of each array, 0 to leave it out; NULL for 1 everywhere */
    gc_norm_block *blocks;  /* what is found, by the blocks' numbers */
    const double *factors;  /* (n, 2) */
    double limit;
} clip_job;

static const gc_clip_kernels *kernels_of(const gc_table *table, const gc_span *span)
{
    return table->real[span->real == GC_F16 ? GC_F64 : span->real].clip;
}

static void *data_at(const gc_span *span, ptrdiff_t start)
{
    static const ptrdiff_t size[] = {[GC_F32] = 4, [GC_F64] = 8, [GC_F16] = 2};
    return (char *)span->data[GC_GRAD] + start * size[span->real];
}

/* A block as its kernels take it: in place, or halves as doubles in the buffer, which close_block brings back. Doubles,
 * because their sums are compensated, and a product that is rounded to float first would be rounded twice. */
static void *open_block(const gc_table *table, const gc_span *span, ptrdiff_t start, ptrdiff_t n, double buffer[GC_BLOCK])
{
    void *data = data_at(span, start);
    if (span->real != GC_F16) return data;
    table->halves_to_doubles(data, n, buffer);
    return buffer;
}

static void close_block(const gc_table *table, const gc_span *span, ptrdiff_t start, ptrdiff_t n, double buffer[GC_BLOCK])
{
    if (span->real == GC_F16) table->doubles_to_halves(buffer, n, data_at(span, start));
}

static void measure_in_list(void *arg, ptrdiff_t i, ptrdiff_t start, ptrdiff_t n)
{
    const clip_job *j = arg;
    const gc_span *span = &j->spans[i];
    const double unit = j->units ? j->units[i] : 1;
    if (unit == 0) return;
    gc_norm_block *found = &j->blocks[span->first_block + start / GC_BLOCK];
    double buffer[GC_BLOCK];
    kernels_of(j->table, span)->measure(open_block(j->table, span, start, n, buffer), n, j->p, unit, found);
}

/* What to divide an array's entries by before they are raised to the power p. A power of two where that will do, because
 * such a division is exact. */
static double unit_of(double largest, double p)
{
    if (isinf(p) || largest == 0) return 1;
    if (p != 1 && p != 2) return largest;
    if (largest < MOST && (largest >= LEAST || p == 1)) return 1;
    int exponent;
    frexp(largest, &exponent);
    return ldexp(1, exponent > 1000 ? 1000 : exponent < -1000 ? -1000 : exponent); /* its reciprocal is exact as well */
}

static double root_of(double sum, double p) { return p == 1 ? sum : p == 2 ? sqrt(sum) : pow(sum, 1 / p); }

/* One array from its blocks, in their order. */
static void gather(const gc_span *span, const gc_norm_block *block, double p, double unit, gc_norm *array)
{
    double sum = 0, rest = 0;
    *array = (gc_norm){.unit = unit, .worst = -1};
    for (ptrdiff_t start = 0; start < span->n; start += GC_BLOCK, block++) {
        gc_add(&sum, &rest, block->sum);
        rest += block->rest;
        array->n_nan += block->n_nan;
        array->n_inf += block->n_inf;
        if (block->largest > array->largest) {
            array->largest = block->largest;
            array->largest_block = start;
        }
        if (array->worst < 0 && block->first_nonfinite >= 0) array->worst = start + block->first_nonfinite;
    }
    array->sum = sum + rest;
    array->root = isinf(p) ? array->largest : root_of(array->sum, p);
}

/* The whole list from its arrays, in their order. */
static void gather_all(const clip_job *j, const gc_norm *arrays, ptrdiff_t n, gc_norm *all)
{
    *all = (gc_norm){.worst = -1, .worst_array = -1};
    ptrdiff_t largest_array = -1;
    for (ptrdiff_t i = 0; i < n; i++) {
        all->n_nan += arrays[i].n_nan;
        all->n_inf += arrays[i].n_inf;
        if (all->worst < 0 && arrays[i].worst >= 0) {
            all->worst = arrays[i].worst;
            all->worst_array = i;
        }
        if (j->spans[i].n > 0 && (largest_array < 0 || arrays[i].largest > all->largest)) {
            all->largest = arrays[i].largest;
            largest_array = i;
        }
    }
    if (all->worst < 0 && largest_array >= 0) {
        const gc_span *span = &j->spans[largest_array];
        const ptrdiff_t start = arrays[largest_array].largest_block;
        const ptrdiff_t rest = span->n - start < GC_BLOCK ? span->n - start : GC_BLOCK;
        double buffer[GC_BLOCK];
        const void *block = open_block(j->table, span, start, rest, buffer);
        all->worst_array = largest_array;
        all->worst = start + kernels_of(j->table, span)->find(block, rest, all->largest);
    }

    double rest = 0;
    all->unit = unit_of(all->largest, j->p);
    for (ptrdiff_t i = 0; i < n; i++) {
        if (arrays[i].sum == 0) continue;
        const double ratio = arrays[i].unit / all->unit;
        gc_add(&all->sum, &rest, arrays[i].sum * (j->p == 1 ? ratio : j->p == 2 ? ratio * ratio : pow(ratio, j->p)));
    }
    all->sum += rest;
    all->root = isinf(j->p) ? all->largest : root_of(all->sum, j->p);
}

int gc_clip_measure(const gc_table *table, const gc_span *spans, ptrdiff_t n, double p, gc_norm *arrays, gc_norm *all)
{
    const ptrdiff_t n_blocks = gc_number_of_blocks(spans, n);
    gc_norm_block few[16], *blocks = few;
    double *units = NULL;
    int status;
    if (n_blocks > 16 && !(blocks = malloc((size_t)n_blocks * sizeof *blocks))) return GC_NOMEM;

    /* A power other than 1 and 2 is only taken of entries that the largest one divides: the first pass looks for it. */
    const int any_power = p != 1 && p != 2 && !isinf(p);
    clip_job j = {.table = table, .spans = spans, .p = any_power ? INFINITY : p, .blocks = blocks};
    if ((status = gc_over_blocks(spans, n, GC_EXACT, measure_in_list, &j)) != GC_OK) goto done;
    ptrdiff_t again = 0;
    for (ptrdiff_t i = 0; i < n; i++) {
        gather(&spans[i], &blocks[spans[i].first_block], j.p, 1, &arrays[i]);
        again += any_power ? arrays[i].largest > 0 : unit_of(arrays[i].largest, p) != 1;
    }
    j.p = p;
    if (again) {
        if (!(units = malloc((size_t)n * sizeof *units))) {
            status = GC_NOMEM;
            goto done;
        }
        for (ptrdiff_t i = 0; i < n; i++) {
            const double unit = unit_of(arrays[i].largest, p);
            units[i] = (any_power ? arrays[i].largest > 0 : unit != 1) ? unit : 0;
        }
        j.units = units;
        if ((status = gc_over_blocks(spans, n, GC_EXACT, measure_in_list, &j)) != GC_OK) goto done;
        for (ptrdiff_t i = 0; i < n; i++)
            if (units[i] > 0) gather(&spans[i], &blocks[spans[i].first_block], p, units[i], &arrays[i]);
    }
    gather_all(&j, arrays, n, all);
done:
    free(units);
    if (blocks != few) free(blocks);
    return status;
}

static void scale_in_list(void *arg, ptrdiff_t i, ptrdiff_t start, ptrdiff_t n)
{
    const clip_job *j = arg;
    const gc_span *span = &j->spans[i];
    double buffer[GC_BLOCK];
    kernels_of(j->table, span)->scale(open_block(j->table, span, start, n, buffer), n, &j->factors[2 * i]);
    close_block(j->table, span, start, n, buffer);
}

void gc_clip_scale(const gc_table *table, const gc_span *spans, ptrdiff_t n, const double *factors)
{
    clip_job j = {.table = table, .spans = spans, .factors = factors};
    gc_over_blocks(spans, n, GC_EXACT | GC_WHOLE, scale_in_list, &j);
}

static void clamp_in_list(void *arg, ptrdiff_t i, ptrdiff_t start, ptrdiff_t n)
{
    const clip_job *j = arg;
    const gc_span *span = &j->spans[i];
    double buffer[GC_BLOCK];
    kernels_of(j->table, span)->clamp(open_block(j->table, span, start, n, buffer), n, j->limit);
    close_block(j->table, span, start, n, buffer);
}

void gc_clip_clamp(const gc_table *table, const gc_span *spans, ptrdiff_t n, double limit)
{
    clip_job j = {.table = table, .spans = spans, .limit = limit};
    gc_over_blocks(spans, n, GC_EXACT | GC_WHOLE, clamp_in_list, &j);
}
