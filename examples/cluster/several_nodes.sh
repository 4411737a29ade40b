#!/bin/bash
# A training on several machines with a shared run folder. Run it on every machine with its NODE (0 to NODES - 1):
#     NODES=2 NODE=0 MASTER=host0 PROCESSES=8 bash several_nodes.sh cifar10-linf-atent --name shared
set -euo pipefail
recipe=${1:?usage: several_nodes.sh RECIPE [OPTIONS]}
exec torchrun --nnodes "${NODES:?}" --node-rank "${NODE:?}" --nproc-per-node "${PROCESSES:-8}" \
    --master-addr "${MASTER:?}" --master-port "${PORT:-29500}" -m atent train "$recipe" "${@:2}"
