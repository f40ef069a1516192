#include "core/json.h"

#include <math.h>
#include <stdlib.h>

json_t *rsm_json_number(double value)
{
    return isfinite(value) ? json_real(value) : json_null();
}

json_t *rsm_json_string(const char *text)
{
    json_t *value;
    char *copy;

    if (!text) return json_null();
    value = json_string(text);
    if (value) return value;
    copy = rsm_strdup(text);   /* jansson refused it: not UTF-8 (or no memory, then we fail again) */
    for (char *p = copy; p && *p; p++)
        if ((unsigned char)*p >= 0x80) *p = '?';
    value = copy ? json_string(copy) : NULL;
    free(copy);
    return value;
}

resmap_status rsm_json_text(rsm_env *env, json_t *root, char **text)
{
    char *dump = root ? json_dumps(root, JSON_INDENT(2)) : NULL;
    char *line = dump ? rsm_format("%s\n", dump) : NULL;

    json_decref(root);
    free(dump);
    if (!line) return rsm_fail(env, RESMAP_NO_MEMORY, "memory: not enough to write JSON");
    *text = line;
    return RESMAP_OK;
}
