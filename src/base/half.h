/* Half precision (IEEE binary16), as the bits it is stored in, to double and back. Portable and without branches, so that
 * compilers make vectors of the loops. NaN stays NaN with its bits. Included by per_isa.c only. */
#ifndef GC_HALF_H
#define GC_HALF_H

#include <string.h>

#include "base/compiler.h"
#include "base/status.h"

INLINE double double_of_half(uint16_t half)
{
    const uint64_t magnitude = half & 0x7fff, sign = (uint64_t)(half & 0x8000) << 48;
    const double subnormal = (double)(int)magnitude * 0x1p-24;
    uint64_t bits, small;
    double x;
    memcpy(&small, &subnormal, sizeof small);
    bits = (magnitude << 42) + ((uint64_t)(magnitude < 0x7c00 ? 1023 - 15 : 2047 - 31) << 52);
    bits = (magnitude < 0x400 ? small : bits) | sign;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Rounded once, to the nearest or else to even; from 65520 on it is infinite. */
INLINE uint16_t half_of_double(double x)
{
    const double least_bit = 0x1p28; /* in a sum with it the last bit is worth 2^-24, as in a subnormal half */
    uint64_t bits, small, least, magnitude, normal, nan;
    memcpy(&bits, &x, sizeof bits);
    magnitude = bits & 0x7fffffffffffffff;
    memcpy(&x, &magnitude, sizeof x);
    x += least_bit;
    memcpy(&small, &x, sizeof small);
    memcpy(&least, &least_bit, sizeof least);
    small -= least;
    normal = ((magnitude + 0x1ffffffffff + (magnitude >> 42 & 1)) >> 42) - ((1023 - 15) << 10);
    normal = normal < 0x7c00 ? normal : 0x7c00;
    nan = magnitude >> 42 & 0x3ff;
    nan = 0x7c00 | nan | (nan == 0);
    magnitude = magnitude > 0x7ff0000000000000 ? nan : magnitude < 0x3f10000000000000 ? small : normal;
    return (uint16_t)(magnitude | (bits >> 48 & 0x8000));
}

static void halves_to_doubles(const uint16_t *half, ptrdiff_t n, double *x)
{
    for (ptrdiff_t i = 0; i < n; i++) x[i] = double_of_half(half[i]);
}

static void doubles_to_halves(const double *x, ptrdiff_t n, uint16_t *half)
{
    for (ptrdiff_t i = 0; i < n; i++) half[i] = half_of_double(x[i]);
}

#endif
