#!/bin/bash
# A training on one machine, with one process per GPU: PROCESSES=8 bash one_node.sh cifar10-linf-atent
set -euo pipefail
recipe=${1:?usage: one_node.sh RECIPE [OPTIONS]}
exec torchrun --standalone --nproc-per-node "${PROCESSES:-2}" --max-restarts 3 -m atent train "$recipe" "${@:2}"
