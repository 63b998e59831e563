#!/bin/bash
# Run a batch on a cluster: submit the commands of the .run files in DIR to Slurm, as job arrays.
#
#     batch_scripts/submit_slurm.sh DIR [sbatch options]
#
# One array for each step; an exposure has the same index in all of them, and each element waits for the same
# exposure's element of the array before (aftercorr), so that an exposure which fails stops nothing but itself. The
# striping of exposures without a wisp step follows the first array directly. sbatch options (--account, --partition,
# --time ...) are added to every array and overrule the requests below. Environment, CRDS variables and current
# Python are those of the shell that submits. Logs and .done files are those of run_batch.sh (DIR/log); submitted
# again, the batch goes on with what is missing.
# Exit status: 0 when all is submitted or nothing is left, 1 when sbatch refused, 2 for a wrong call.

# What one command may take, from the measured cost with some room: minutes, MB
declare -A MINUTES=([detector1_and_snowballs]=15 [wisp_subtraction]=5 [remstriping]=5)
declare -A REQUEST=([detector1_and_snowballs]=5000 [wisp_subtraction]=1500 [remstriping]=2000)
CHUNK=1000 # elements of one array at most, if the site allows that many; Slurm takes 4096 characters of indices

# shellcheck source-path=SCRIPTDIR source=run_batch.sh
source "$(dirname "${BASH_SOURCE[0]}")/run_batch.sh"

declare -A JOB=() # dataset -> job whose element of the same index has to succeed first

# Elements that the site allows in an array; the highest index is one less.
array_limit() {
    local site
    site=$(scontrol show config | awk '$1 == "MaxArraySize" {print $3}')
    REPLY=$((site && site < CHUNK ? site : CHUNK))
}

# Refuse while jobs of an earlier submission are queued or running.
check_queue() {
    local queued
    [[ -f $LOG/slurm_jobs ]] || return 0
    queued=$(squeue --noheader --user="$(id -un)" --format=%F | sort -u | grep -Fxf "$LOG/slurm_jobs" | paste -sd ' ')
    [[ -z $queued ]] || die "still in the queue: jobs $queued (wait, or scancel them)"
}

# Submit step $1 of the datasets that follow, whose place among them is their index in the array. There is one array
# for each job that is to be waited for.
submit_step() {
    local step=$1 index before
    local -A indices=() # job to wait for, or none -> indices
    local -a commands=() datasets=("${@:2}")
    for index in "${!datasets[@]}"; do
        [[ ${LEFT["$step/${datasets[index]}"]-} ]] || continue
        commands[index]=${COMMAND["$step/${datasets[index]}"]}
        before=${JOB[".${datasets[index]}"]-none}
        indices[$before]+=${indices[$before]:+,}$index
    done
    for before in "${!indices[@]}"; do
        submit_array "$step" "$before" "${indices[$before]}" "${SBATCH[@]}" <<<"#!/bin/bash
$(declare -p commands)
exec $(printf '%q ' "$SELF" --one "$LOG" "$step") \"\${commands[SLURM_ARRAY_TASK_ID]}\""
        for index in ${indices[$before]//,/ }; do
            JOB[".${datasets[index]}"]=$REPLY
        done
    done
}

# Submit the script on standard input as an array: step, job to wait for, indices, options. Sets REPLY to the job.
submit_array() {
    local -a wait=()
    [[ $2 == none ]] || wait=(--dependency="aftercorr:$2" --kill-on-invalid-dep=yes)
    REPLY=$(sbatch --parsable --job-name="$1" --array="$3" "${wait[@]}" --chdir="$TOP" --cpus-per-task=1 \
        --time="${MINUTES[$1]}" --mem="${REQUEST[$1]}" --output="${LOG//%/%%}/slurm_%A.out" --open-mode=append "${@:4}") ||
        exit 1
    REPLY=${REPLY%%;*} # without the name of the cluster
    printf '%s\n' "$REPLY" >>"$LOG/slurm_jobs"
    printf 'job %s: %s of %d exposures%s\n' "$REPLY" "$1" "$(tr -cd , <<<"$3," | wc -c)" "${wait:+, after job $2}"
}

submit() {
    local first limit step
    case ${1-} in
        -h | --help) sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; return ;;
        '') die 'which directory? (--help tells more)' ;;
    esac
    command -v sbatch >/dev/null || die 'there is no Slurm here (no sbatch)'
    command -v python >/dev/null || die 'there is no python: activate the environment first'
    read_batch "$1"
    SBATCH=("${@:2}")
    check_queue
    ((${#TODO[@]})) || echo 'nothing left to do'
    array_limit
    limit=$REPLY
    for ((first = 0; first < ${#TODO[@]}; first += limit)); do
        for step in "${STEPS[@]}"; do
            submit_step "$step" "${TODO[@]:first:limit}"
        done
    done
}

submit "$@"
