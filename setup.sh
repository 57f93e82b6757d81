#!/usr/bin/env bash
# Create .venv with the versions in constraints.txt, unless that is done already.
# Takes the first of python3.11, python3.12 and python3.13 that works, or $PYTHON.
set -euo pipefail
cd "$(dirname "$0")"

log=.venv/setup.log
done_file=.venv/complete # written last; holds what the environment was made from

fail() {
    echo "setup: $1" >&2
    exit 1
}

# Print the interpreter behind command $1, when it runs and is of a supported version.
# (The base one: the command found first may live in the very .venv that is to be removed.)
interpreter() {
    "$1" -c 'import sys
if not (3, 11) <= sys.version_info[:2] <= (3, 13): sys.exit(1)
print(getattr(sys, "_base_executable", sys.executable))' 2>/dev/null </dev/null
}

# True unless $PYTHON asks for another interpreter than the one in .venv.
same_python() {
    about='import sys; print(sys.version, sys.base_prefix)'
    [ -z "${PYTHON:-}" ] ||
        [ "$("$PYTHON" -c "$about" 2>/dev/null)" = "$(.venv/bin/python -c "$about")" ]
}

can_make_venv() {
    "$1" -c 'import ensurepip, venv' 2>/dev/null </dev/null
}

find_python() {
    python= incomplete=
    for name in "$@"; do
        found=$(interpreter "$name") || continue
        if can_make_venv "$found"; then
            python=$found
            return
        fi
        incomplete=${incomplete:-$found}
    done
    if [ -n "$incomplete" ]; then
        fail "$incomplete lacks the modules venv and ensurepip (Debian, Ubuntu: install its python3-venv package)."
    elif [ -n "${PYTHON:-}" ]; then
        fail "PYTHON=$PYTHON does not run or is not Python 3.11, 3.12 or 3.13."
    fi
    fail "no working python3.11, python3.12 or python3.13 on PATH; install one, or name it: make PYTHON=/path/to/python"
}

# Of pip's many lines, show those that explain a wait.
progress() {
    packages=0
    while IFS= read -r line; do
        case $line in
        Collecting\ *)
            packages=$((packages + 1))
            if [ $((packages % 25)) = 0 ]; then echo "  $packages packages found"; fi
            ;;
        *Downloading\ *\([0-9][0-9]*\ MB\)) echo "  downloading ${line##*[/ ]Downloading }" ;;
        Installing\ collected\ *) echo "  installing them all (a minute or two)" ;;
        esac
    done
}

explain_pip_failure() {
    if grep -qE 'after connection broken by|timed out|from versions: none' "$log"; then
        fail "pip cannot reach the package index; check the network or the proxy (pip's words: $log)."
    fi
    fail "pip failed: $(grep -m 1 '^ *ERROR' "$log" || echo 'for a reason it did not name') (all its words: $log)"
}

recipe="$(cat pyproject.toml constraints.txt | cksum) $PWD"
if [ "$(cat "$done_file" 2>/dev/null)" = "$recipe" ] && interpreter .venv/bin/python >/dev/null && same_python; then
    exit 0
fi

if [ -n "${PYTHON:-}" ]; then find_python "$PYTHON"; else find_python python3.11 python3.12 python3.13; fi
if [ -e .venv ]; then echo "setup: .venv is incomplete or out of date; recreating it"; fi
echo "setup: installing into .venv with $python (some minutes the first time)"
rm -rf .venv
mkdir .venv
"$python" -m venv .venv >"$log" 2>&1 || fail "$python cannot make a virtual environment: $(tail -n 1 "$log")"
PYTHONUNBUFFERED=1 .venv/bin/python -m pip install --progress-bar off \
    -c constraints.txt -e '.[dev]' 2>&1 | tee "$log" | progress || explain_pip_failure
echo "$recipe" >"$done_file"
echo "setup: .venv is ready"
