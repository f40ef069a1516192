/* Sharing work among devices and their workers: whoever is free takes the next piece. */
#ifndef RSM_SHARE_H
#define RSM_SHARE_H

#include "core/env.h"

/* One that works, in a thread of its own when there are several. */
typedef struct rsm_sharer {
    rsm_env *env;                /* where its calls leave their errors; each has another, one perhaps the
                                  * caller's */
    int lost;                    /* it failed, and takes nothing more */
    size_t done;                 /* pieces finished */
    double quickest;             /* seconds for each unit of the quickest: others may have built kernels first */
} rsm_sharer;

typedef struct rsm_work {
    const char *what;            /* for the progress callback */
    size_t pieces;
    double units;                /* of work in a piece, alike in all uses of a sharer */
    /* Does one piece; nobody else has it. */
    resmap_status (*run)(void *data, size_t sharer, size_t piece);
    /* Of several sharers each takes pieces of the rank lowest to it first, in order; a single one takes all in order.
     * Below 0, alike for all: not to be done. Ranks may not change meanwhile. */
    int (*rank)(const void *data, size_t sharer, size_t piece);
    void *data;
} rsm_work;

/* Does every piece, or fails with env's error. A single sharer works in the caller's thread. The progress
 * callback is called in the caller's thread, the log in anyone's, never two at a time; sharers that poll
 * their env learn that all is to stop. A sharer whose device fails (its memory, its build, its driver) is
 * lost with a warning, and its piece is done by another; the error is the last sharer's. */
resmap_status rsm_share(rsm_env *env, const rsm_work *work, rsm_sharer *sharers, size_t count);

/* The rank of work whose pieces are alike to everyone. */
int rsm_any_piece(const void *data, size_t sharer, size_t piece);

/* Whether `sharer` should take one of `left` pieces of equal size: not when the others would have finished all of them by
 * the time that it takes for one. */
int rsm_share_worth(const rsm_sharer *sharers, size_t count, size_t sharer, size_t left);

/* Whether a failure is the device's, so that another may succeed. */
int rsm_is_device_failure(resmap_status status);

#endif
