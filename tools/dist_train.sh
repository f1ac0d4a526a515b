#!/usr/bin/env bash
# Train on several GPUs of this machine, or of several machines; without GPUs, on CPUs.
#
#   bash tools/dist_train.sh CONFIG GPUS [ARGUMENTS OF tools/train.py]
#
# On N machines run it on each, with the same MASTER_ADDR (a name or address of the
# first) and PORT, and NODE_RANK from 0 to N-1:
#
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 PORT=29500 bash tools/dist_train.sh CONFIG 8
set -eu
if [ $# -lt 2 ]; then
  sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
CONFIG=$1
GPUS=$2
shift 2
exec bash "$(dirname "$0")/torchrun.sh" "$GPUS" "$(dirname "$0")/train.py" "$CONFIG" --launcher pytorch "$@"
