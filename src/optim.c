/* One step of an optimizer for a list of parameters. */
#include "gradcore.h"

#include <stdatomic.h>

typedef struct job {
    const gc_table *table;
    const gc_span *spans;
    const gc_update *update;
    atomic_ptrdiff_t spikes; /* whole numbers: their sum has no order */
} job;

static void update_block(void *arg, ptrdiff_t i, ptrdiff_t start, ptrdiff_t n)
{
    job *j = arg;
    const gc_span *span = &j->spans[i];
    const ptrdiff_t spikes = j->table->real[span->real].update_block(j->update, span->data, start, n);
    if (j->update->rule == GC_SPAM) atomic_fetch_add_explicit(&j->spikes, spikes, memory_order_relaxed);
}

ptrdiff_t gc_optim_update(const gc_table *table, const gc_span *spans, ptrdiff_t n, const gc_update *update)
{
    job j = {.table = table, .spans = spans, .update = update};
    atomic_init(&j.spikes, 0);
    gc_over_blocks(spans, n, GC_WHOLE, update_block, &j);
    return atomic_load(&j.spikes);
}
