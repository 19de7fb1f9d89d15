/* Random bits as a function of a key and a number: no state, so threads may begin anywhere, and what was drawn can be drawn
 * again. Threefry-4x32 with the twelve rounds that pass BigCrush: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as
 * easy as 1, 2, 3", 2011. It only adds, rotates and exclusive-ors, which every instruction set has for vectors. */
#ifndef GC_THREEFRY_H
#define GC_THREEFRY_H

#include "base/compiler.h"

enum {
    THREEFRY_COUNTERS = 16,               /* side by side, as the lanes of vectors */
    THREEFRY_WORDS = 4 * THREEFRY_COUNTERS /* of a block: word w of counter l is at THREEFRY_COUNTERS w + l */
};

INLINE uint32_t gc_rotated(uint32_t a, int by) { return a << by | a >> (32 - by); }

INLINE void gc_threefry(uint64_t key, uint64_t block, uint32_t words[THREEFRY_WORDS])
{
    static const int turns[8][2] = {{10, 26}, {11, 21}, {13, 27}, {23, 5}, {6, 20}, {17, 11}, {25, 10}, {18, 20}};
    const uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    const uint32_t keys[5] = {k0, k1, 0, 0, 0x1BD11BDAu ^ k0 ^ k1};
    for (int l = 0; l < THREEFRY_COUNTERS; l++) {
        const uint64_t counter = block * THREEFRY_COUNTERS + (uint64_t)l;
        uint32_t a = (uint32_t)counter + keys[0], b = (uint32_t)(counter >> 32) + keys[1], c = keys[2], d = keys[3];
#pragma GCC unroll 12
        for (int round = 0; round < 12; round++) {
            if (round % 2 == 0) {
                a += b, b = gc_rotated(b, turns[round % 8][0]) ^ a;
                c += d, d = gc_rotated(d, turns[round % 8][1]) ^ c;
            } else {
                a += d, d = gc_rotated(d, turns[round % 8][0]) ^ a;
                c += b, b = gc_rotated(b, turns[round % 8][1]) ^ c;
            }
            if (round % 4 == 3) {
                const int s = round / 4 + 1;
                a += keys[s % 5], b += keys[(s + 1) % 5], c += keys[(s + 2) % 5], d += keys[(s + 3) % 5] + (uint32_t)s;
            }
        }
        words[l] = a, words[THREEFRY_COUNTERS + l] = b;
        words[2 * THREEFRY_COUNTERS + l] = c, words[3 * THREEFRY_COUNTERS + l] = d;
    }
}

#endif
