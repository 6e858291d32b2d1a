# Functions that the job scripts of this folder share. Sourced by them, not a job itself.

die() {
    echo "${SLURM_JOB_NAME:-babble}: $*" >&2
    exit 1
}

# The job's id for squeue and `scontrol requeue`: 17, or 17_3 in an array, where SLURM_JOB_ID can be that of the whole
# array.
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-${SLURM_JOB_ID:-}}

# Set $python to the project's environment and check that it has these modules. It is the project's .venv, or else the
# environment that was active when the job was submitted.
find_python() {
    python=$project/.venv/bin/python
    [ -x "$python" ] || python=$(command -v python3) ||
        die "no Python found: run \`make .venv/.installed\` in $project, or activate babble's environment first."
    export PYTHONPATH=$project${PYTHONPATH:+:$PYTHONPATH}
    local missing find='import importlib.util as u, sys; print(*(m for m in sys.argv[1:] if not u.find_spec(m)))'
    missing=$("$python" -c "$find" "$@") || die "$python does not run on $(hostname)."
    [ -z "$missing" ] ||
        die "$python lacks $missing: run \`make .venv/.installed\` in $project, or install them there."
}

# Print what runs where: the first lines of the job's log, again after every restart.
print_job() {
    local restarts=${SLURM_RESTART_COUNT:-0}
    echo "job      $job ${SLURM_JOB_NAME}$( ((restarts)) && echo ", restart $restarts"), $(date '+%F %T')"
    echo "nodes    ${SLURM_JOB_NUM_NODES} ($SLURM_JOB_NODELIST), ${SLURM_GPUS_ON_NODE:-0} GPUs per node," \
        "${SLURM_NTASKS_PER_NODE:-1} processes per node, ${SLURM_CPUS_PER_TASK:-1} cores per process"
    echo "project  $project, git revision $(git -C "$project" describe --always --dirty 2>/dev/null || echo unknown)"
    echo "python   $python"
}

# Succeed if this job is still running for Slurm: it is not once it was cancelled or its time limit is reached.
is_running() {
    scontrol show job "$job" | grep -q 'JobState=RUNNING'
}

# Ask Slurm to restart this job, and wait until it ends this run of it.
requeue() {
    echo "$(date '+%F %T') requeueing job $job"
    scontrol requeue "$job" || die "Slurm did not requeue job $job. Submit the same job again to resume."
    sleep 300
    die "Slurm requeued job $job but did not end this run of it."
}

# Start a Ray cluster on the allocation and set $address. Its head is on this node; the other nodes join it. Only
# processes with the token can connect. Slurm ends the cluster with the job: `ray stop` would end the Ray of other jobs
# too.
start_ray() {
    address=$(getent ahostsv4 "$(hostname)" | awk 'NR == 1 { print $1 }'):$((20000 + SLURM_JOB_ID % 10000))
    RAY_AUTH_TOKEN=$("$python" -c 'import secrets; print(secrets.token_hex(32))')
    export RAY_AUTH_MODE=token RAY_AUTH_TOKEN RAY_USAGE_STATS_ENABLED=0 RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=0
    # The paths of Ray's sockets have at most 107 bytes.
    [[ ${#TMPDIR} -lt 40 ]] || export RAY_TMPDIR=${RAY_TMPDIR:-/tmp}
    local logs=logs/$SLURM_JOB_NAME-$job cores=${SLURM_CPUS_PER_TASK:-1} others=$((SLURM_JOB_NUM_NODES - 1))
    mkdir -p "$logs" || die "cannot create $logs in $PWD."
    echo "logs     $PWD/$logs/ray-*.log"
    local start=("$python" -m ray.scripts.scripts start --block --num-cpus="$cores"
        --num-gpus="${SLURM_GPUS_ON_NODE:-0}" --object-store-memory=1000000000)
    "${start[@]}" --head --node-ip-address="${address%:*}" --port="${address#*:}" --include-dashboard=false \
        >"$logs/ray-head.log" 2>&1 &
    if ((others)); then
        srun --nodes=$others --ntasks=$others --ntasks-per-node=1 --cpus-per-task="$cores" --exclude="$(hostname)" \
            --output="$logs/ray-%N.log" "${start[@]}" --address="$address" &
    fi
    for _ in {1..120}; do
        (: <"/dev/tcp/${address/://}") 2>/dev/null && break
        sleep 0.5
    done
}
