#!/usr/bin/env bash
# Train on a Slurm cluster, one task per GPU. The order is that of other OpenMMLab projects.
#
#   bash tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [ARGUMENTS OF tools/train.py]
#
# GPUS (8 in all), GPUS_PER_NODE (8), CPUS_PER_TASK (10) and SRUN_ARGS can be set, e.g.
#
#   GPUS=16 SRUN_ARGS="--time=2-0" bash tools/slurm_train.sh gpu patchmix CONFIG work_dirs/a --amp
#
# Five minutes before its time is over (SIGNAL changes that) the run saves and ends with exit code 75.
# It is then started again with --resume.
set -eu
case ${4:--} in
  -*) sed -n '2,11s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;  # none, or an argument of train.py
esac
PARTITION=$1
JOB_NAME=$2
CONFIG=$3
WORK_DIR=$4
shift 4
GPUS=${GPUS:-8}
GPUS_PER_NODE=${GPUS_PER_NODE:-8}
[ "$GPUS" -ge "$GPUS_PER_NODE" ] || GPUS_PER_NODE=$GPUS

# The environment of `make setup`, unless another one is active.
PYTHON=python
if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && [ -x "$(dirname "$0")/../.venv/bin/python" ]; then
  PYTHON=$(dirname "$0")/../.venv/bin/python
fi
run() {
  # shellcheck disable=SC2086
  srun --partition "$PARTITION" --job-name "$JOB_NAME" --gres "gpu:$GPUS_PER_NODE" \
    --ntasks "$GPUS" --ntasks-per-node "$GPUS_PER_NODE" --signal "${SIGNAL:-USR1@300}" \
    --cpus-per-task "${CPUS_PER_TASK:-10}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    "$PYTHON" -u "$(dirname "$0")/train.py" "$CONFIG" --work-dir "$WORK_DIR" --launcher slurm "$@"
}
code=0
run "$@" || code=$?
while [ "$code" -eq 75 ]; do
  code=0
  run "$@" --resume || code=$?
done
exit "$code"
