/* Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): random numbers as a
 * pure function of a key and a counter, the same on every machine and in any order. */
#ifndef RSM_PHILOX_H
#define RSM_PHILOX_H

#include <stdint.h>

void rsm_philox(const uint32_t key[2], const uint32_t counter[4], uint32_t out[4]);

#endif
