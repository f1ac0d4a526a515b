#!/usr/bin/env bash
# Start PROCESSES copies of a verb or a script under torchrun. dist_train.sh and dist_test.sh use
# it; dist_train.sh documents NNODES, NODE_RANK, MASTER_ADDR and PORT.
#
#   bash tools/torchrun.sh PROCESSES -m mmpatchmix VERB [ARGUMENTS]
#
# The argument --max-restarts N (or MAX_RESTARTS=N before the command) restarts all processes from
# the last checkpoint, up to N times, after one of them has failed. MEETING_SECONDS (60) is the
# rendezvous time-out, STOP_SECONDS (120) the time to save and exit after a signal.
set -eu
PROCESSES=${1?usage: bash tools/torchrun.sh PROCESSES -m mmpatchmix VERB [ARGUMENTS]}
shift
case $PROCESSES in
  '' | *[!0-9]* | 0) echo "the number of processes must be at least 1, not '$PROCESSES'" >&2; exit 2 ;;
esac

# The environment of `make setup`, unless another one is active.
PYTHON=python
if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && [ -x "$(dirname "$0")/../.venv/bin/python" ]; then
  PYTHON=$(dirname "$0")/../.venv/bin/python
fi
# Otherwise torchrun sets one thread and prints a long warning.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

whole() { case $2 in '' | *[!0-9]*) echo "$1 must be a whole number, not '$2'" >&2; exit 2 ;; esac; }
NNODES=${NNODES:-1}
MAX_RESTARTS=${MAX_RESTARTS:-0}
for argument in "$@"; do  # take --max-restarts N out
  shift
  case ${previous:-}$argument in
    --max-restarts) previous=--max-restarts:; continue ;;
    --max-restarts=*) MAX_RESTARTS=${argument#*=}; continue ;;
    --max-restarts:*) MAX_RESTARTS=$argument; previous=; continue ;;
  esac
  set -- "$@" "$argument"
done
whole NNODES "$NNODES"
whole MEETING_SECONDS "${MEETING_SECONDS:=60}"
whole STOP_SECONDS "${STOP_SECONDS:=120}"
export STOP_SECONDS
whole --max-restarts "$MAX_RESTARTS"
[ "$NNODES" -ge 1 ] || { echo "NNODES must be at least 1" >&2; exit 2; }
if [ "$NNODES" -gt 1 ]; then
  : "${MASTER_ADDR:?on several machines, set MASTER_ADDR to the first one}"
  : "${NODE_RANK:?on several machines, set NODE_RANK to 0 .. NNODES-1}"
  whole NODE_RANK "$NODE_RANK"
  whole PORT "${PORT:=29500}"
  [ "$NODE_RANK" -lt "$NNODES" ] || { echo "NODE_RANK=$NODE_RANK must be below NNODES=$NNODES" >&2; exit 2; }
  RENDEZVOUS="--nnodes $NNODES --node-rank $NODE_RANK --master-addr $MASTER_ADDR --master-port $PORT --rdzv-conf timeout=$MEETING_SECONDS"
  echo "node $NODE_RANK of $NNODES meets the others at $MASTER_ADDR:$PORT; a time-out after $MEETING_SECONDS s means that one of 0 .. $((NNODES - 1)) has not started or does not reach it" >&2
elif [ -n "${PORT:-}" ]; then
  RENDEZVOUS="--master-addr 127.0.0.1 --master-port $PORT"
else
  RENDEZVOUS=--standalone  # a free port, so that two runs on a machine do not conflict
fi
# shellcheck disable=SC2086
exec "$PYTHON" "$(dirname "$0")/torchrun.py" $RENDEZVOUS --nproc-per-node "$PROCESSES" \
  --max-restarts "$MAX_RESTARTS" "$@"
