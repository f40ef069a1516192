/* Fourier transforms of any length in float64 on the host: mixed radix for lengths that are products of 2, 3,
 * 5, 7, 11 and 13, Bluestein's algorithm for the others. */
#ifndef RSM_FFT_HOST_H
#define RSM_FFT_HOST_H

#include <stddef.h>

#include "device/device.h"

typedef struct rsm_fft_plan rsm_fft_plan;

/* For transforms of n >= 1 complex numbers; NULL: no memory. Plans are not changed by running. */
rsm_fft_plan *rsm_fft_plan_create(size_t n);
void rsm_fft_plan_free(rsm_fft_plan *plan);
/* Doubles of work space that a run needs. */
size_t rsm_fft_plan_work(const rsm_fft_plan *plan);
/* Transforms n dense (re, im) pairs in place; backward scales by 1/n. */
void rsm_fft_plan_run(const rsm_fft_plan *plan, double *interleaved, rsm_direction direction, double *work);

#endif
