#!/bin/sh
# embed-cl.sh FILE.cl...: writes to stdout a C file that holds the texts and rsm_kernel_source() (src/device/kernels.h).
# Bytes, not string literals: C99 compilers need not take literals over 4095 characters.
set -eu
LC_ALL=C
export LC_ALL

echo '/* Written by build-aux/embed-cl.sh. */'
echo '#include "device/kernels.h"'
echo
echo '#include <string.h>'
i=0
for file; do
    printf '\nstatic const unsigned char text_%d[] = {\n' "$i"
    od -An -v -tx1 "$file" | sed 's/[0-9a-f][0-9a-f]/0x&,/g'
    echo ' 0};'
    i=$((i + 1))
done

echo
echo 'static const struct { const char *program; const unsigned char *text; size_t length; } programs[] = {'
i=0
for file; do
    printf '    {"%s", text_%d, sizeof text_%d - 1},\n' "$(basename "$file" .cl)" "$i" "$i"
    i=$((i + 1))
done
cat <<'END'
    {NULL, NULL, 0}
};

const char *rsm_kernel_source(const char *program, size_t *length)
{
    for (size_t i = 0; programs[i].program; i++)
        if (strcmp(programs[i].program, program) == 0) {
            *length = programs[i].length;
            return (const char *)programs[i].text;
        }
    return NULL;
}

const char *rsm_kernel_program(size_t i)
{
    return programs[i].program;
}
END
