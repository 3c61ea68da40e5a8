#!/usr/bin/env bash
# sweep.sh: the paper's experiments, each of them many runs of the trainer; -h lists them.
set -u -o pipefail
# PARALLEL_SHELL: not the user's shell, which may be unset or read quotes in its own way
export LC_ALL=C PARALLEL_SHELL=/bin/bash
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
SELF=$HERE/sweep.sh

die() { echo "sweep.sh: $2" >&2; exit "$1"; }    # status 1: what failed, 2: a wrong command

# ---------------------------------------------------------------------------
# The scales: what an experiment's numbers are on a laptop, in a night on 16 cores (or an hour on a
# GPU), in the paper. A size is a width, or width x layers; the paper's follow from its counts of
# parameters, 12 x layers x width^2.
SCALES="
what              laptop             workstation           paper
T                 32                 128                   512
batch             16                 32                    256
steps             1000               5000                  100000
layers            2                  4                     12
vocab             0                  0                     32101
log_every         10                 20                    100
eval_every        250                1000                  5000
checkpoint_every  0                  500                   500
head_size         16                 32                    64
ladder            16,32,64,96        64,128,256,512 \
                  512x3,512x6,768x6,768x12,1024x12,1024x24,2048x24
three_sizes       16,32,64           64,128,256            512x3,512x6,768x12
one_size          64                 128                   768x12
small_size        32                 128                   512x6
depth_and_width   32x1,32x2,32x4,32x8,16x2,64x2,16x1,48x4 \
                  128x2,128x4,128x8,128x16,64x4,256x4,64x2,192x8 \
                  512x3,512x6,512x12,512x24,256x6,1024x6,256x3,768x12
logits_fit        16,24,32,48,64     64,96,128,192,256     256x3,512x3,512x6,768x6,768x12,1024x12
logits_held_out   96,128,192         384,512               1024x24,2048x24
eps_fit           16,32,48,64        64,96,128,192         256x3,512x3,512x6,768x6,768x12
eps_held_out      96,128             256,384               1024x12,1024x24
eps_largest       128                384                   1024x24
mu_base           32                 64                    256
mu_widths         32,64,128,256      64,128,256,512        256,512,1024,2048
mu_steps          400                2500                  100000
mu_batch          8                  32                    256
coord_widths      32,64,128,256,512  64,128,256,512,1024   256,512,1024,2048,4096
step_counts       250,500,1000,2000  1250,2500,5000,10000  25000,50000,100000,200000
batch_sizes       4,8,16,32,64       8,16,32,64,128        64,128,256,512,1024
wd_independent    1e-4,1e-2          1e-4,1e-3             1e-4
wd_standard       1e-2,1             1e-2,1e-1             1e-1
"
declare -A of=()    # of[what]: this scale's value

set_scale() {
    local what laptop workstation paper    # the last three are read by name
    case $1 in
        laptop | workstation | paper) ;;
        *) die 2 "-scale: '$1' is none of: laptop workstation paper" ;;
    esac
    # shellcheck disable=SC2034
    while read -r what laptop workstation paper; do of[$what]=${!1}; done < <(grep . <<<"$SCALES")
}

# ---------------------------------------------------------------------------
# The experiments. `grid` makes a run of every combination of its flag=value,value,... and of the
# seeds; its -flag value go to each of them. Runs of `stage 2` are held out until plot.py has
# predicted them from stage 1.
EXPERIMENTS="
qk_norm         3.1.1  figures 1 and 2: attention logits grow until training fails, \
without and with qk-norm
z_loss          3.1.2  figure 3: output logits drift, with and without z-loss and weight decay
warmup          3.2.1  length of warm-up
weight_decay    3.2.2  independent and standard weight decay
depth_width     3.2.3  depth alone, width alone, both
mu_param        3.2.4  muParam over widths
coord_check     3.2.4  the test of muParam: activations and updates against width
predict_logits  3.3    attention logits of larger models: predicted, then run
predict_eps     3.4    gradients that shrink to epsilon: predicted, then run, \
also with other epsilons
steps           app.   number of training steps
batch           app.   batch size
beta2           app.   decay of the second moment of AdamW
clip            app.   gradient clipping
"
LR=3e-3,1e-2,3e-2,1e-1,3e-1

experiment() {
    case $1 in
    qk_norm) grid d="${of[ladder]}" lr=3e-4,1e-3,$LR,1 qk_norm=0,1 ;;
    z_loss) grid d="${of[one_size]}" lr=1e-2,3e-2,1e-1,3e-1,1 z_loss=0,1e-4,1e-2 wd=0,1e-4 ;;
    warmup) grid d="${of[three_sizes]}" lr=1e-2,3e-2,1e-1,3e-1,1 warmup=1%,5%,10%,25% qk_norm=0,1 ;;
    weight_decay)
        grid d="${of[three_sizes]}" lr=$LR,1 wd_independent=1 wd="${of[wd_independent]}"
        grid d="${of[three_sizes]}" lr=$LR,1 wd_independent=0 wd="${of[wd_standard]}" ;;
    depth_width) grid d="${of[depth_and_width]}" lr=$LR qk_norm=0,1 ;;
    mu_param)
        grid d="${of[mu_widths]}" lr=1e-3,$LR mu_param=off,simple,intermediate,full \
            -heads 4 -base_d "${of[mu_base]}" -steps "${of[mu_steps]}" -batch "${of[mu_batch]}" ;;
    coord_check)
        grid d="${of[coord_widths]}" lr=1e-2 mu_param=off,simple,intermediate,full \
            seed="$(seeds 3)" -heads 4 -base_d "${of[mu_base]}" -steps 10 -warmup 0 -log_every 1 \
            -eval_every 0 -eval_tokens 1024 ;;
    predict_logits)
        grid d="${of[logits_fit]}" lr=3e-3,1e-2,3e-2,1e-1 -qk_norm 0
        stage 2
        grid d="${of[logits_held_out]}" lr=3e-3,1e-2,3e-2,1e-1 -qk_norm 0 ;;
    predict_eps)
        grid d="${of[eps_fit]}" lr=1e-3,$LR eps=1e-8
        stage 2
        grid d="${of[eps_held_out]}" lr=1e-3,$LR eps=1e-8
        grid d="${of[eps_largest]}" lr=1e-1,3e-1 eps=1e-15,1e-6,1e-5,1e-4,1e-3 ;;
    steps) grid d="${of[small_size]}" lr=$LR steps="${of[step_counts]}" qk_norm=0,1 ;;
    batch) grid d="${of[small_size]}" lr=$LR batch="${of[batch_sizes]}" qk_norm=0,1 ;;
    beta2) grid d="${of[small_size]}" lr=$LR beta2=0.9,0.95,0.99,0.999 qk_norm=0,1 ;;
    clip) grid d="${of[small_size]}" lr=$LR clip=0,0.1,1,10 qk_norm=0,1 ;;
    *) return 1 ;;
    esac
}

# ---------------------------------------------------------------------------
# The plan: a line a run,
# "cost <tab> stage <tab> name <tab> flags <tab> flags that every run of its grid has"

declare -A user=()    # the trainer's flags after --, by name
user_order=() STAGE=1 seed_count=

stage() { STAGE=$1; }
seeds() { seq -s , 1 "${seed_count:-$1}"; }

# A flag given after -- takes the place of the grid's values for it, or goes to every run.
grid() {
    local fixed='' heads=1 axes=() lines=($'\t')
    local next values what axis value line name flags width layers
    for what in checkpoint_every eval_every log_every vocab layers steps batch T; do
        set -- "-$what" "${of[$what]}" "$@"
    done
    while [ $# -gt 0 ]; do
        case $1 in
            -*)
                [ -n "${user[${1#-}]+given}" ] || fixed+=" $1 $2"
                [ "$1" != -heads ] || heads=
                shift 2 ;;
            *) axes+=("$1"); shift ;;
        esac
    done
    [[ " ${axes[*]}" == *" seed="* ]] || axes+=("seed=$(seeds 1)")
    for what in "${user_order[@]}"; do
        [[ " ${axes[*]}" == *" $what="* ]] ||
            printf -v fixed '%s -%s %q' "$fixed" "$what" "${user[$what]}"
    done
    for axis in "${axes[@]}"; do
        what=${axis%%=*} next=()
        IFS=, read -ra values <<<"${user[$what]-${axis#*=}}"
        [ ${#values[@]} -gt 0 ] || die 2 "-$what needs a value"
        for line in "${lines[@]}"; do
            for value in "${values[@]}"; do
                name=${line%%$'\t'*} flags=${line#*$'\t'}
                [ "$what" != lr ] || [[ $value =~ ^[0-9.e+-]+$ ]] ||
                    die 2 "-lr: '$value' is not a learning rate; several are X,Y,Z"
                if [ "$what" = d ]; then
                    [[ $value =~ ^([0-9]{1,5})(x([0-9]{1,4}))?$ ]] ||
                        die 2 "-d: '$value' is not a width, nor width x layers"
                    [ -z "${BASH_REMATCH[3]}" ] || [ -z "${user[layers]-}" ] ||
                        die 2 "-layers: this experiment chooses it itself"
                    width=${BASH_REMATCH[1]} layers=${BASH_REMATCH[3]}
                    name+=_d$width${layers:+_layers$layers}
                    flags+=" -d $width${layers:+ -layers $layers}"
                    [ -z "$heads" ] || [ -n "${user[heads]-}" ] ||
                        flags+=" -heads $((width > of[head_size] ? width / of[head_size] : 1))"
                else
                    printf -v flags '%s -%s %q' "$flags" "$what" "$value"
                    name+=_$what${value//%/pct}
                fi
                next+=("$name"$'\t'"$flags")
            done
        done
        lines=("${next[@]}")
    done
    for line in "${lines[@]}"; do
        name=${line%%$'\t'*} name=${name#_}
        printf '%s\t%s\t%s\t%s\n' "$STAGE" "${name//[^A-Za-z0-9._-]/-}" \
            "${fixed# }${line#*$'\t'}" "${fixed# }"
    done
}

# The cost in millions of FLOPs (README.md, "Speed") in front of lines whose third column is flags.
# Times 1 + 16/C: narrow models run less efficiently.
cost() {
    awk -F '\t' '{
        split("", v)
        n = split($3, word, " ")
        for (i = 1; i < n; i++) v[word[i]] = word[i + 1]
        C = v["-d"]; L = v["-layers"]; T = v["-T"]; V = v["-vocab"] > 0 ? v["-vocab"] : 256
        token = 6e-6 * (12 * L * C * C + V * C + L * T * C)
        printf "%.0f\t%s\n", token * v["-steps"] * v["-batch"] * T * (1 + 16 / C), $0
    }'
}

# Each run once, stage by stage, the most expensive first.
plan() {
    experiment "$1" | awk -F '\t' '!seen[$2]++' | cost | sort -t $'\t' -k 2,2n -k 1,1nr -k 3,3
}

# ---------------------------------------------------------------------------
# One run, a process of its own. Prints its name and what became of it: finished, diverged, failed,
# stopped (goes on from its checkpoint), or busy (another sweep has it).

finished() { [ -e "$1/summary.csv" ]; }

# COLUMN, FOLDER of a finished run; counted from the end of the row, as texts before it may hold
# commas
result() {
    awk -F , -v name="$1" 'NR == 1 { for (i = 1; i <= NF; i++) if ($i == name) k = NF - i }
        NR == 2 { print $(NF - k) }' "$2/summary.csv"
}

outcome() { if [ "$(result diverged "$1")" = 1 ]; then echo diverged; else echo finished; fi; }

join_summaries() {    # DIR/summary.csv, of the runs that are finished
    (
        flock 8
        if awk 'NR == 1 || FNR > 1' "$1"/*/summary.csv >"$1/summary.csv.tmp"; then
            mv "$1/summary.csv.tmp" "$1/summary.csv"
        else
            rm -f "$1/summary.csv.tmp"
        fi 2>/dev/null
    ) 8>>"$1/lock"
}

child='' stop=''
on_signal() {
    stop=$1
    [ -z "$child" ] || kill -TERM "$child" 2>/dev/null    # the trainer saves a checkpoint
}

# DIR THREADS TRAINER skip|wait NAME FLAGS; skip or wait for a run that another sweep has
run_one() {
    local folder=$1/$5 flags state status
    eval "flags=($6)"
    trap 'on_signal TERM' INT TERM HUP
    trap 'on_signal USR1' USR1
    mkdir -p "$folder"
    exec 9>>"$folder/lock"    # held by the trainer too, should it outlive this process
    if ! flock -n 9; then
        if [ "$4" = skip ]; then echo "$5 busy"; return; fi
        flock 9
    fi
    if ! finished "$folder" && [ -z "$stop" ]; then
        echo "$5 running"
        [ ! -e "$folder/model.safetensors" ] || flags+=(-resume)
        OMP_NUM_THREADS=$2 "$3" "${flags[@]}" -out "$folder" \
            >>"$folder/output.txt" 2>&1 </dev/null &
        child=$! status=0
        [ -z "$stop" ] || on_signal "$stop"    # it came before there was a child
        # a signal ends a wait early
        while wait "$child" || status=$?; kill -0 "$child" 2>/dev/null; do status=0; done
        child=''
        case $status in 130 | 143) stop=${stop:-TERM} ;; esac
        finished "$folder" && join_summaries "$1"
    fi
    if finished "$folder"; then
        state=$(outcome "$folder")
    elif [ -n "$stop" ]; then
        state=stopped
    else
        state=failed
    fi
    echo "$5 $state"
    finished "$folder"
}

# ---------------------------------------------------------------------------
# On this machine or several: GNU parallel starts the runs, and what they print makes the progress

parallel_pid='' interrupted='' total=0 done=0 diverged=0 failed=0 cost_left=0 cost_done=0
declare -A cost_of=() running=()
# again, as a process that is just starting may lose the first
TERMSEQ=TERM,500,TERM,1500,TERM,8000,TERM,590000,KILL

interrupt() {    # GNU parallel passes SIGTERM on to the runs, which save their checkpoints
    interrupted=$1
    [ -z "$parallel_pid" ] || kill -TERM "$parallel_pid" 2>/dev/null
}

duration() {    # of seconds, for people
    if (($1 < 3600)); then printf '%d:%02d' $(($1 / 60)) $(($1 % 60))
    elif (($1 < 172800)); then echo "$(($1 / 3600)) h"
    elif (($1 < 63072000)); then echo "$(($1 / 86400)) days"
    else echo "$(($1 / 31536000)) years"; fi
}

progress() {    # what has just happened
    local left=''
    ((cost_done == 0)) ||
        left=", $(duration $(((SECONDS - started) * (1000 * cost_left / cost_done) / 1000))) left"
    left="$done/$total runs done, $diverged diverged, $failed failed, ${#running[@]} running$left"
    if [ -t 1 ]; then
        printf '\r\033[K%s' "$left"
    elif [ -n "$1" ]; then
        echo "$left; $1"
    fi
}

note() {    # NAME STATE: counts it and shows it
    case $2 in
        running) running[$1]=1; progress ''; return ;;
        busy) busy[$1]=1; return ;;
        finished) done=$((done + 1)) ;;
        diverged) done=$((done + 1)) diverged=$((diverged + 1)) ;;
        failed)
            failed=$((failed + 1))
            [ ! -t 1 ] || printf '\r\033[K'
            echo "$1 failed; the end of $dir/$1/output.txt:"
            tail -n 5 "$dir/$1/output.txt" 2>&1 | sed 's/^/    /' ;;
    esac
    unset "running[$1]"
    cost_left=$((cost_left - cost_of[$1])) cost_done=$((cost_done + cost_of[$1]))
    progress "$1 $2"
}

unfinished() {    # PLAN
    local name flags
    while IFS=$'\t' read -r _ _ name flags _; do
        finished "$dir/$name" || printf '%s\t%s\n' "$name" "$flags"
    done <"$1"
}

run_all() {    # PLAN: those of its runs that are not finished; first those that no other sweep has
    local name state flags answer pass left hosts=()
    declare -A busy=()
    [ "$on" = local ] || hosts=(--sshloginfile "$on" --workdir "$PWD")
    for pass in skip wait; do
        # a run that another sweep had or has, finished since or not, is counted too
        cut -f 3,4 "$1" | while IFS=$'\t' read -r name flags; do
            if [ "$pass" = skip ]; then left=${cost_of[$name]-}; else left=${busy[$name]-}; fi
            [ -z "$left" ] || printf '%s\t%s\n' "$name" "$flags"
        done >"$scratch/todo"
        [ -s "$scratch/todo" ] && [ -z "$interrupted" ] || return
        # A session of its own: Ctrl-C is for this script alone, which ends the rest in order.
        exec 3< <(exec setsid parallel --will-cite --quote --line-buffer --colsep '\t' \
            --termseq "$TERMSEQ" --jobs "$jobs" "${hosts[@]}" -a "$scratch/todo" \
            bash "$SELF" _run "$dir" "$threads" "$trainer" "$pass" '{1}' '{2}' \
            2>"$scratch/errors" </dev/null)
        parallel_pid=$!
        while :; do
            read -r -t 1 -u 3 name state
            answer=$?
            # again: GNU parallel ignores a signal while it starts
            [ -z "$interrupted" ] || interrupt "$interrupted"
            if [ "$answer" = 0 ]; then
                note "$name" "$state"
            elif [ "$answer" -gt 128 ]; then
                progress ''
            else
                break
            fi
        done
        while kill -0 "$parallel_pid" 2>/dev/null; do wait "$parallel_pid"; done
        # what it had started just then lives on
        [ -z "$interrupted" ] || while pkill -TERM -s "$parallel_pid"; do sleep 0.5; done
        parallel_pid=''
        [ -n "$interrupted" ] || cat "$scratch/errors" >&2
    done
}

predict() {    # DIR: from stage 1, before any run of stage 2, once
    local python=$HERE/build/venv/bin/python
    [ -x "$python" ] || python=python3
    [ -e "$1/prediction.csv" ] || "$python" "$HERE/plot.py" predict "$1" ||
        die 1 "plot.py predict $1 failed; the held-out runs wait for it"
}

# ---------------------------------------------------------------------------
# On a cluster: an array of Slurm jobs for each stage, so many runs a task

submit() {    # DEPENDENCY COMMAND...; prints the job's number
    local after=() job
    [ -z "$1" ] || after=(--dependency "afterok:$1" --kill-on-invalid-dep yes)
    job=$(sbatch --parsable --job-name "$experiment" --output "$dir/slurm.txt" \
        --open-mode append --requeue "${after[@]}" "${array[@]}" \
        ${option[partition]:+--partition "${option[partition]}"} \
        ${option[time]:+--time "${option[time]}"} \
        --wrap "exec bash $(printf '%q ' "$SELF" "${@:2}")") || die 1 "sbatch did not take the job"
    echo "${job%%;*}"
}

submit_all() {
    local stage list count job='' array=() pack=${option[pack]}
    for stage in 1 2; do
        list=$(mktemp "$dir/slurm-XXXXXX") || exit 1
        unfinished "$scratch/stage$stage" >"$list"
        count=$(wc -l <"$list")
        [ "$count" -gt 0 ] || { rm "$list"; continue; }
        if [ "$stage" = 2 ] && [ -z "$job" ]; then
            predict "$dir"
        elif [ "$stage" = 2 ]; then
            array=()
            job=$(submit "$job" _predict "$dir") || exit 1
            echo "job $job: the prediction"
        fi
        array=(--array "0-$(((count - 1) / pack))${jobs:+%$jobs}" --cpus-per-task "$threads"
            --signal B:USR1@60)
        job=$(submit "$job" _tasks "$dir" "$threads" "$trainer" "$list" "$pack") || exit 1
        echo "job $job: $count runs"
    done
    [ -z "$job" ] || echo "squeue shows the jobs; $dir/summary.csv grows as runs finish;" \
        "what fails goes again with: $command"
}

run_tasks() {    # DIR THREADS TRAINER LIST PACK: the runs of this task
    local name flags status=0
    while IFS=$'\t' read -r -u 4 name flags; do
        run_one "$1" "$2" "$3" wait "$name" "$flags" || status=1
        [ -z "$stop" ] || break
    done 4< <(tail -n "+$((SLURM_ARRAY_TASK_ID * $5 + 1))" "$4" | head -n "$5")
    # a minute is left: the rest goes into another job
    [ "$stop" != USR1 ] || exec scontrol requeue "$SLURM_JOB_ID"
    return "$status"
}

# ---------------------------------------------------------------------------
# The command line

# a temporary folder, locked while this script or what it started lives; then away with those that
# killed ones left
make_scratch() {
    local temporary=${TMPDIR:-/tmp}
    scratch=$(mktemp -d "$temporary/sweep.sh-XXXXXX") ||
        die 1 "cannot make a temporary folder in $temporary"
    trap 'rm -rf "$scratch"' EXIT
    exec 7<"$scratch"
    flock 7 2>/dev/null
    find "$temporary" -maxdepth 1 -name 'sweep.sh-*' -user "$UID" -mmin +1 \
        -exec flock -n {} rm -rf {} \; 2>/dev/null
}

usage() {
    local name section text scale rate=0 cores runs seconds trainer=${option[trainer]}
    cores=$(nproc)
    cat <<END
usage: ./sweep.sh EXPERIMENT [-option value ...] [-- trainer flags]

  ./sweep.sh qk_norm -seeds 3
  ./sweep.sh qk_norm -out runs/book -- -data book.txt -steps 500
  python3 plot.py runs/qk_norm-laptop

-scale     laptop (default), workstation (a night on 16 cores, an hour on a GPU), paper (GPUs;
           needs -- -data FILE)
-seeds     so many: 1, 2, ...; default 1 (coord_check: 3)
-out       folder of the runs, default runs/EXPERIMENT-SCALE; what is finished there is not run
           again
-dry_run   only print the commands
-trainer   default ./train_gpt
-threads   of each run, default 1
-j         runs at a time, default cores/threads; 1 for a trainer that ends in _cu
-on        local (default); slurm; or a file of hosts, one a line, that ssh reaches without a
           password and that see this folder
-partition, -time, -pack   Slurm's, and runs a task (default 1); sbatch's own variables count too:
           SBATCH_GRES=gpu:1

A flag after -- takes the place of the experiment's values (-lr 1e-2,1e-1; -d 32,64x4: width x
layers), or goes to every run.

END
    make_scratch
    # a second, which gives FLOPs a second
    text='-d 32 -layers 2 -heads 2 -T 32 -batch 16 -steps 400 -eval_every 0 -eval_tokens 1 -vocab 0'
    # shellcheck disable=SC2086    # words
    if OMP_NUM_THREADS=1 "$trainer" $text -out "$scratch" >"$scratch/output" 2>&1 </dev/null; then
        rate=$(printf '\t\t%s\n' "$text" | cost |
            awk -v s="$(result seconds "$scratch")" '{ print $1 / s }')
    fi
    set_scale laptop
    printf '%-16s%-8s%-16s%-16s%-16s%s\n' experiment section laptop workstation paper \
        "(runs, time on this machine's $cores cores)"
    while read -r name section text; do
        printf '%-16s%-8s' "$name" "$section"
        for scale in laptop workstation paper; do
            set_scale "$scale"
            read -r runs seconds < <(plan "$name" | awk -v rate="$rate" -v cores="$cores" '
                { s += $1 / cores; if ($1 > most) most = $1 }
                END {
                    if (rate) printf "%d %.0f", NR, (s > most ? s : most) / rate
                    else print NR, "?"
                }')
            [ "$seconds" = '?' ] || seconds=$(duration "$seconds")
            printf '%-16s' "$runs, $seconds"
        done
        echo "$text"
    done < <(grep . <<<"$EXPERIMENTS")
}

main() {
    local experiment='' dry_run='' word stage name flags left started=$SECONDS command
    local -A option=([scale]=laptop [seeds]='' [j]='' [on]=local [out]='' [trainer]=./train_gpt
        [threads]=1 [partition]='' [time]='' [pack]=1)
    printf -v command ' %q' "$@"
    command=$0$command
    while [ $# -gt 0 ]; do
        word=${1#-}
        case $1 in
            -h | -help | --help) usage; exit 0 ;;
            --) shift; break ;;
            -dry_run) dry_run=1; shift; continue ;;
            -*) [ -n "${option[${word:-?}]+known}" ] ||
                die 2 "'$1' is not an option (-h lists them); the trainer's flags come after --" ;;
            *)
                [ -z "$experiment" ] ||
                    die 2 "'$1': one experiment at a time, and that is $experiment"
                experiment=$1
                shift
                continue ;;
        esac
        [ $# -ge 2 ] || die 2 "$1 needs a value"
        case $word in
            seeds | j | threads | pack)
                [[ $2 =~ ^[1-9][0-9]{0,4}$ ]] || die 2 "$1: '$2' is not a count" ;;
        esac
        option[$word]=$2
        shift 2
    done
    local scale=${option[scale]} jobs=${option[j]} on=${option[on]} dir=${option[out]%/}
    local trainer=${option[trainer]} threads=${option[threads]}
    seed_count=${option[seeds]}
    while [ $# -gt 0 ]; do
        word=${1#-}
        [[ $1 =~ ^-[a-zA-Z] ]] || die 2 "'$1' is not a flag of the trainer"
        case $word in out | resume | sample | temperature) die 2 "-$word is not for a sweep" ;; esac
        [ $# -ge 2 ] || die 2 "-$word needs a value"
        [ -n "${user[$word]+given}" ] || user_order+=("$word")
        user[$word]=$2
        shift 2
    done
    set_scale "$scale"
    if [ -z "$experiment" ] || ! grep -q "^$experiment " <<<"$EXPERIMENTS"; then
        word=$(awk 'NF { printf "%s%s", sep, $1; sep = " " }' <<<"$EXPERIMENTS")
        die 2 "'$experiment' is none of: $word (-h says what they are)"
    fi
    : "${dir:=runs/$experiment-$scale}"
    make_scratch
    # bash alone would go on where the program that it waits for does not die of the signal
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    plan "$experiment" >"$scratch/plan" || exit 2
    for stage in 1 2; do
        awk -F '\t' -v s="$stage" '$2 == s' "$scratch/plan" >"$scratch/stage$stage"
    done

    if [ -n "$dry_run" ]; then
        for stage in 1 2; do
            [ "$stage" = 1 ] || [ ! -s "$scratch/stage2" ] ||
                printf 'python3 plot.py predict %q\n' "$dir"
            while IFS=$'\t' read -r _ _ name flags _; do
                printf 'OMP_NUM_THREADS=%s %q %s -out %q\n' \
                    "$threads" "$trainer" "$flags" "$dir/$name"
            done <"$scratch/stage$stage"
        done
        exit 0
    fi
    prepare
    if [ "$on" = slurm ]; then submit_all; exit 0; fi

    trap 'interrupt 130' INT
    trap 'interrupt 143' TERM HUP
    trap 'exec >&2; interrupt 141' PIPE    # nobody reads any more
    run_all "$scratch/stage1"
    if [ -s "$scratch/stage2" ] && [ -z "$interrupted" ] &&
        [ -z "$(unfinished "$scratch/stage1")" ]; then
        predict "$dir"
        run_all "$scratch/stage2"
    fi
    [ ! -t 1 ] || echo
    if [ -n "$interrupted" ]; then
        echo "stopped; go on with: $command"
        exit "$interrupted"
    fi
    left=$(unfinished "$scratch/plan" | wc -l)
    word=
    [ "$left" = 0 ] || word="; try the others again with: $command"
    echo "$((total - left)) of $total runs are in $dir$word"
    [ "$left" = 0 ]
}

# What can be wrong before a run starts, then the folder and the counts of what is in it.
prepare() {
    local word name stage cost flags held_out=''
    { [ -f "$trainer" ] && [ -x "$trainer" ]; } ||
        die 2 "there is no trainer $trainer; make builds it"
    [ "$scale" != paper ] || [ -n "${user[data]-}" ] ||
        die 2 "-scale paper needs tokens: -- -data 'c4_*.bin' -val FILE, with T5's vocabulary of\
 32101"
    command -v flock >/dev/null ||
        die 2 "flock is missing; on Debian and Ubuntu: apt install util-linux"
    if [ "$on" = slurm ]; then
        command -v sbatch >/dev/null ||
            die 2 "-on slurm: sbatch is missing; run this where jobs are submitted"
    else
        [ "$on" = local ] || [ -r "$on" ] ||
            die 2 "-on: '$on' is neither local, slurm, nor a file of hosts"
        [[ $(parallel --version 2>/dev/null </dev/null) == "GNU parallel"* ]] ||
            die 2 "GNU parallel is missing; on Debian and Ubuntu: apt install parallel"
    fi
    if [[ $trainer == *_cu ]]; then
        word=1
    elif [ "$on" = local ]; then
        word=$(($(nproc) > threads ? $(nproc) / threads : 1))
    else
        word=$(((99 + threads) / threads))%
    fi
    [ "$on" = slurm ] || : "${jobs:=$word}"

    # What the trainer says of the flags (2: wrong ones; nothing can be resumed yet), then, where it
    # will run, of their data.
    eval "flags=($(tail -n 1 "$scratch/stage1" | cut -f 4))"
    word=$("$trainer" "${flags[@]}" -resume -out "$scratch/none" 2>&1 </dev/null)
    [ $? -ne 2 ] || die 2 "$word"
    if [ "$on" = local ]; then
        word=$("$trainer" "${flags[@]}" -steps 0 -warmup 0 -eval_tokens 1 -out "$scratch/none" \
            2>&1 </dev/null) || die 1 "$(tail -n 1 <<<"$word")"
    fi

    [ ! -e "$dir/log.csv" ] || die 2 "$dir holds a single run; choose another -out"
    { mkdir -p "$dir" && : >>"$dir/lock"; } 2>"$scratch/errors" ||
        die 2 "cannot write to $dir: $(sed 's/.*: //' "$scratch/errors")"
    cut -f 5 "$scratch/plan" | sort -u >"$scratch/flags"
    echo "$experiment" >"$scratch/experiment"
    (
        flock 8
        for word in experiment flags; do    # whole or not at all
            [ -e "$dir/$word" ] || {
                cp "$scratch/$word" "$dir/$word.tmp" && mv "$dir/$word.tmp" "$dir/$word"
            } 2>"$scratch/errors" ||
                die 1 "cannot write $dir/$word: $(sed 's/.*: //' "$scratch/errors")"
        done
        word=$(cat "$dir/experiment")
        [ "$word" = "$experiment" ] || die 2 "$dir holds the experiment $word; choose another -out"
        cmp -s "$scratch/flags" "$dir/flags" ||
            die 2 "$dir was begun with other flags, see $dir/flags; choose another -out"
    ) 8>>"$dir/lock" || exit

    while IFS=$'\t' read -r cost stage name _; do
        total=$((total + 1))
        [ "$stage" = 1 ] || [ ! -e "$dir/$name" ] || held_out=$name
        if ! finished "$dir/$name"; then
            cost_of[$name]=$cost cost_left=$((cost_left + cost))
            continue
        fi
        done=$((done + 1))
        [ "$(outcome "$dir/$name")" = finished ] || diverged=$((diverged + 1))
    done <"$scratch/plan"
    [ -z "$held_out" ] || [ -e "$dir/prediction.csv" ] || die 2 "$dir has the held-out run\
 $held_out but no prediction.csv made before it; choose another -out"
    [ "$done" = 0 ] || { join_summaries "$dir"; echo "$done of $total runs are already there"; }
}

case ${1-} in
    _run) shift; run_one "$@" ;;
    _tasks) shift; run_tasks "$@" ;;
    _predict) shift; predict "$@" ;;
    *) main "$@" ;;
esac
