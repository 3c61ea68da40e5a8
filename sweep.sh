#!/usr/bin/env bash
# sweep.sh: the paper's experiments, each of them many runs of the trainer; -h lists them.
# Sections: the scales; the experiments; the plan; one run; on this machine, on several, on Slurm; main.
set -u -o pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
SELF=$HERE/sweep.sh

die() { echo "sweep.sh: $2" >&2; exit "$1"; }    # status 1: what failed, 2: a wrong command

# ---------------------------------------------------------------------------
# The scales: what an experiment's numbers are on a laptop, in a night on 16 cores (or an hour on a GPU), in the paper.
# A size is a width, or width x layers. The paper's are those whose count of parameters it gives.
SCALES='
what             laptop                                    workstation                                paper
T                32                                        128                                        512
batch            16                                        32                                         256
steps            1000                                      5000                                       100000
layers           2                                         4                                          12
head_size        16                                        32                                         64
vocab            0                                         0                                          32101
log_every        10                                        20                                         100
eval_every       250                                       1000                                       5000
checkpoint_every 0                                         500                                        500
ladder           16,32,64,96                               64,128,256,512                             512x3,512x6,768x6,768x12,1024x12,1024x24,2048x24
three_sizes      16,32,64                                  64,128,256                                 512x3,512x6,768x12
one_size         64                                        128                                        768x12
small_size       32                                        128                                        512x6
depth_width      32x1,32x2,32x4,32x8,16x2,64x2,16x1,48x4   128x2,128x4,128x8,128x16,64x4,256x4,64x2,192x8   512x3,512x6,512x12,512x24,256x6,1024x6,256x3,768x12
logits_fit       16,24,32,48,64                            64,96,128,192,256                          256x3,512x3,512x6,768x6,768x12,1024x12
logits_held_out  96,128,192                                384,512                                    1024x24,2048x24
eps_fit          16,32,48,64                               64,96,128,192                              256x3,512x3,512x6,768x6,768x12
eps_held_out     96,128                                    256,384                                    1024x12,1024x24
eps_largest      128                                       384                                        1024x24
mu_base          32                                        64                                         256
mu_widths        32,64,128,256                             64,128,256,512                             256,512,1024,2048
mu_steps         400                                       2500                                       100000
mu_batch         8                                         32                                         256
coord_widths     32,64,128,256,512                         64,128,256,512,1024                        256,512,1024,2048,4096
steps_values     250,500,1000,2000                         1250,2500,5000,10000                       25000,50000,100000,200000
batch_values     4,8,16,32,64                              8,16,32,64,128                             64,128,256,512,1024
wd_independent   1e-4,1e-2                                 1e-4,1e-3                                  1e-4
wd_standard      1e-2,1                                    1e-2,1e-1                                  1e-1
'
declare -A of    # of[what]: this scale's value

set_scale() {
    local what laptop workstation paper
    case $1 in laptop | workstation | paper) ;; *) die 2 "-scale: '$1' is none of: laptop workstation paper" ;; esac
    while read -r what laptop workstation paper; do
        case $1 in laptop) of[$what]=$laptop ;; workstation) of[$what]=$workstation ;; paper) of[$what]=$paper ;; esac
    done < <(grep . <<<"$SCALES")
}

# ---------------------------------------------------------------------------
# The experiments. `grid` makes a run of every combination of its flag=value,value,... and of the seeds; its
# -flag value go to each of them. Runs of `stage 2` are held out until plot.py has predicted them from stage 1.
EXPERIMENTS='
qk_norm         3.1.1   figures 1 and 2: attention logits grow until training fails; qk-norm
z_loss          3.1.2   figure 3: output logits drift; z-loss and weight decay
warmup          3.2.1   figure 4: length of warm-up
weight_decay    3.2.2   figure 5: independent or standard weight decay
depth_width     3.2.3   figure 6: depth, width, both
mu_param        3.2.4   figure 7: muParam over widths
coord_check     3.2.4   muParam'\''s own test: activations and updates against width
predict_logits  3.3     attention logits of larger models, predicted, then run
predict_eps     3.4     gradients that shrink to epsilon, predicted, then run; smaller and larger epsilon
steps           app.    number of training steps
batch           app.    batch size
beta2           app.    AdamW'\''s second moment
clip            app.    gradient clipping
'
LR=3e-3,1e-2,3e-2,1e-1,3e-1

experiment() {
    case $1 in
    qk_norm) grid d="${of[ladder]}" lr=3e-4,1e-3,$LR,1 qk_norm=0,1 ;;
    z_loss) grid d="${of[one_size]}" lr=1e-2,3e-2,1e-1,3e-1,1 z_loss=0,1e-4,1e-2 wd=0,1e-4 ;;
    warmup) grid d="${of[three_sizes]}" lr=1e-2,3e-2,1e-1,3e-1,1 warmup=1%,5%,10%,25% qk_norm=0,1 ;;
    weight_decay)
        grid d="${of[three_sizes]}" lr=$LR,1 wd_independent=1 wd="${of[wd_independent]}"
        grid d="${of[three_sizes]}" lr=$LR,1 wd_independent=0 wd="${of[wd_standard]}" ;;
    depth_width) grid d="${of[depth_width]}" lr=$LR qk_norm=0,1 ;;
    mu_param) grid d="${of[mu_widths]}" lr=1e-3,$LR mu_param=off,simple,intermediate,full \
                   -heads 4 -base_d "${of[mu_base]}" -steps "${of[mu_steps]}" -batch "${of[mu_batch]}" ;;
    coord_check) grid d="${of[coord_widths]}" lr=1e-2 mu_param=off,simple,intermediate,full seed="$(seeds 3)" \
                      -heads 4 -base_d "${of[mu_base]}" -steps 10 -warmup 0 -log_every 1 -eval_every 0 -eval_tokens 1024 ;;
    predict_logits)
        grid d="${of[logits_fit]}" lr=3e-3,1e-2,3e-2,1e-1 -qk_norm 0
        stage 2
        grid d="${of[logits_held_out]}" lr=3e-3,1e-2,3e-2,1e-1 -qk_norm 0 ;;
    predict_eps)
        grid d="${of[eps_fit]}" lr=1e-3,$LR eps=1e-8
        stage 2
        grid d="${of[eps_held_out]}" lr=1e-3,$LR eps=1e-8
        grid d="${of[eps_largest]}" lr=1e-1,3e-1 eps=1e-15,1e-6,1e-5,1e-4,1e-3 ;;
    steps) grid d="${of[small_size]}" lr=$LR steps="${of[steps_values]}" qk_norm=0,1 ;;
    batch) grid d="${of[small_size]}" lr=$LR batch="${of[batch_values]}" qk_norm=0,1 ;;
    beta2) grid d="${of[small_size]}" lr=$LR beta2=0.9,0.95,0.99,0.999 qk_norm=0,1 ;;
    clip) grid d="${of[small_size]}" lr=$LR clip=0,0.1,1,10 qk_norm=0,1 ;;
    *) return 1 ;;
    esac
}

# ---------------------------------------------------------------------------
# The plan: a line a run, "cost <tab> stage <tab> name <tab> flags <tab> flags that every run of its grid has"

declare -A user=()    # the trainer's flags after --, by name
user_order=() STAGE=1 seed_count=

stage() { STAGE=$1; }
seeds() { seq -s , 1 "${seed_count:-$1}"; }

# A flag given after -- takes the place of the grid's values for it, or goes to every run.
grid() {
    local fixed='' heads=1 axes=() lines=($'\t') next values what axis value line name flags
    for what in T batch steps layers vocab log_every eval_every checkpoint_every; do fixed+=" -$what ${of[$what]}"; done
    while [ $# -gt 0 ]; do
        case $1 in
            -*) fixed+=" $1 $2"; [ "$1" != -heads ] || heads=; shift 2 ;;
            *) axes+=("$1"); shift ;;
        esac
    done
    [[ " ${axes[*]}" == *" seed="* ]] || axes+=("seed=$(seeds 1)")
    for what in "${user_order[@]}"; do
        [[ " ${axes[*]}" == *" $what="* ]] || printf -v fixed '%s -%s %q' "$fixed" "$what" "${user[$what]}"
    done
    for axis in "${axes[@]}"; do
        what=${axis%%=*} next=()
        IFS=, read -ra values <<<"${user[$what]-${axis#*=}}"
        for line in "${lines[@]}"; do
            for value in "${values[@]}"; do
                name=${line%%$'\t'*} flags=${line#*$'\t'}
                if [ "$what" = d ]; then
                    [[ $value =~ ^([0-9]{1,5})(x([0-9]{1,4}))?$ ]] || die 2 "-d: '$value' is not a width, nor width x layers"
                    value=${BASH_REMATCH[1]}
                    if [ -n "${BASH_REMATCH[3]}" ]; then
                        [ -z "${user[layers]-}" ] || die 2 "-layers: this experiment chooses it itself"
                        name+=_layers${BASH_REMATCH[3]} flags+=" -layers ${BASH_REMATCH[3]}"
                    fi
                    if [ -n "$heads" ] && [ -z "${user[heads]-}" ]; then
                        flags+=" -heads $((value > of[head_size] ? value / of[head_size] : 1))"
                    fi
                fi
                printf -v flags '%s -%s %q' "$flags" "$what" "$value"
                next+=("${name}_$what${value//%/pct}"$'\t'"$flags")
            done
        done
        lines=("${next[@]}")
    done
    for line in "${lines[@]}"; do
        name=${line%%$'\t'*} name=${name#_}
        printf '%s\t%s\t%s\t%s\n' "$STAGE" "${name//[^A-Za-z0-9._-]/-}" "${fixed# }${line#*$'\t'}" "${fixed# }"
    done
}

# Each run once, stage by stage, the most expensive first. The cost is in FLOPs (README.md, "Speed"), evaluations
# included, times 1 + 16/C: narrow models run less efficiently.
plan() {
    experiment "$1" | awk -F '\t' -v OFS='\t' '!seen[$2]++ {
        split("", v); v["vocab"] = 256
        n = split($3, word, " ")
        for (i = 1; i < n; i++) if (word[i] ~ /^-[a-zA-Z]/ && !(word[i] == "-vocab" && word[i + 1] == 0)) v[substr(word[i], 2)] = word[i + 1]
        C = v["d"]; L = v["layers"]
        tokens = v["steps"] * v["batch"] * v["T"]
        evaluations = 1 + (v["eval_every"] ? v["steps"] / v["eval_every"] : 1)
        tokens += evaluations * ("eval_tokens" in v ? v["eval_tokens"] : 16384) / 3
        printf "%.4e\t%s\n", (6 * (12 * L * C * C + v["vocab"] * C) + 6 * L * v["T"] * C) * tokens * (1 + 16 / C), $0
    }' | sort -t $'\t' -k 2,2n -k 1,1gr -k 3,3
}

# ---------------------------------------------------------------------------
# One run, a process of its own. Prints its name and what became of it: busy (another sweep has it), finished, diverged,
# stopped (goes on from its checkpoint), failed.

finished() { [ -e "$1/summary.csv" ]; }

outcome() {    # of a finished run; the column is counted from the end, as texts before it may hold commas
    awk -F , 'NR == 1 { for (i = 1; i <= NF; i++) if ($i == "diverged") k = NF - i } NR == 2 { x = $(NF - k) } END { print x == 1 ? "diverged" : "finished" }' "$1/summary.csv"
}

# DIR/summary.csv, from the runs that are finished.
join_summaries() {
    (
        flock 8
        awk 'NR == 1 || FNR > 1' "$1"/*/summary.csv >"$1/summary.csv.tmp" 2>/dev/null && mv "$1/summary.csv.tmp" "$1/summary.csv"
    ) 8>>"$1/lock"
}

run_one() {    # DIR THREADS TRAINER wait|skip NAME FLAGS
    local dir=$1 threads=$2 trainer=$3 busy=$4 name=$5 folder=$1/$5 flags child='' stopped='' state status
    eval "flags=($6)"
    trap 'stopped=1; [ -z "$child" ] || kill -TERM "$child" 2>/dev/null' INT TERM HUP USR1
    mkdir -p "$folder"
    exec 9>>"$folder/lock"
    if ! flock -n 9; then
        [ "$busy" = wait ] || { echo "$name busy"; return 0; }
        flock 9
    fi
    if ! finished "$folder"; then
        echo "$name running"
        [ ! -e "$folder/model.safetensors" ] || flags+=(-resume)
        if [ -z "$stopped" ]; then
            OMP_NUM_THREADS=$threads "$trainer" "${flags[@]}" -out "$folder" >>"$folder/output.txt" 2>&1 </dev/null &
            child=$!
            status=0
            while wait "$child" || status=$?; kill -0 "$child" 2>/dev/null; do :; done    # a signal ends a wait early
            case $status in 130 | 143) stopped=1 ;; esac
        fi
        if finished "$folder"; then state=$(outcome "$folder"); elif [ -n "$stopped" ]; then state=stopped; else state=failed; fi
        join_summaries "$dir"
    else
        state=$(outcome "$folder")
    fi
    echo "$name $state"
    [ "$state" != failed ]
}

# ---------------------------------------------------------------------------
# On this machine or several: GNU parallel starts the runs, and what they print makes the progress

parallel_pid='' interrupted='' total=0 done=0 diverged=0 failed=0 stopped=0 cost_left=0 cost_done=0
declare -A cost_of=() running=()

interrupt() {    # a first SIGTERM lets GNU parallel start no more, a second one ends the runs, which save their checkpoints
    [ -z "$interrupted" ] || return
    interrupted=$1
    [ -z "$parallel_pid" ] || kill -TERM "$parallel_pid" 2>/dev/null && sleep 0.2 && kill -TERM "$parallel_pid" 2>/dev/null
}

duration() {    # of seconds, for people
    awk -v s="$1" 'BEGIN {
        if (s < 3600) printf "%d:%02d", s / 60, s % 60
        else if (s < 172800) printf "%.1f h", s / 3600
        else if (s < 63072000) printf "%.0f days", s / 86400
        else printf "%.0f years", s / 31536000
    }'
}

progress() {    # [what has just happened]
    local left='' line
    [ "$cost_done" = 0 ] || left=", $(duration "$(awk -v l="$cost_left" -v d="$cost_done" -v s="$((SECONDS - started))" 'BEGIN { print s * l / d }')") left"
    line="$done/$total runs done, $diverged diverged, $failed failed, ${#running[@]} running$left"
    if [ -t 1 ]; then printf '\r\033[K%s' "$line"; elif [ $# -gt 0 ]; then echo "$1: $line"; fi
}

report_failure() {    # DIR NAME
    [ ! -t 1 ] || printf '\r\033[K'
    echo "sweep.sh: $2 failed; the end of $1/$2/output.txt:"
    tail -n 5 "$1/$2/output.txt" 2>/dev/null | sed 's/^/    /'
}

run_all() {    # DIR THREADS JOBS HOSTFILE TRAINER PLAN wait|skip: the runs of the plan that are not finished
    local dir=$1 threads=$2 jobs=$3 hosts=() trainer=$5 name state answer
    [ -z "$4" ] || hosts=(--sshloginfile "$4" --workdir "$PWD")
    while IFS=$'\t' read -r _ _ name state; do finished "$dir/$name" || printf '%s\t%s\n' "$name" "${state%%$'\t'*}"; done <"$6" >"$scratch/todo"
    [ -s "$scratch/todo" ] || return 0
    # A session of its own: Ctrl-C is for this script alone, which ends the rest in order.
    exec 3< <(exec setsid parallel --will-cite --quote --line-buffer --colsep '\t' --termseq TERM,600000,KILL --jobs "$jobs" "${hosts[@]}" \
        -a "$scratch/todo" bash "$SELF" _run "$dir" "$threads" "$trainer" "$7" '{1}' '{2}' 2>"$scratch/errors" </dev/null)
    parallel_pid=$!
    while :; do
        read -r -t 1 -u 3 name state
        answer=$?
        if [ "$answer" -gt 128 ]; then progress; continue; elif [ "$answer" -ne 0 ]; then break; fi
        case $state in
            running) running[$name]=1; progress; continue ;;
            busy) continue ;;
            finished) done=$((done + 1)) ;;
            diverged) done=$((done + 1)) diverged=$((diverged + 1)) ;;
            failed) failed=$((failed + 1)); report_failure "$dir" "$name" ;;
            stopped) stopped=$((stopped + 1)) ;;
        esac
        unset "running[$name]"
        read -r cost_left cost_done < <(awk -v l="$cost_left" -v d="$cost_done" -v c="${cost_of[$name]-0}" 'BEGIN { print l - c, d + c }')
        progress "$name $state"
    done
    wait "$parallel_pid"
    parallel_pid=''
    exec 3<&-
}

predict() {    # DIR PLAN: fits stage 1 and predicts stage 2, before any of stage 2 has run and never again after
    local name python=$HERE/build/venv/bin/python
    [ -x "$python" ] || python=python3
    for name in $(awk '$2 == 2 { print $3 }' "$2"); do
        [ ! -e "$1/$name" ] || { [ -e "$1/prediction.csv" ] && return 0; die 1 "$1 has held-out runs but no prediction.csv: nothing can be predicted any more; choose another -out"; }
    done
    "$python" "$HERE/plot.py" predict "$1" || die 1 "plot.py predict $1 failed; the held-out runs wait for it"
}

# ---------------------------------------------------------------------------
# On a cluster: a Slurm job array

run_tasks() {    # DIR THREADS TRAINER PLAN PACK: a task's runs
    local i name flags status=0
    mapfile -t lines <"$4"
    for ((i = SLURM_ARRAY_TASK_ID * $5; i < (SLURM_ARRAY_TASK_ID + 1) * $5 && i < ${#lines[@]}; i++)); do
        IFS=$'\t' read -r _ _ name flags _ <<<"${lines[i]}"
        (run_one "$1" "$2" "$3" wait "$name" "$flags") || status=1
    done
    return "$status"
}

# ---------------------------------------------------------------------------
# The command line

usage() {
    cat <<'END'
usage: ./sweep.sh EXPERIMENT [-option value ...] [-- trainer flags]
END
}

main() {
    local experiment='' scale=laptop jobs='' on=local dir='' dry_run='' trainer=$HERE/train_gpt threads=1 partition='' limit='' pack=1 word
    while [ $# -gt 0 ]; do
        case $1 in
            -h | -help | --help) usage; exit 0 ;;
            --) shift; break ;;
            -dry_run) dry_run=1; shift; continue ;;
            -scale | -seeds | -j | -on | -out | -trainer | -threads | -partition | -time | -pack) [ $# -ge 2 ] || die 2 "$1 needs a value" ;;
            -*) die 2 "'$1' is not an option (-h lists them); the trainer's flags come after --" ;;
            *) [ -z "$experiment" ] || die 2 "'$1': one experiment at a time, and that is $experiment"; experiment=$1; shift; continue ;;
        esac
        case $1 in -seeds | -j | -threads | -pack) [[ $2 =~ ^[1-9][0-9]{0,4}$ ]] || die 2 "$1: '$2' is not a count" ;; esac
        case $1 in
            -scale) scale=$2 ;; -seeds) seed_count=$2 ;; -j) jobs=$2 ;; -on) on=$2 ;; -out) dir=${2%/} ;; -trainer) trainer=$2 ;;
            -threads) threads=$2 ;; -partition) partition=$2 ;; -time) limit=$2 ;; -pack) pack=$2 ;;
        esac
        shift 2
    done
    while [ $# -gt 0 ]; do
        [[ $1 =~ ^-[a-zA-Z] ]] || die 2 "'$1' is not a flag of the trainer"
        word=${1#-}
        case $word in out | resume | sample | temperature | size) die 2 "-$word: sweep.sh sets that itself" ;; esac
        [ $# -ge 2 ] || die 2 "-$word needs a value"
        [ -n "${user[$word]-}" ] || user_order+=("$word")
        user[$word]=$2
        shift 2
    done
    set_scale "$scale"
    grep -q "^$experiment " <<<"$EXPERIMENTS" && [ -n "$experiment" ] || die 2 "'$experiment' is none of: $(awk 'NF { printf "%s ", $1 }' <<<"$EXPERIMENTS")(-h says what each is)"
    : "${dir:=runs/$experiment-$scale}"
    scratch=$(mktemp -d) || die 1 "no temporary folder"
    trap 'rm -rf "$scratch"' EXIT
    plan "$experiment" >"$scratch/plan" || exit 2

    if [ -n "$dry_run" ]; then
        while IFS=$'\t' read -r _ stage name flags _; do
            [ "$stage" = "$STAGE" ] || { STAGE=$stage; [ "$stage" = 1 ] || echo "python3 plot.py predict $dir"; }
            printf '%q %s -out %q\n' "$trainer" "$flags" "$dir/$name"
        done <"$scratch/plan"
        exit 0
    fi

    [ -x "$trainer" ] && [ ! -d "$trainer" ] || die 2 "no trainer $trainer; make builds it"
    [ "$scale" != paper ] || [ -n "${user[data]-}" ] || die 2 "-scale paper needs data: -- -data 'c4/*.bin' -val FILE, with tokens of T5's vocabulary"
    command -v flock >/dev/null || die 2 "flock is missing; on Debian and Ubuntu: apt install util-linux"
    parallel --version 2>/dev/null </dev/null | grep -q '^GNU parallel' || die 2 "GNU parallel is missing; on Debian and Ubuntu: apt install parallel"

    # A flag that the trainer refuses is refused here, before anything is written.
    eval "flags=($(head -n 1 "$scratch/plan" | cut -f 4))"
    word=$("$trainer" "${flags[@]}" -resume -out "$scratch/none" 2>&1 >/dev/null </dev/null)
    [ $? -ne 2 ] || die 2 "$word"

    mkdir -p "$dir" 2>"$scratch/errors" && [ -w "$dir" ] && : >>"$dir/lock" || die 2 "cannot write to $dir: $(sed 's/.*: //' "$scratch/errors")"
    cut -f 5 "$scratch/plan" | sort -u >"$scratch/flags"
    (
        flock 8
        [ -e "$dir/experiment" ] || echo "$experiment" >"$dir/experiment"
        [ "$(cat "$dir/experiment")" = "$experiment" ] || die 2 "$dir holds the experiment $(cat "$dir/experiment"); choose another -out"
        [ -e "$dir/flags" ] || cp "$scratch/flags" "$dir/flags"
        cmp -s "$scratch/flags" "$dir/flags" || die 2 "$dir holds runs with other flags: $(diff "$dir/flags" "$scratch/flags" | grep '^[<>]' | tr '\n' ' ')(<: its, >: these); choose another -out"
    ) 8>>"$dir/lock" || exit 2

    while IFS=$'\t' read -r cost stage name _; do
        cost_of[$name]=$cost total=$((total + 1))
        finished "$dir/$name" || continue
        cost_of[$name]=0 done=$((done + 1))
        [ "$(outcome "$dir/$name")" = finished ] || diverged=$((diverged + 1))
    done <"$scratch/plan"
    cost_left=$(printf '%s\n' "${cost_of[@]}" | awk '{ s += $1 } END { print s }')
    [ "$done" = 0 ] || echo "$done of $total runs are already done"
    started=$SECONDS
    trap 'interrupt 130' INT
    trap 'interrupt 143' TERM HUP
    : "${jobs:=$(($(nproc) / threads > 0 ? $(nproc) / threads : 1))}"
    for stage in 1 2; do
        awk -F '\t' -v s="$stage" '$2 == s' "$scratch/plan" >"$scratch/stage"
        [ -s "$scratch/stage" ] || continue
        [ "$stage" = 1 ] || predict "$dir" "$scratch/plan"
        for busy in skip wait; do run_all "$dir" "$threads" "$jobs" "" "$trainer" "$scratch/stage" "$busy"; [ -z "$interrupted$failed" ] || : ; done
        [ -z "$interrupted" ] && [ "$failed" = 0 ] || break
    done
    [ ! -t 1 ] || echo
    if [ -n "$interrupted" ]; then
        echo "stopped; the same command goes on from here"
        exit "$interrupted"
    fi
    join_summaries "$dir"
    left=$(while IFS=$'\t' read -r _ _ name _; do finished "$dir/$name" || echo "$name"; done <"$scratch/plan" | wc -l)
    echo "$((total - left)) of $total runs done in $dir$([ "$left" = 0 ] || echo "; the same command goes on with the rest")"
    [ "$left" = 0 ]
}

case ${1-} in
    _run) shift; run_one "$@" ;;
    _tasks) shift; run_tasks "$@" ;;
    *) main "$@" ;;
esac
