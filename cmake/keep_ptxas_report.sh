#!/bin/sh
# Compiler launcher: runs nvcc and keeps the assembler's report on registers, stack and spills beside the object file,
# as <object>.ptxas. What else the compiler says goes to stderr.
set -u
object=
previous=
for argument in "$@"; do
    [ "$previous" = -o ] && object=$argument
    previous=$argument
done
log=$(mktemp) || exit 1
trap 'rm -f "$log"' EXIT
"$@" 2>"$log"
status=$?
report='^ptxas info|^ *[0-9]+ bytes stack frame'
[ -z "$object" ] || grep -E "$report" "$log" >"$object.ptxas"
grep -vE "$report" "$log" >&2
exit $status
