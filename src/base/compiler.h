/* What C11 has no word for, in the dialects of gcc and clang and of MSVC; elsewhere in plain C, which costs speed alone. With
 * GC_SCALAR the plain C is for all: tests/packaging/test_c.py compiles it as strict C11. */
#ifndef GC_COMPILER_H
#define GC_COMPILER_H

#if defined(__GNUC__) && !defined(GC_SCALAR)
#define INLINE static inline __attribute__((always_inline))
#define PREFETCH(address) __builtin_prefetch(address)
#define PREFETCH_L2(address) __builtin_prefetch(address, 0, 2)
/* Has the compiler make what it needs of x in the addresses themselves. It would keep every multiple, or every row's address, in
 * a register of its own, more than there are, and fetch them back from vector registers at the cost of multiply-adds. */
#define ADDRESS(x) __asm__("" : "+r"(x))
#else
#ifdef _MSC_VER
#define INLINE static __forceinline
#else
#define INLINE static inline
#endif
#define PREFETCH(address) ((void)(address))
#define PREFETCH_L2(address) ((void)(address))
#define ADDRESS(x) ((void)(x))
#endif

#ifdef _MSC_VER
#define THREAD_LOCAL __declspec(thread)
#else
#define THREAD_LOCAL _Thread_local
#endif

#endif
