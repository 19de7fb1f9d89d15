/* Work over a list of arrays, of any element type: the blocks of all of them are numbered through and shared out. */
#include "base/spans.h"
#include "base/threads.h"
#include "base/work.h"

/* A thread that gets fewer blocks than this is not worth waking. */
enum { BLOCKS_PER_THREAD = 8, LOOK_BLOCKS = 512 /* from one look whether to stop to the next */ };

void gc_number_blocks(gc_span *spans, ptrdiff_t n)
{
    ptrdiff_t blocks = 0;
    for (ptrdiff_t i = 0; i < n; i++) {
        spans[i].first_block = blocks;
        blocks += (spans[i].n + GC_BLOCK - 1) / GC_BLOCK;
    }
}

ptrdiff_t gc_number_of_blocks(const gc_span *spans, ptrdiff_t n)
{
    return n ? spans[n - 1].first_block + (spans[n - 1].n + GC_BLOCK - 1) / GC_BLOCK : 0;
}

typedef struct {
    const gc_span *spans;
    ptrdiff_t n, n_blocks;
    gc_block_body body;
    void *arg;
} blocks_job;

static void share_blocks(void *arg, gc_team *team, int thread)
{
    const blocks_job *j = arg;
    const ptrdiff_t size = gc_team_size(team), end = gc_cut(j->n_blocks, thread + 1, size);
    ptrdiff_t block = gc_cut(j->n_blocks, thread, size);

    /* The last array that begins at this block or before it; an empty array shares its number with the next one. */
    ptrdiff_t i = 0, after = j->n;
    while (after - i > 1) {
        const ptrdiff_t middle = i + (after - i) / 2;
        if (j->spans[middle].first_block <= block)
            i = middle;
        else
            after = middle;
    }
    for (; block < end; i++) {
        const gc_span *span = &j->spans[i];
        for (ptrdiff_t start = (block - span->first_block) * GC_BLOCK; start < span->n && block < end;
             start += GC_BLOCK, block++) {
            if (block % LOOK_BLOCKS == LOOK_BLOCKS - 1 && gc_stopped(team, thread)) return;
            j->body(j->arg, i, start, span->n - start < GC_BLOCK ? span->n - start : GC_BLOCK);
        }
    }
}

int gc_over_blocks(const gc_span *spans, ptrdiff_t n, int how, gc_block_body body, void *arg)
{
    blocks_job j = {spans, n, gc_number_of_blocks(spans, n), body, arg};
    const ptrdiff_t useful = j.n_blocks / BLOCKS_PER_THREAD, allowed = gc_get_num_threads();
    return gc_parallel((int)(useful < 1 ? 1 : useful < allowed ? useful : allowed), how, share_blocks, &j);
}
