/* One step of an optimizer for a list of parameters. */
#include "gradcore.h"

typedef struct job {
    const gc_table *table;
    const gc_span *spans;
    const gc_update *update;
} job;

/* Subnormal moments, which every gradient that stays away leaves behind, would cost a hundred cycles each. */
static void update_block(void *arg, ptrdiff_t i, ptrdiff_t start, ptrdiff_t n)
{
    const job *j = arg;
    const gc_span *span = &j->spans[i];
    const unsigned long long mode = gc_ftz_enter();
    j->table->real[span->real].update_block(j->update, span->data, start, n);
    gc_ftz_leave(mode);
}

void gc_optim_update(const gc_table *table, const gc_span *spans, ptrdiff_t n, const gc_update *update)
{
    job j = {table, spans, update};
    gc_over_blocks(spans, n, update_block, &j);
}
