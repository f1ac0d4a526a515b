#!/usr/bin/env bash
# Creates .venv where there is none and installs pinned packages into it, by uv or else by pip:
#   tools/setup.sh [PACKAGES]   as given to pip install; default: --editable .
# Called by `make`; every failure ends with one line that says how to mend it.
set -u
cd "$(dirname "$0")/.." || exit

PYTHON=${PYTHON:-}
NEED_GB=9
LOG=.venv/install.log

die() { printf '\nsetup stopped: %s\n' "$*" >&2; exit 1; }

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }
suits() { case $1 in 3.10 | 3.11 | 3.12 | 3.13 | 3.14) return 0 ;; *) return 1 ;; esac; }

if [ -z "$PYTHON" ]; then  # the newest one that suits, and that can make environments
  for name in python3.14 python3.13 python3.12 python3.11 python3.10 python3 python; do
    suits "$(version_of "$name")" || continue
    "$name" -c 'import ensurepip, venv' 2>/dev/null || continue
    PYTHON=$name
    break
  done
  [ -n "$PYTHON" ] ||
    die 'no Python from 3.10 to 3.14 with its venv module was found. On Debian or Ubuntu: apt-get install python3-venv; or name one: make setup PYTHON=/path/to/python3.12'
fi
version=$(version_of "$PYTHON") ||
  die "'$PYTHON' does not run. Name a working one: make setup PYTHON=/path/to/python3.12"
suits "$version" ||
  die "the pinned stack is for Python 3.10 to 3.14 and '$PYTHON' is $version. Name another: make setup PYTHON=/path/to/python3.12"
"$PYTHON" -c 'import ensurepip, venv' 2>/dev/null ||
  die "'$PYTHON' has no venv module. On Debian or Ubuntu: apt-get install python$version-venv"

room() { df -Pk . | awk 'NR==2 {print int($4 / 1048576)}'; }
[ -x .venv/bin/python ] || [ "$(room)" -ge "$NEED_GB" ] ||
  die "the stack needs about ${NEED_GB} GB here and $(room) GB are free. Free some space, or clone onto a larger disk."

[ $# -gt 0 ] || set -- --editable .
if ! .venv/bin/python -c '' 2>/dev/null; then
  rm -rf .venv
  "$PYTHON" -m venv --without-pip .venv || die "could not create .venv (see the lines above)"
  : >"$LOG" || die "cannot write $LOG"
  echo "Setting up .venv (about 7 GB, most of it torch; once only). Details: $LOG"
fi

PINS=requirements/constraints.txt
by_pip() {
  .venv/bin/python -m pip --version >/dev/null 2>&1 || .venv/bin/python -m ensurepip || return
  .venv/bin/python -m pip install --disable-pip-version-check --progress-bar off -c "$PINS" "$@"
}
# Where Python may not store compiled modules, each start would compile them again.
by_uv() { [ -n "$UV" ] && "$UV" pip install ${PYTHONDONTWRITEBYTECODE:+--compile-bytecode} --python .venv/bin/python -c "$PINS" "$@"; }

UV=${UV-$(command -v uv || echo .venv/bin/uv)}  # empty: pip alone
# The machine's own pip puts uv into .venv 8 s sooner than a new pip.
[ -z "$UV" ] || [ -x "$UV" ] || "$PYTHON" -m pip --python .venv/bin/python install -q uv >>"$LOG" 2>&1 ||
  by_pip uv >>"$LOG" 2>&1 || UV=

install() {  # install WHAT-IT-IS PIP-ARGUMENTS...
  printf '  %-58s' "$1 ..."
  local began=$SECONDS
  shift
  if ! by_uv "$@" >>"$LOG" 2>&1 && ! by_pip "$@" >>"$LOG" 2>&1; then
    echo failed
    [ "$(room)" -ge 1 ] || die "the disk is full. Free about ${NEED_GB} GB and run make again."
    grep -E '^(ERROR|error)' "$LOG" | tail -n 3 >&2
    die "neither uv nor pip could install this; see the log $LOG"
  fi
  echo "$((SECONDS - began)) s"
}

install "$*" "$@"
[ -x .venv/bin/pip ] || by_uv pip >>"$LOG" 2>&1  # for packages of one's own

# opencv-python needs libGL, which servers often lack; the headless build of
# the same version does not, and serves everything we use.
if ! .venv/bin/python -c 'import cv2' >/dev/null 2>&1; then
  install 'OpenCV without display libraries' --force-reinstall --no-deps opencv-python-headless
fi
.venv/bin/python -c 'import cv2, mmpatchmix' >>"$LOG" 2>&1 ||
  die "the installed packages do not import; see the end of $LOG"
