/* Helpers around jansson for those who write JSON. */
#ifndef RSM_JSON_H
#define RSM_JSON_H

#include <jansson.h>

#include "core/env.h"

/* The number, or null when it is not finite (JSON has no infinity). NULL: no memory. */
json_t *rsm_json_number(double value);
/* The text, or null for NULL. What is not UTF-8 (file names may be anything) becomes '?'. NULL: no memory. */
json_t *rsm_json_string(const char *text);
/* The document as indented text in fresh memory, ending with a line break. Takes over `root`; NULL means that
 * building it ran out of memory. */
resmap_status rsm_json_text(rsm_env *env, json_t *root, char **text);

#endif
