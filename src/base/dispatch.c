/* Chooses the kernel table of one instruction set, once, when the module is imported. */
#include <stdio.h>
#include <string.h>

#include "gradcore.h"

#define OPTION(option)

#define FEATURE(name)
#define SET(name, features) extern const gc_table gc_table_##name;
#include "isa/isa.def"
#undef FEATURE
#undef SET

#if defined(__x86_64__) && defined(__GNUC__)
#define FEATURE(name) &&__builtin_cpu_supports(#name)
#else
#define FEATURE(name)
#endif

const gc_table *gc_select(const char *wanted, char *supported, size_t size)
{
#define SET(name, features) +1
    const gc_table *usable[0
#include "isa/isa.def"
    ], *found = NULL;
#undef SET
    int n = 0, has = 1;
    size_t used = 0;
#if defined(__x86_64__) && defined(__GNUC__)
    __builtin_cpu_init();
#endif
#define SET(name, features)                                                                                                    \
    has = has features;                                                                                                        \
    if (has) usable[n++] = &gc_table_##name;
#include "isa/isa.def"
#undef SET

    supported[0] = '\0';
    while (n-- > 0) { /* the best first */
        const char *isa = usable[n]->isa;
        if (used < size) used += (size_t)snprintf(supported + used, size - used, "%s%s", used ? ", " : "", isa);
        if (!found && (!wanted || !wanted[0] || strcmp(wanted, isa) == 0)) found = usable[n];
    }
    return found;
}
