/* Rows of arrays, brought into another order by all threads. */
#include <string.h>

#include "base/rows.h"
#include "base/threads.h"
#include "base/work.h"

enum {
    LOOK_BYTES = 4 << 20, /* copied from one look whether to stop to the next */
    SERIAL_BYTES = 256 * 1024
}; /* below this one thread is faster than starting a team */

typedef struct {
    ptrdiff_t n;
    size_t size;
    const char *from;
    const ptrdiff_t *from_at;
    char *to;
    const ptrdiff_t *to_at;
} rows_job;

static void copy_body(void *arg, gc_team *team, int thread)
{
    const rows_job *job = arg;
    const ptrdiff_t end = gc_cut(job->n, thread + 1, gc_team_size(team));
    size_t copied = 0;
    for (ptrdiff_t i = gc_cut(job->n, thread, gc_team_size(team)); i < end; i++, copied += job->size) {
        if (copied > LOOK_BYTES) {
            if (gc_stopped(team, thread)) return;
            copied = 0;
        }
        char *to = job->to + (size_t)(job->to_at ? job->to_at[i] : i) * job->size;
        if (job->from)
            memcpy(to, job->from + (size_t)(job->from_at ? job->from_at[i] : i) * job->size, job->size);
        else
            memset(to, 0, job->size);
    }
}

int gc_copy_rows(ptrdiff_t n, size_t size, const void *from, const ptrdiff_t *from_at, void *to, const ptrdiff_t *to_at)
{
    rows_job job = {n, size, from, from_at, to, to_at};
    return gc_parallel((double)n * (double)size < SERIAL_BYTES ? 1 : gc_get_num_threads(), 0, copy_body, &job);
}
