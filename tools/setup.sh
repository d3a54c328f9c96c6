#!/bin/sh
# Build $VENV from $LOCK for the interpreter $PYTHON (version $1); do nothing if it is there.
# requirements.lock is what running needs; requirements-dev.lock adds what tests and checks need.
set -eu
wanted=${1:-}
if [ -z "$wanted" ]; then
    echo "error: no interpreter '$PYTHON'; give one that exists, e.g. make setup PYTHON=python3.12" >&2
    exit 2
fi
# A stamp holds what was installed, so that each lock is installed once for an interpreter.
stamp="$VENV/.built-from-$(basename "$LOCK" .lock)"
content="$wanted $(cksum < "$LOCK")"
root=$(cd "$(dirname "$0")/.." && pwd)
# The command and the packages of this very checkout, from any folder. pip would have to build them,
# with a backend that no lock pins.
link_checkout() {
    cat > "$VENV/bin/isoflop" << END
#!/bin/sh
exec "\$(dirname "\$(readlink -f "\$0")")/python" -P "$root/experiments/__main__.py" "\$@"
END
    chmod +x "$VENV/bin/isoflop"
    site=$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
    echo "$root" > "$site/isoflop.pth"
    touch "$VENV/.linked"
}
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$content" ] && [ -x "$VENV/bin/isoflop" ]; then
    [ -f "$VENV/.linked" ] || link_checkout
    exit 0
fi

if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "error: $PYTHON is Python $wanted; 3.11 or newer is needed, e.g. make setup PYTHON=python3.12" >&2
    exit 2
fi
echo "setting up $VENV for Python $wanted from $LOCK (once; a few minutes)"
if [ ! -f "$VENV/.python" ] || [ "$(cat "$VENV/.python")" != "$wanted" ]; then
    rm -rf "$VENV"
    if "$PYTHON" -c 'import ensurepip' 2> /dev/null; then
        "$PYTHON" -m venv "$VENV"
    else  # Debian's python3 without python3-venv: the host's own pip fills the environment
        "$PYTHON" -m venv --without-pip "$VENV"
        site=$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
        "$PYTHON" -m pip install -qq --target "$site" pip
    fi
    echo "$wanted" > "$VENV/.python"
fi
"$VENV/bin/python" -m pip install -qq --require-hashes -r "$LOCK"
link_checkout
echo "$content" > "$stamp"
