# Sourced by the scripts beside it. Sets `python`; `use_environment LOCK` installs what LOCK pins into .venv, once. An
# interrupted set-up leaves no record and is redone from scratch.

root=$(CDPATH='' cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv
python=$venv/bin/python
record=$venv/installed
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}

find_python() {
    local candidate
    for candidate in python3 python3.11 python3.12 python3.13; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "error: no Python 3.11 or newer is on the path; install one and run again" >&2
    exit 2
}

packages() {
    { ls "$venv"/lib/*/site-packages 2>/dev/null || true; } | cksum
}

not_installed() {
    # An installer that changed nothing, such as one without a network, leaves what was there as good as it was.
    if [ -f "$record.before" ] && [ "$(packages)" = "$had" ]; then mv "$record.before" "$record"; fi
    echo "error: the packages could not be installed (see above); connect to a network, or configure pip's or uv's" \
        "index, and run again" >&2
    exit 2
}

install_lock() {
    local lock=$1 quiet= base
    [ -t 2 ] || quiet=--quiet
    if command -v uv >/dev/null; then
        # With pip, which installs the extras.
        [ -x "$python" ] || uv venv $quiet --seed --python '>=3.11' "$venv" || not_installed
        uv pip install $quiet --python "$python" --require-hashes --no-deps -r "$lock" || not_installed
    else
        if [ ! -x "$python" ]; then
            base=$(find_python)
            "$base" -m venv "$venv"
        fi
        "$python" -m ensurepip >/dev/null 2>&1 || true # a .venv that uv made has no pip
        "$python" -m pip install $quiet --disable-pip-version-check --require-hashes --no-deps -r "$lock" ||
            not_installed
    fi >&2
}

mark_of() { # the name and checksum of a lock
    echo "$(basename "$1") $(cksum <"$1")"
}

is_installed() {
    grep -qxF "$(mark_of "$1")" "$record" 2>/dev/null
}

set_up() {
    local lock=$1 other marks had changed=
    echo "setting up $venv, once: about 300 MB to download, 0.9 GB on disk, about a minute" >&2
    [ -f "$record" ] || rm -rf "$venv"
    # Another lock stays recorded as installed only while that lock is unchanged.
    marks=$(for other in "$root"/scripts/*.lock; do if is_installed "$other"; then mark_of "$other"; fi; done)
    had=$(packages)
    if [ -f "$record" ]; then
        if grep -q "^$(basename "$lock") " "$record"; then changed=yes; fi
        mv "$record" "$record.before"
    fi
    install_lock "$lock"
    printf '%s\n' "$marks" "$(mark_of "$lock")" | grep . >"$record.new"
    mv "$record.new" "$record"
    rm -f "$record.before"
    if [ -n "$changed" ]; then
        echo "the packages of $venv have changed: install extras that you added, such as '.[gpu]', again" >&2
    fi
}

use_environment() {
    local lock=$root/scripts/$1
    if is_installed "$lock"; then return; fi
    if [ -e "$venv" ] && [ ! -e "$root/.venv.lock" ]; then
        echo "error: $venv was not made by these scripts; move it away and run again" >&2
        exit 2
    fi
    if [ ! -w "$root" ]; then
        echo "error: $root, where .venv is set up once, cannot be written; run this first as a user who can" >&2
        exit 2
    fi
    (
        # One set-up at a time, where flock exists; a process that has waited finds the work done.
        if command -v flock >/dev/null; then flock 9; fi
        if ! is_installed "$lock"; then set_up "$lock"; fi
    ) 9>"$root/.venv.lock"
}
