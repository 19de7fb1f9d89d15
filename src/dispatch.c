/* Chooses the kernel table of one instruction set, once, when the module is imported. */
#include <stdio.h>
#include <string.h>

#include "gradcore.h"

extern const gc_table gc_table_baseline;
#ifdef GC_HAVE_V3
extern const gc_table gc_table_v3;
#endif
#ifdef GC_HAVE_V4
extern const gc_table gc_table_v4;
#endif

#if defined(__x86_64__) && defined(__GNUC__)
#define CPU_HAS(feature) __builtin_cpu_supports(feature)
#else
#define CPU_HAS(feature) 0
#endif

static int cpu_has_v3(void)
{
    return CPU_HAS("avx2") && CPU_HAS("fma") && CPU_HAS("bmi") && CPU_HAS("bmi2");
}

static int cpu_has_v4(void)
{
    return cpu_has_v3() && CPU_HAS("avx512f") && CPU_HAS("avx512bw") && CPU_HAS("avx512cd") && CPU_HAS("avx512dq") &&
           CPU_HAS("avx512vl");
}

static int cpu_has_baseline(void)
{
#if defined(__x86_64__) && defined(__GNUC__)
    return CPU_HAS("sse4.2") && CPU_HAS("popcnt") && CPU_HAS("ssse3");
#else
    return 1;
#endif
}

const gc_table *gc_select(const char *wanted, char *supported, size_t size)
{
    const gc_table *best_first[3], *found = NULL;
    int n = 0;
    size_t used = 0;
#if defined(__x86_64__) && defined(__GNUC__)
    __builtin_cpu_init();
#endif
#ifdef GC_HAVE_V4
    if (cpu_has_v4()) best_first[n++] = &gc_table_v4;
#endif
#ifdef GC_HAVE_V3
    if (cpu_has_v3()) best_first[n++] = &gc_table_v3;
#endif
    if (cpu_has_baseline()) best_first[n++] = &gc_table_baseline;
    (void)cpu_has_v4;

    supported[0] = '\0';
    for (int i = 0; i < n; i++) {
        const char *isa = best_first[i]->isa;
        if (used < size) used += (size_t)snprintf(supported + used, size - used, "%s%s", i ? ", " : "", isa);
        if (wanted && wanted[0] ? strcmp(wanted, isa) == 0 : i == 0) found = best_first[i];
    }
    return found;
}
