#!/usr/bin/env bash
# tools/dist_train.sh CONFIG NUM_PROCESSES [arguments of train.py]: one process a GPU, or gloo on CPUs where there is none. PYTHON chooses one.
set -eu
config=$1 num=$2
shift 2
exec "${PYTHON:-python}" -m torch.distributed.run --standalone --nproc_per_node="$num" "$(dirname "$0")/train.py" "$config" \
    --launcher pytorch "$@"
