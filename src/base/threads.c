/* The only door to OpenMP: team size, barrier, stopping half way, what happens after a fork or when the system refuses a
 * thread, and the floating-point mode of a worker. */
#define _GNU_SOURCE /* syscall, mmap */
#include "base/threads.h"

#include "base/compiler.h"

#include <stdatomic.h>
#include <stdlib.h>

#ifdef _OPENMP
#include <omp.h>
#endif
#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#else
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <time.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#define PAUSE() _mm_pause()
#elif defined(__aarch64__) && defined(__GNUC__)
#define PAUSE() __asm__ volatile("isb")
#else
#define PAUSE() ((void)0)
#endif
#if defined(_WIN32)
#define YIELD() SwitchToThread()
#else
#define YIELD() sched_yield()
#endif

/* Each count on a cache line of its own: those who spin on `phase` keep it while others arrive. */
struct gc_team {
    int size, how;
    atomic_int stopped;      /* by the caller's wish, which some threads see earlier than others */
    unsigned long long mode; /* the caller's, of floating point */
    double ask_at;           /* in seconds; 0 before the first look at the clock */
    _Alignas(64) atomic_int arrived;
    _Alignas(64) atomic_uint phase; /* 2 for every barrier passed, and 1 from that on at which all learn that they are to stop */
};

static atomic_int num_threads = 1, workers_lost;

/* libgomp's workers do not survive a fork, and the child would wait for them for ever: it works alone. Whether there are
 * any is not known, because other libraries of the process use libgomp as well. */
#if !defined(_WIN32)
static void in_child(void) { atomic_store(&workers_lost, 1); }
static pthread_once_t once = PTHREAD_ONCE_INIT;

#ifdef _OPENMP
static size_t stack_size;  /* that of the threads that OpenMP creates */
static int openmp_default; /* the number of threads that OpenMP takes where nobody has called omp_set_num_threads */

/* omp_set_num_threads speaks for the thread that calls it: a new one still has the default. */
static void *ask_default(void *unused)
{
    (void)unused;
    openmp_default = omp_get_max_threads();
    return NULL;
}

static void look_at_openmp(void)
{
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    const char *text = getenv("OMP_STACKSIZE");
    if (!text) text = getenv("GOMP_STACKSIZE");
    if (text) {
        char *unit;
        const unsigned long long size = strtoull(text, &unit, 10);
        while (*unit == ' ') unit++;
        const int shift = *unit == 'B' || *unit == 'b'   ? 0
                          : *unit == 'M' || *unit == 'm' ? 20
                          : *unit == 'G' || *unit == 'g' ? 30
                                                         : 10;
        if (size < 1ull << 30) pthread_attr_setstacksize(&attributes, (size_t)(size << shift)); /* it refuses nonsense */
    }
    pthread_attr_getstacksize(&attributes, &stack_size);
    pthread_attr_destroy(&attributes);
    pthread_t thread;
    if (pthread_create(&thread, NULL, ask_default, NULL))
        ask_default(NULL);
    else
        pthread_join(thread, NULL);
}
#endif

static void prepare(void)
{
    pthread_atfork(NULL, NULL, in_child);
#ifdef _OPENMP
    look_at_openmp();
#endif
}
#endif

int gc_team_size(const gc_team *team) { return team->size; }
int gc_get_num_threads(void) { return atomic_load(&num_threads); }

void gc_set_num_threads(int n)
{
#if !defined(_WIN32)
    pthread_once(&once, prepare); /* before there can be more than one thread */
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

/* The last to arrive decides for all whether to stop, and lets them go. */
static void arrive(gc_team *team, unsigned phase)
{
    if (atomic_fetch_add_explicit(&team->arrived, 1, memory_order_acq_rel) != team->size - 1) return;
    const unsigned stop = atomic_load_explicit(&team->stopped, memory_order_relaxed) != 0;
    atomic_store_explicit(&team->arrived, 0, memory_order_relaxed);
    atomic_store_explicit(&team->phase, ((phase | 1) + 1) | stop, memory_order_release);
}

/* Spins, because a step of a small network is shorter than a sleep; yields when the wait is long, because there may be more
 * threads than cores. */
int gc_barrier(gc_team *team)
{
    enum { SPINS = 2000 };
    if (team->size == 1) return atomic_load_explicit(&team->stopped, memory_order_relaxed);
    const unsigned before = atomic_load_explicit(&team->phase, memory_order_relaxed);
    unsigned now;
    arrive(team, before);
    for (int spins = 0; (now = atomic_load_explicit(&team->phase, memory_order_acquire)) == before; spins++) {
        PAUSE();
        if (spins >= SPINS) YIELD();
    }
    return (int)(now & 1);
}

/* ---- the floating-point mode ------------------------------------------------------------------------------------------ */

#if defined(__x86_64__) || defined(_M_X64)
static const unsigned long long FLUSH = 0x8040; /* flush-to-zero, denormals-are-zero */
static unsigned long long get_mode(void) { return _mm_getcsr(); }
/* The exception flags that were raised meanwhile stay raised. */
static void set_mode(unsigned long long mode) { _mm_setcsr((unsigned int)mode | (_mm_getcsr() & 0x3f)); }
#elif defined(__aarch64__) && defined(__GNUC__)
static const unsigned long long FLUSH = 1ull << 24;
static unsigned long long get_mode(void)
{
    unsigned long long mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
}
static void set_mode(unsigned long long mode) { __asm__ volatile("msr fpcr, %0" : : "r"(mode)); }
#else
static const unsigned long long FLUSH = 0;
static unsigned long long get_mode(void) { return 0; }
static void set_mode(unsigned long long mode) { (void)mode; }
#endif

/* ---- stopping half way ------------------------------------------------------------------------------------------------- */

static int (*ask)(void);
void gc_set_ask(int (*what)(void)) { ask = what; }

static double seconds(void)
{
#if defined(_WIN32)
    return 1e-3 * (double)GetTickCount64();
#else
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
#endif
}

int gc_stopped(gc_team *team, int thread)
{
    const double interval = 0.1;
    int stopped = atomic_load_explicit(&team->stopped, memory_order_relaxed);
    if (thread || stopped || !ask || team->how & GC_WHOLE) return stopped;
    const double now = seconds();
    if (team->ask_at != 0 && now < team->ask_at) return 0;
    if (team->ask_at != 0) {
        const unsigned long long mode = get_mode();
        set_mode(team->mode);
        stopped = ask();
        set_mode(mode);
        atomic_store_explicit(&team->stopped, stopped, memory_order_relaxed);
    }
    team->ask_at = now + interval;
    return stopped;
}

/* ---- teams ------------------------------------------------------------------------------------------------------------- */

/* A thread of a team: the same floating-point mode in all of them, whatever the caller has chosen for itself, so that the bits
 * do not depend on who computes them. */
static void run(gc_body body, void *arg, gc_team *team, int thread)
{
    const unsigned long long mode = get_mode();
    set_mode(team->how & GC_EXACT ? mode & ~FLUSH : mode | FLUSH);
    body(arg, team, thread);
    set_mode(mode);
    /* who has left half way is not waited for */
    if (team->size > 1 && atomic_load_explicit(&team->stopped, memory_order_relaxed))
        arrive(team, atomic_load_explicit(&team->phase, memory_order_relaxed));
}

#ifdef _OPENMP
/* OpenMP keeps a pool of threads for every thread that opens parallel regions. Its size, that thread included: */
static THREAD_LOCAL int pool_size = 1;
/* After fewer threads came than were asked for, so many calls make do with the pool as it is: asking takes as long as a
 * small kernel does. */
enum { CALLS_BEFORE_NEXT = 1000 };
static THREAD_LOCAL int calls_left;

#if !defined(_WIN32)
static pthread_mutex_t growing = PTHREAD_MUTEX_INITIALIZER;

typedef struct trial {
    pthread_t thread;
    void *stack;
    pthread_mutex_t *gate;
    long id;
} trial;

static void *try_out(void *arg)
{
    trial *t = arg;
#if defined(__linux__)
    t->id = syscall(SYS_gettid);
#endif
    pthread_mutex_lock(t->gate);
    pthread_mutex_unlock(t->gate);
    return NULL;
}

/* A joined thread counts against the limits for a moment longer: until the kernel does not know it any more. */
static void wait_until_forgotten(const trial *t)
{
#if defined(__linux__)
    for (int i = 0; i < 1000 && syscall(SYS_tgkill, getpid(), t->id, 0) == 0; i++) sched_yield();
#else
    (void)t;
#endif
}

static int start(trial *t, pthread_mutex_t *gate)
{
    /* not the C library's, which would keep it for later threads, out of the reach of malloc */
    t->stack = mmap(NULL, stack_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (t->stack == MAP_FAILED) return 0;
    t->gate = gate;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    const int failed = pthread_attr_setstack(&attributes, t->stack, stack_size) ||
                       pthread_create(&t->thread, &attributes, try_out, t);
    pthread_attr_destroy(&attributes);
    if (failed) munmap(t->stack, stack_size);
    return !failed;
}

/* How many of n new threads the system grants: the OpenMP libraries end the process when it refuses one. So that many
 * plain threads, and some to spare for others who create threads at this moment, have to be alive together first. */
static int new_threads_granted(int n)
{
    enum { SPARE = 4 };
    trial *trials = malloc((size_t)(n + SPARE) * sizeof *trials);
    if (!trials) return 0;
    pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
    int made = 0;
    pthread_mutex_lock(&gate);
    while (made < n + SPARE && start(&trials[made], &gate)) made++;
    pthread_mutex_unlock(&gate);
    for (int i = 0; i < made; i++) pthread_join(trials[i].thread, NULL);
    for (int i = 0; i < made; i++) {
        wait_until_forgotten(&trials[i]);
        munmap(trials[i].stack, stack_size);
    }
    free(trials);
    return made > SPARE ? made - SPARE : 0;
}

/* To what the pool can grow, n at most. The lock is held if this returns more than the pool has: no two callers are
 * granted the same threads. */
static int growth(int n)
{
    if (calls_left > 0) {
        calls_left--;
        return pool_size;
    }
    pthread_mutex_lock(&growing);
    const int size = pool_size + new_threads_granted(n - pool_size);
    if (size < n) calls_left = CALLS_BEFORE_NEXT;
    if (size == pool_size) pthread_mutex_unlock(&growing);
    return size;
}
#endif

/* Who limits OpenMP in this thread, with omp_set_num_threads or threadpoolctl, means us as well. */
static int limited(int n)
{
#if !defined(_WIN32)
    const int limit = omp_get_max_threads();
    return limit < openmp_default && limit < n ? limit : n;
#else
    return n;
#endif
}

static void run_team(int n, gc_body body, void *arg, gc_team *team)
{
    /* A smaller region would end the other threads of the pool, and the next one create them again: they watch. */
    const int allowed = limited(gc_get_num_threads()), kept = pool_size < allowed ? pool_size : allowed;
    int size = n > kept ? n : kept, grows = 0;
#if !defined(_WIN32)
    if (size > pool_size) {
        size = growth(size);
        grows = size > pool_size;
    }
    if (size == 1) {
        run(body, arg, team, 0);
        return;
    }
#endif
#pragma omp parallel num_threads(size)
    {
#pragma omp single
        {
            const int came = omp_get_num_threads();
            team->size = came < n ? came : n;
        }
        const int thread = omp_get_thread_num();
        if (thread == 0) {
            pool_size = omp_get_num_threads();
#if !defined(_WIN32)
            if (grows) pthread_mutex_unlock(&growing); /* all threads are there */
#endif
        }
        if (thread < team->size) run(body, arg, team, thread);
    }
    (void)grows;
    if (pool_size < size) calls_left = CALLS_BEFORE_NEXT; /* OMP_DYNAMIC or OMP_THREAD_LIMIT */
}
#endif

int gc_parallel(int n, int how, gc_body body, void *arg)
{
    gc_team team = {.size = 1, .how = how, .mode = get_mode()};
    if (atomic_load(&workers_lost)) n = 1;
#ifdef _OPENMP
    /* inside another library's region it would be nested, with other rules for its threads */
    if (n > 1 && !omp_in_parallel() && (n = limited(n)) > 1)
        run_team(n, body, arg, &team);
    else
#endif
        run(body, arg, &team, 0);
    (void)n;
    return atomic_load(&team.stopped) ? GC_STOPPED : GC_OK;
}
