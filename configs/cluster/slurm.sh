#!/bin/bash
# A sweep as a Slurm job: one Ray node per machine, the sweep on the first.
#   sbatch configs/cluster/slurm.sh [options of tune/sweep.py]
# Requeued after a preemption it goes on where it was: the results folder is the whole state.
#
# Change these three lines: [1] nodes and GPUs (the first #SBATCH line), [2] the results folder, which all nodes share, [3] this repository.
#SBATCH --nodes=2 --gpus-per-node=8
#SBATCH --job-name=altgrad --ntasks-per-node=1 --exclusive --time=24:00:00 --requeue --signal=B:TERM@120
results=/shared/altgrad   # [2]
tree=$HOME/altgrad        # [3]

set -euo pipefail
cd "$tree"
export PATH="$tree/.venv/bin:$PATH"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
RAY_AUTH_TOKEN=$(python -c "import secrets; print(secrets.token_hex(32))") # for this job alone; srun passes it on

name="slurm-$SLURM_JOB_ID"
port=$((20000 + SLURM_JOB_ID % 20000))
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(srun --overlap --nodes=1 --ntasks=1 -w "$head" hostname -I | awk '{print $1}'):$port
start=(ray start --block --disable-usage-stats "--temp-dir=/tmp/ray-$SLURM_JOB_ID" "--num-cpus=$SLURM_CPUS_ON_NODE")

srun --overlap --nodes=1 --ntasks=1 -w "$head" "${start[@]}" --head "--port=$port" --dashboard-host=127.0.0.1 &
until ray status --address "$address" >/dev/null 2>&1; do
    kill -0 $! || { echo "slurm.sh: the Ray head on $head did not start" >&2; exit 1; }
    sleep 2
done
if ((SLURM_JOB_NUM_NODES > 1)); then
    srun --overlap --nodes=$((SLURM_JOB_NUM_NODES - 1)) --ntasks-per-node=1 --exclude="$head" \
        "${start[@]}" "--address=$address" &
fi

options=(--address "$address" --results "$results")
if [[ -e "$results/$name/sweep.json" ]]; then
    options+=(--resume "$name")
else
    options+=(--name "$name" "$@")
fi
python tune/sweep.py "${options[@]}" &
sweep=$!
trap 'kill -TERM $sweep' TERM # Slurm's notice before the time is up: the sweep ends in order
code=0
wait $sweep || code=$?
if kill -0 $sweep 2>/dev/null; then # the trap has ended the first wait, not the sweep
    code=0
    wait $sweep || code=$?
fi
exit $code
