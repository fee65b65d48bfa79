#!/bin/bash
# A study over the machines of a Slurm job. From the checkout, which all of them must see:
#
#     sbatch docs/slurm_ray.sh 01 03 --profile paper
#
# What follows the script's name goes to `atr study`. Submitted again, it continues what was cut off.
#
#SBATCH --job-name=atr
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --mem=32G
#SBATCH --time=24:00:00
#SBATCH --no-kill
# --no-kill: when a machine fails, its runs go on elsewhere. Without GPUs: sbatch --gpus-per-node=0 docs/slurm_ray.sh …

set -euo pipefail
cd "$SLURM_SUBMIT_DIR"
export PATH="$PWD/.venv/bin:$PATH"

# Ray runs code for whoever reaches its port and knows this secret, which srun hands to the other machines.
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0

# This script runs on the first machine; the port is the job's own.
address=$(python -c 'import ray; print(ray.util.get_node_ip_address())')
export RAY_ADDRESS="$address:$((20000 + SLURM_JOB_ID % 10000))"
ray start --head --node-ip-address="$address" --port="${RAY_ADDRESS##*:}" --num-cpus="$SLURM_CPUS_PER_TASK" \
    --include-dashboard=false

others=$((SLURM_JOB_NUM_NODES - 1))
if ((others > 0)); then
    srun --nodes="$others" --ntasks="$others" --exclude="$SLURMD_NODENAME" --cpus-per-task="$SLURM_CPUS_PER_TASK" \
        --no-kill --kill-on-bad-exit=0 \
        ray start --address="$RAY_ADDRESS" --num-cpus="$SLURM_CPUS_PER_TASK" --block &
fi

# Those that have not come within five minutes may join later.
timeout 300 python - "$SLURM_JOB_NUM_NODES" <<'EOF' || echo "not all machines are there yet; starting" >&2
import sys
import time

import ray

ray.init(logging_level="ERROR")
while len(ray.nodes()) < int(sys.argv[1]):
    time.sleep(1)
EOF

python -m atr study "$@" --executor ray
