#!/usr/bin/env bash
# One process for each GPU of this host (or PROCESSES of them on a CPU):
#   launch/torchrun.sh train recipes/paper-best.yaml training.resume=auto
# Many hosts: the same on each, with HOSTS, HOST (0, 1, …) and FIRST_HOST (address of host 0) set.
set -euo pipefail

if [ "$#" -lt 2 ]; then
    echo "usage: [PROCESSES=n] [HOSTS=n HOST=i FIRST_HOST=address] $0 train|extract|evaluate ARGUMENTS" >&2
    exit 2
fi
hosts=${HOSTS:-1}
if [ "$hosts" -gt 1 ]; then
    where=(--nnodes="$hosts" --node-rank="${HOST:?set HOST to the number of this host, from 0}"
        --master-addr="${FIRST_HOST:?set FIRST_HOST to the address of host 0}" --master-port="${PORT:-29500}")
else
    where=(--standalone)
fi
exec torchrun "${where[@]}" --nproc-per-node="${PROCESSES:-gpu}" -m llm_modules "$@"
