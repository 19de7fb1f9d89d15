/* One step of an optimizer for a list of parameters. */
#include <stdatomic.h>

#include "gradcore.h"

typedef struct optim_job {
    const gc_table *table;
    const gc_span *spans;
    const gc_update *update;
    atomic_ptrdiff_t spikes; /* whole numbers: their sum has no order */
} optim_job;

static void update_in_list(void *arg, ptrdiff_t i, ptrdiff_t start, ptrdiff_t n)
{
    optim_job *j = arg;
    const gc_span *span = &j->spans[i];
    const ptrdiff_t spikes = j->table->real[span->real].optim->update(j->update, span->data, start, n);
    if (j->update->rule == GC_SPAM) atomic_fetch_add_explicit(&j->spikes, spikes, memory_order_relaxed);
}

ptrdiff_t gc_optim_update(const gc_table *table, const gc_span *spans, ptrdiff_t n, const gc_update *update)
{
    optim_job j = {.table = table, .spans = spans, .update = update};
    atomic_init(&j.spikes, 0);
    gc_over_blocks(spans, n, GC_WHOLE, update_in_list, &j);
    return atomic_load(&j.spikes);
}
