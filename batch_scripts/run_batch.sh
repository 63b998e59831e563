#!/bin/bash
# Run a batch on this machine: the commands of the three .run files in DIR, one file after the other, N at a time.
#
#     batch_scripts/run_batch.sh DIR [-j N]
#
# N is the number of cores by default, or as many as fit into the memory that is free. Logs go to DIR/log:
# <step>/<dataset>.log for each command, <step>.joblog (times, exit statuses) for each file. An exposure that fails
# is left out of the later steps and named at the end; the others go on. Started again, the batch goes on with what
# is left: a command whose <step>/<dataset>.done holds that very command is done. One whose .done holds something else,
# or nothing, is run with --redo: the image may be that of another command. Remove DIR/log to forget it all.
# Needs GNU parallel. Exit status: 0 when everything is done, 1 when something failed, 2 for a wrong call.

STEPS=(detector1_and_snowballs wisp_subtraction remstriping)
declare -A MEMORY=([detector1_and_snowballs]=3500 [wisp_subtraction]=700 [remstriping]=1000) # MB that one command takes
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 NUMEXPR_NUM_THREADS=1 NUMBA_NUM_THREADS=1

SELF=$(realpath "${BASH_SOURCE[0]}")
TOP=$(dirname "$(dirname "$SELF")")
declare -A COMMAND=() # step/dataset -> command line
declare -A LEFT=()    # step/dataset -> 1 when it has to be run
DATASETS=()           # in the order of the files
TODO=()               # those of them with something left

die() {
    printf '%s: %s\n' "${0##*/}" "$1" >&2
    exit 2
}

# Set REPLY to the dataset of a command line: its last word without directory and ending.
dataset_of() {
    local -
    local -a words=()
    set -f
    eval "words=($1)" 2>/dev/null || die "not one plain command: $1"
    ((${#words[@]})) || die "not a command: $1"
    REPLY=${words[-1]##*/}
    REPLY=${REPLY%_rate.fits}
    REPLY=${REPLY%_uncal.fits}
}

# Read the .run files of directory $1 into COMMAND and DATASETS, and find out what is left.
read_batch() {
    local step line dataset found=0
    local -A seen=()
    DIR=$(realpath -e -- "$1" 2>/dev/null) || die "no such directory: $1"
    LOG=$DIR/log
    for step in "${STEPS[@]}"; do
        [[ -e $DIR/$step.run ]] || continue
        found=1
        while IFS= read -r line || [[ $line ]]; do
            [[ $line =~ ^[[:space:]]*(#|$) ]] && continue
            dataset_of "$line"
            [[ ${COMMAND["$step/$REPLY"]-} ]] && die "$step.run has two commands for $REPLY"
            COMMAND["$step/$REPLY"]=$line
            [[ ${seen[".$REPLY"]-} ]] || DATASETS+=("$REPLY")
            seen[".$REPLY"]=1
        done <"$DIR/$step.run"
    done
    ((found)) || die "$DIR holds none of ${STEPS[*]/%/.run}"
    for dataset in "${DATASETS[@]}"; do
        find_left "$dataset"
    done
    for step in "${STEPS[@]}"; do
        mkdir -p "$LOG/$step" || die "cannot write to $LOG"
    done
}

# Mark in LEFT the steps of dataset $1 from the first one that is not done: it makes void what was done after it.
find_left() {
    local step again=''
    for step in "${STEPS[@]}"; do
        [[ ${COMMAND["$step/$1"]-} ]] || continue
        is_done "$step" "$1" || again=1
        LEFT["$step/$1"]=$again
    done
    [[ -z $again ]] || TODO+=("$1")
}

is_done() { # step, dataset
    [[ -f $LOG/$1/$2.done && $(<"$LOG/$1/$2.done") == "${COMMAND["$1/$2"]}" ]]
}

# True when no step before $1 of dataset $2 is missing.
is_ready() {
    local step
    for step in "${STEPS[@]}"; do
        [[ $step == "$1" ]] && return 0
        [[ -z ${COMMAND["$step/$2"]-} ]] || is_done "$step" "$2" || return 1
    done
}

# Run one command, from the top level, with its log and, if it succeeds, its .done file: log directory, step, command.
# While it runs that file is empty, so that it is known if it was killed, perhaps with the image already in its place;
# those of later steps stay empty until these are run, for this one begins with an image that they have not seen.
# The dataset is locked meanwhile, also by a command that outlives us, so that two batches do not work on it at once.
run_one() {
    local command=$3 first=1 later='' status stem step
    dataset_of "$3"
    stem=$1/$2/$REPLY
    exec 8>>"$1/.$REPLY.lock" 9>>"$stem.log"
    flock 8
    if [[ -e $stem.done ]]; then
        [[ $(<"$stem.done") == "$3" ]] && return 0
        first=''
    fi
    for step in "${STEPS[@]}"; do
        if [[ $later && -e $1/$step/$REPLY.done ]]; then
            : >"$1/$step/$REPLY.done"
            first=''
        fi
        [[ $step == "$2" ]] && later=1
    done
    : >"$stem.done"
    [[ $first || " $3 " == *' --redo '* ]] || command+=' --redo'
    cd "$TOP" || return 1
    printf '# %(%F %T)T on %s%s\n%s\n' -1 "$HOSTNAME" \
        "${SLURM_ARRAY_JOB_ID:+, Slurm job ${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}" "$command" >&9
    SECONDS=0
    bash -c "$command" </dev/null >&9 2>&1 9>&-
    status=$?
    printf '# exit status %d after %d s\n' "$status" "$SECONDS" >&9
    report "${4-}" "$2 $REPLY" "$status"
    if ((status == 0)); then
        printf '%s\n' "$3" >"$stem.done.tmp" && mv "$stem.done.tmp" "$stem.done"
        return
    fi
    [[ $first ]] && ((status < 128)) && rm "$stem.done" # failed, not killed: nothing was written
    return "$status"
}

# One line about a finished command, where no progress bar is shown: number "I of N since T", what, exit status.
report() {
    local i n start left
    [[ $1 ]] || return
    read -r i n start <<<"$1"
    left=$(((EPOCHSECONDS - start) * (n - i) / i))
    printf '[%d/%d, %d:%02d:%02d left] %s: %s\n' \
        "$i" "$n" $((left / 3600)) $((left / 60 % 60)) $((left % 60)) "$2" "$( (($3)) && echo FAILED || echo "done")"
}

# How many commands of step $1 at once: the cores we may use, or fewer when memory is short.
jobs_for() {
    local cores memory
    cores=$(env -u OMP_NUM_THREADS nproc)
    memory=$(awk -v each="${MEMORY[$1]}" '/^MemAvailable/ {print int($2 / 1024 / each)}' /proc/meminfo)
    REPLY=$((memory < cores ? memory : cores))
    ((REPLY > 0)) || REPLY=1
}

# Run what is left of step $1, $2 commands at a time.
run_step() {
    local dataset jobs=$2
    local -a commands=() bar=() position=()
    for dataset in "${DATASETS[@]}"; do
        [[ ${LEFT["$1/$dataset"]-} ]] && is_ready "$1" "$dataset" && commands+=("${COMMAND["$1/$dataset"]}")
    done
    ((${#commands[@]})) || return
    [[ $jobs ]] || { jobs_for "$1" && jobs=$REPLY; }
    printf '%s: %d commands, %d at a time\n' "$1" "${#commands[@]}" "$jobs" >&2
    if [[ -t 2 ]]; then bar=(--bar); else position=("'{#} ${#commands[@]} $EPOCHSECONDS'"); fi
    cd "$LOG" || die "cannot write to $LOG"
    [[ -e $1.joblog ]] ||
        printf 'Seq\tHost\tStarttime\tJobRuntime\tSend\tReceive\tExitval\tSignal\tCommand\n' >"$1.joblog"
    # Paths by the environment: in its own words parallel would replace {} and run the Perl code of {= =}.
    # shellcheck disable=SC2016
    printf '%s\0' "${commands[@]}" | BATCH_SELF=$SELF BATCH_LOG=$LOG SHELL=/bin/bash parallel -0 -j "$jobs" "${bar[@]}" \
        --joblog "+$1.joblog" '"$BATCH_SELF" --one "$BATCH_LOG"' "$1" {} "${position[@]}" &
    wait "$!" # a signal ends this at once
}

# Stop the running commands; parallel wants to be told twice.
stop() {
    trap '' INT TERM
    { kill -TERM "$!" && sleep 0.5 && kill -TERM "$!" && wait; } 2>/dev/null
    printf 'Stopped; start again to go on.\n' >&2
    exit 130
}

# Say what was done and what was not; false when something is missing.
summary() {
    local dataset step failed=0 done=0
    for dataset in "${DATASETS[@]}"; do
        for step in "${STEPS[@]}"; do
            [[ ${COMMAND["$step/$dataset"]-} ]] || continue
            is_done "$step" "$dataset" && continue
            ((failed++)) || printf 'Failed (the later steps of these were not run):\n'
            printf '  %s %s: %s\n' "$step" "$dataset" "$LOG/$step/$dataset.log"
            sed '/^#/d' "$LOG/$step/$dataset.log" | tail -n 1 | cut -c 1-200 | sed 's/^/      /'
            continue 2
        done
        ((done++))
    done
    printf '%d exposures done, %d failed\n' "$done" "$failed"
    ((failed == 0))
}

main() {
    local dir='' jobs='' step
    while (($#)); do
        case $1 in
            -h | --help) sed -n '2,/^$/s/^# \{0,1\}//p' "$SELF"; return ;;
            -j) jobs=${2-}; shift ;;
            -j*) jobs=${1#-j} ;;
            -?*) [[ -d $1 ]] || die "unknown option $1 (a directory: ./$1)"; dir=$1 ;;
            *) [[ -z $dir ]] || die 'one directory, please'; dir=$1 ;;
        esac
        shift
    done
    [[ $dir ]] || die 'which directory? (--help tells more)'
    [[ -z $jobs || $jobs =~ ^[1-9][0-9]*$ ]] || die "-j takes a number of commands, not '$jobs'"
    command -v parallel >/dev/null || die 'GNU parallel is missing (apt install parallel, conda install parallel)'
    parallel --version 2>/dev/null | grep -q '^GNU parallel' || die 'the parallel found here is not GNU parallel'
    command -v python >/dev/null || die 'there is no python: activate the environment first'
    read_batch "$dir"
    trap stop INT TERM
    for step in "${STEPS[@]}"; do
        run_step "$step" "$jobs"
    done
    summary
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
    if [[ ${1-} == --one ]]; then
        run_one "${@:2}"
    else
        main "$@"
    fi
    exit # and do not read on, should this file be replaced meanwhile
fi
