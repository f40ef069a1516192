# Sourced by the tests of the program. Run from the build folder's top, as make check does:
#   sh SRCDIR/tests/cli/restore
# Gives $resmap, $tool, $vectors, $model (a small random network), and a fresh empty folder as the working directory.
srcdir=$(cd "$(dirname "$0")/../.." && pwd)
resmap=$PWD/resmap
tool=$PWD/tests/cli/tool
vectors=$srcdir/tests/vectors
model=$vectors/cascade.safetensors
[ -x "$resmap" ] && [ -x "$tool" ] || { echo "no $resmap or $tool: run make check"; exit 99; }

work=$(mktemp -d "${TMPDIR:-/tmp}/resmap-cli-XXXXXX") || exit 99
trap 'cd /; rm -rf "$work"' EXIT
trap 'exit 99' HUP INT TERM
mkdir "$work/in" "$work/out"
cd "$work" || exit 99
failures=0
checks=0

# fail TEXT: counts a failure and says what the last run gave
fail() {
    failures=$((failures + 1))
    echo "FAILED: $*"
    echo "  command: $last_command"
    echo "  status:  $status"
    sed 's/^/  stderr:  /' err 2>/dev/null
}
ok() { checks=$((checks + 1)); }

# run ARGUMENT…: the program; its status in $status, what it prints in the files printed and err
run() {
    last_command="resmap $*"
    "$resmap" "$@" >printed 2>err </dev/null
    status=$?
}

# is A B WHAT
is() {
    ok
    [ "x$1" = "x$2" ] || fail "$3: $1 instead of $2"
}

# ran WHAT: the last run must have succeeded
ran() {
    ok
    [ "$status" -eq 0 ] || fail "$1: exit status $status"
}

# left NAME…: exactly these files lie in out/, no temporary ones
left() {
    ok
    found=$(ls -A out | tr '\n' ' ')
    [ "$found" = "$(for f; do echo "$f"; done | sort | tr '\n' ' ')" ] || fail "left in out/: $found"
}

# refused STATUS TEXT…: the last run ended with STATUS, one line on stderr "resmap: …" that has each TEXT, nothing on stdout
refused() {
    ok
    [ "$status" -eq "$1" ] || fail "exit status $status instead of $1"
    shift
    [ "$(wc -l <err)" -eq 1 ] || fail "$(wc -l <err) lines on stderr instead of 1"
    case $(cat err) in "resmap: "*) ;; *) fail "stderr does not begin with 'resmap: '" ;; esac
    [ ! -s printed ] || fail "something on stdout: $(head -c 200 printed)"
    for text; do
        grep -qF -- "$text" err || fail "no '$text' on stderr"
    done
}

# await TEXT: until the program in the background has written it to stderr, with --progress always
# The err of an earlier command must be gone by then (: >err): the shell goes on before the job has opened its own.
await() {
    for tenth in $(seq 600); do
        grep -qF -- "$1" err && return
        sleep 0.1
    done
    fail "no '$1' on stderr after a minute"
}

# at_most NUMBER LIMIT WHAT
at_most() {
    ok
    awk "BEGIN { exit !($1 <= $2) }" </dev/null || fail "$3: $1 is above $2"
}

finish() {
    echo "$checks checks, $failures failures"
    [ "$failures" -eq 0 ] || exit 1
    exit 0
}
