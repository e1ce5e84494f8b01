# What the jobs of this folder share; sbatch copies only them to where it runs them, so they find this from the root.

export STOPPED=75 # told to stop: EX_TEMPFAIL, as a rank's in srcnn/runtime/signals.py
LAST_SECONDS=300  # from the end of a first node to that of the last: a report, the last checkpoint, wandb

say() { echo "$(date '+%F %T') srcnn: $*"; }

fail() { say "$*" && exit 1; }

plan() { # the nodes, the first of them, and where it can be met
    export PYTHON=${VENV:-.venv}/bin/python NODES=$SLURM_JOB_NUM_NODES FIRST PORT
    [[ -x $PYTHON ]] || fail "no $PYTHON in $PWD on $(hostname); make setup, or set VENV"
    read -r FIRST < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    PORT=$((10000 + SLURM_JOB_ID % 20000)) # below those that the kernel deals out
    log=$(readlink /proc/$$/fd/1) # wherever --output put it
    [[ -f $log ]] && logs=${log%.*} || logs=$PWD/srcnn-$SLURM_JOB_ID
    say "job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)), on $SLURM_JOB_NODELIST, port $PORT; $logs-NODE.log"
}

on_nodes() { # on_nodes NUMBER OUTPUT FUNCTION WORD... becomes srun with a task on each, which has all the job has there
    unset SLURM_CPUS_PER_TASK SLURM_GPUS_PER_TASK SLURM_NTASKS_PER_NODE # srun would take them for its own options
    export -f to_the_end "$3"
    exec srun --nodes="$1" --relative=0 --ntasks="$1" --ntasks-per-node=1 --export=ALL --mpi=none --cpu-bind=none \
        --wait="$LAST_SECONDS" --output="$2" --open-mode=append bash -c 'to_the_end "$@"' node "${@:3}"
}

to_the_end() { # to_the_end FUNCTION WORD... its status, or STOPPED where it ended with another after a signal
    local told_to_stop='' status
    trap 'told_to_stop=yes' USR1 TERM # its processes get it too: bash heeds it when they have ended
    "$@"
    status=$?
    [[ $told_to_stop ]] && ((status)) && status=$STOPPED
    return "$status"
}

outlast() { # outlast PROCESS: its status, however often a signal interrupts the waiting
    wait "$1"
    while kill -0 "$1" 2>/dev/null; do wait "$1"; done
    wait "$1"
}

requeue() { # requeue [WORDS for the log]: unless somebody else ends the job, as scancel and Slurm's own requeue do
    for _ in {1..12}; do # a minute, for a controller that is busy or away
        case $(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T) in
            RUNNING) scontrol requeue "$SLURM_JOB_ID" && say "stopped, requeued$1" && return ;;
            ?*) return ;;
        esac
        sleep 5
    done
    say "stopped, and cannot be requeued; submit the same command again to go on"
}
