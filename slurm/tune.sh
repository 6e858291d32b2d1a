#!/bin/bash
# Run a sweep with Ray Tune. The arguments go to `babble tune`; --name, or --resume, is required.
#
#   sbatch slurm/tune.sh --config configs/tune.yaml --data.shards shards/book --name sweep
#   sbatch --nodes=4 --cpus-per-task=32 --gpus-per-node=8 slurm/tune.sh ...     trials on all cores and GPUs of 4 nodes
#
# Two minutes before its time limit, or when a job of higher priority needs the nodes, the trials save checkpoints and
# the job is requeued. The sweep then resumes: finished trials are kept, the others continue from their checkpoints.
#SBATCH --job-name=babble-tune
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem-per-cpu=4G
#SBATCH --time=1-00:00:00
#SBATCH --signal=B:SIGUSR1@120
#SBATCH --requeue
#SBATCH --open-mode=append

# Slurm runs a copy of this file in its spool directory, so the project is found from the path that was submitted.
script=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's|^ *Command=\(.*/slurm/tune\.sh\).*|\1|p' | head -n 1)
project=$(cd "$(dirname "$script")/.." && pwd)
source "$project/slurm/common.sh" || exit 1

find_python torch pytorch_lightning webdataset ray optuna babble
print_job
[ "${SLURM_NTASKS_PER_NODE:-1}" = 1 ] || die "one process per node starts all others there: remove --ntasks-per-node."
[[ " $* " =~ " "--(name|resume)[=\ ] ]] ||
    die "give the sweep a name with --name, so that it can resume under that name."
start_ray

# The shell passes signals that ask it to stop on to the sweep, and waits until the sweep has saved.
"$python" -u -m babble.tune --address "$address" "$@" &
tune=$!
trap 'kill -TERM $tune' TERM USR1
wait $tune
code=$?
# A signal ends `wait` early, with its own exit code.
while kill -0 $tune 2>/dev/null; do wait $tune; code=$?; done
trap - TERM USR1
if ((code == 138 || code == 143)) && is_running; then requeue; fi
exit $code
