/* Zoneout (Krueger et al., 2017): units that keep their old value for a step. Beside the cells, which make the new state as
 * always, from the old one.
 *
 * forward    (z1)  h_t = k h_{t-1} + (1 - k) h'_t with h'_t the cell's, and for a cell with c (z2) the same with a k of its own,
 *                  k being 1 with the probability p and else 0; in inference p itself
 * backward         dL/dh'_t = (1 - k) dL/dh_t, and k dL/dh_t goes to dL/dh_{t-1}; for c the same
 * twin             gradcore/reference/recurrent.py: recurrent_forward, recurrent_backward, zoneout_mask
 */
#ifndef REAL
#error "zoneout.inc.h needs real.inc.h and chunk.h"
#endif

/* Elements that hold the k of all units. */
INLINE ptrdiff_t FN(zoneout_units)(const gc_recurrent *s) { return (s->H + THREEFRY_WORDS - 1) / THREEFRY_WORDS * THREEFRY_WORDS; }

/* The k of THREEFRY_WORDS units of h, part 0, or c, part 1, from unit `first` on, in one row of the tape. */
INLINE void FN(zoneout_block)(const gc_zoneout *zoneout, ptrdiff_t H, ptrdiff_t row, int part, ptrdiff_t first, REAL *k)
{
    const double p = zoneout->p;
    uint32_t words[THREEFRY_WORDS];
    if (zoneout->mean || p == 1) { /* whose limit would be one more than a word holds */
        for (int i = 0; i < THREEFRY_WORDS; i++) k[i] = (REAL)p;
        return;
    }
    const uint32_t limit = (uint32_t)(p * 0x1p32);
    const ptrdiff_t blocks = (H + THREEFRY_WORDS - 1) / THREEFRY_WORDS;
    gc_threefry(zoneout->key, (uint64_t)((2 * row + part) * blocks + first / THREEFRY_WORDS), words);
    for (int i = 0; i < THREEFRY_WORDS; i++) k[i] = words[i] < limit;
}

/* The k of units [u0, u1); those beside them may be written, too. */
static void FN(zoneout_row)(const gc_recurrent *s, ptrdiff_t row, int part, ptrdiff_t u0, ptrdiff_t u1, REAL *k)
{
    for (ptrdiff_t j = u0 / THREEFRY_WORDS * THREEFRY_WORDS; j < u1; j += THREEFRY_WORDS)
        FN(zoneout_block)(&s->zoneout, s->H, row, part, j, k + j);
}

/* Of what a factor of 0 stands before nothing is left, be it infinite. */
INLINE REAL FN(zoned)(REAL k, REAL old, REAL new) { return (k > 0 ? k * old : 0) + (k < 1 ? (1 - k) * new : 0); }

/* new = k old + (1 - k) new, of units [u0, u1). */
INLINE void FN(zone)(ptrdiff_t u0, ptrdiff_t u1, const REAL *restrict k, const REAL *restrict old, REAL *restrict new)
{
    for (ptrdiff_t j = u0; j < u1; j++) new[j] = FN(zoned)(k[j], old[j], new[j]);
}

/* The inverse: dL/dnew = (1 - k) d and dL/dold = k d, where both of `scale` multiply d. */
INLINE void FN(zone_apart)(ptrdiff_t u0, ptrdiff_t u1, const REAL *restrict k, const REAL *restrict d, const REAL scale[2],
                           REAL *restrict new, REAL *restrict old)
{
    const REAL first = scale[0], second = scale[1];
    for (ptrdiff_t j = u0; j < u1; j++) {
        const REAL its = d[j] * first * second;
        old[j] = FN(zoned)(k[j], its, 0);
        new[j] = FN(zoned)(k[j], 0, its);
    }
}
