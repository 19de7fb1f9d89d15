/* The only door to OpenMP: team size, barrier, what happens after a fork, and the floating-point mode of a worker. */
#include "gradcore.h"

#include <stdatomic.h>

#ifdef _OPENMP
#include <omp.h>
#endif
#if !defined(_WIN32)
#include <pthread.h>
#include <sched.h>
#endif
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#define PAUSE() _mm_pause()
#else
#define PAUSE() ((void)0)
#endif

struct gc_team {
    int size;
    atomic_int arrived;
    atomic_int phase;
};

static atomic_int num_threads = 1, workers_lost;

/* libgomp's workers do not survive a fork, and the child would wait for them for ever: it works alone. Whether there are
 * any is not known, because other libraries of the process use libgomp as well. */
#if !defined(_WIN32)
static void in_child(void) { atomic_store(&workers_lost, 1); }
static pthread_once_t once = PTHREAD_ONCE_INIT;
static void watch_forks(void) { pthread_atfork(NULL, NULL, in_child); }
#endif

int gc_team_size(const gc_team *team) { return team->size; }
int gc_get_num_threads(void) { return atomic_load(&num_threads); }

void gc_set_num_threads(int n)
{
#if !defined(_WIN32)
    pthread_once(&once, watch_forks); /* before there can be more than one thread */
#endif
    atomic_store(&num_threads, n);
}

int gc_has_openmp(void)
{
#ifdef _OPENMP
    return 1;
#else
    return 0;
#endif
}

/* Spins, because a step of a small network is shorter than a sleep; yields when the wait is long, because there may be more
 * threads than cores. */
void gc_barrier(gc_team *team)
{
    enum { SPINS = 2000 };
    if (team->size == 1) return;
    int phase = atomic_load_explicit(&team->phase, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&team->arrived, 1, memory_order_acq_rel) == team->size - 1) {
        atomic_store_explicit(&team->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&team->phase, phase + 1, memory_order_release);
        return;
    }
    for (int spins = 0; atomic_load_explicit(&team->phase, memory_order_acquire) == phase; spins++) {
        PAUSE();
#if !defined(_WIN32)
        if (spins >= SPINS) sched_yield();
#endif
    }
}

void gc_parallel(int n, void (*body)(void *arg, gc_team *team, int thread), void *arg)
{
    gc_team team = {1, 0, 0};
#ifdef _OPENMP
    if (n > 1 && !atomic_load(&workers_lost)) {
#pragma omp parallel num_threads(n)
        {
#pragma omp single
            team.size = omp_get_num_threads();
            body(arg, &team, omp_get_thread_num());
        }
        return;
    }
#endif
    (void)n;
    body(arg, &team, 0);
}

#if defined(__x86_64__) || defined(_M_X64)
unsigned long long gc_ftz_enter(void)
{
    unsigned int mode = _mm_getcsr();
    _mm_setcsr(mode | 0x8040); /* flush-to-zero, denormals-are-zero */
    return mode;
}
void gc_ftz_leave(unsigned long long mode)
{
    /* the exception flags raised meanwhile stay raised */
    _mm_setcsr((unsigned int)mode | (_mm_getcsr() & 0x3f));
}
#elif defined(__aarch64__) && defined(__GNUC__)
unsigned long long gc_ftz_enter(void)
{
    unsigned long long mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    __asm__ volatile("msr fpcr, %0" : : "r"(mode | (1ull << 24)));
    return mode;
}
void gc_ftz_leave(unsigned long long mode) { __asm__ volatile("msr fpcr, %0" : : "r"(mode)); }
#else
unsigned long long gc_ftz_enter(void) { return 0; }
void gc_ftz_leave(unsigned long long mode) { (void)mode; }
#endif
