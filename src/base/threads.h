/* The only door to OpenMP. */
#ifndef GC_THREADS_H
#define GC_THREADS_H

#include "base/status.h"

typedef struct gc_team gc_team;

typedef void (*gc_body)(void *arg, gc_team *team, int thread);
enum { GC_EXACT = 1, GC_WHOLE = 2 }; /* subnormal numbers are kept, not flushed to zero; it is not stopped half way */

/* Run body(arg, team, thread) on up to n threads, thread 0 being the caller. Fewer threads may come: ask the team. GC_STOPPED
 * if gc_stopped has said so to any of them. */
int gc_parallel(int n, int how, gc_body body, void *arg);
int gc_team_size(const gc_team *team);
/* Every thread of the team waits for the others. All get the same answer: whether to stop, and then they return at once. */
int gc_barrier(gc_team *team);

/* Whether this thread of the team is to return soon, leaving things as they are, without another barrier. To be asked about
 * every millisecond. */
int gc_stopped(gc_team *team, int thread);
/* What thread 0 asks ten times a second, in the caller's floating-point mode: 0 to go on. */
void gc_set_ask(int (*ask)(void));

void gc_set_num_threads(int n);
int gc_get_num_threads(void);
int gc_has_openmp(void);

#endif
