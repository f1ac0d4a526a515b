#!/usr/bin/env bash
# Start PROCESSES copies of a Python tool under torchrun; shared by dist_train.sh and
# dist_test.sh, which say how to set NNODES, NODE_RANK, MASTER_ADDR and PORT.
#
#   bash tools/torchrun.sh PROCESSES TOOL [ARGUMENTS]
set -eu
PROCESSES=$1
shift
case $PROCESSES in
  '' | *[!0-9]* | 0) echo "the number of processes must be at least 1, not '$PROCESSES'" >&2; exit 2 ;;
esac

# The environment of `make setup`, unless another one is active.
PYTHON=python
if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && [ -x "$(dirname "$0")/../.venv/bin/python" ]; then
  PYTHON=$(dirname "$0")/../.venv/bin/python
fi
# Without this, torchrun gives each process one thread and says so at length.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

NNODES=${NNODES:-1}
if [ "$NNODES" -gt 1 ]; then
  : "${MASTER_ADDR:?on several machines, set MASTER_ADDR to the first one}"
  : "${NODE_RANK:?on several machines, set NODE_RANK to 0 .. NNODES-1}"
  RENDEZVOUS="--nnodes $NNODES --node-rank $NODE_RANK --master-addr $MASTER_ADDR --master-port ${PORT:-29500}"
elif [ -n "${PORT:-}" ]; then
  RENDEZVOUS="--master-addr 127.0.0.1 --master-port $PORT"
else
  RENDEZVOUS=--standalone  # a free port of its own: two runs on a machine do not meet
fi
# shellcheck disable=SC2086
exec "$PYTHON" -m torch.distributed.run $RENDEZVOUS --nproc-per-node "$PROCESSES" "$@"
