#!/usr/bin/env bash
# sweep.sh: the paper's experiments, each of them many runs of the trainer; -list lists them.
# GNU parallel makes the runs, on this machine or on several; on a cluster Slurm shares them out.
set -u -o pipefail
# PARALLEL_SHELL: not the user's shell, which may be unset or read quotes in its own way
export LC_ALL=C PARALLEL_SHELL=/bin/bash
[ -d "${TMPDIR:-/tmp}" ] || export TMPDIR=/tmp
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
one_size          64                 128                   512x3
small_size        32                 128                   512x6
league_sizes      32,64              64,128                512x6,768x12
depth_and_width   32x2,32x8,32x32,64x2,128x2,48x4,64x8 \
                  64x2,64x8,64x32,128x2,256x2,96x4,128x8 \
                  512x3,512x6,512x12,512x24,512x48,512x96,256x6,1024x6,2048x6,768x9,1024x12
depth_steps       2000               10000                 100000
z_sizes           16x1,24x1,32x1     16x1,32x1,64x1        256x3,512x6,768x12
z_T               16                 16                    512
z_batch           4                  4                     256
z_steps           30000              100000                100000
blocks            32x4,32x8,64x8     128x4,128x8,256x8     512x6,512x12,512x24,1024x12
two_sizes         16,128             64,512                256x3,2048x24
logits_fit        16,24,32,48,64     64,96,128,192,256     256x3,512x3,512x6,768x6,768x12,1024x12
logits_held_out   96,128,192         384,512               1024x24,2048x24,4096x24
eps_fit           16,32,48,64        64,96,128,192         256x3,512x3,512x6,768x6,768x12,1024x12
eps_held_out      96,128             256,384               1024x24,2048x24
eps_largest       128                384                   2048x24
warmups           1%,5%,10%,25%      1%,5%,10%,25%         0.05%,0.5%,5%,25%
recipe_base       16                 64                    512
mu_base           32                 64                    256
mu_widths         32,64,128,256      64,128,256,512        256,512,1024,2048
short_steps       400                2500                  100000
small_batch       8                  32                    256
coord_widths      32,64,128,256,512  64,128,256,512,1024   256,512,1024,2048,4096
step_counts       500,1000,2000      2500,5000,10000       50000,100000,200000
batch_and_steps   8x2000,16x1000,32x500 \
                  16x10000,32x5000,64x2500 \
                  256x100000,512x50000,1024x25000
wd_independent    3e-4,1e-3,3e-3     1e-4,3e-4,1e-3        1e-5,1e-4,1e-3
wd_standard       0.1,0.3,1          0.1,0.3,1             0.1
long_steps        4000               20000                 100000
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
# seeds; its -flag value go to each of them. Runs of `stage 2` are held out until predict.py has
# predicted them from stage 1.
EXPERIMENTS="
qk_norm         3.1.1  attention logits
logit_growth    3.1.1  over steps; why
z_loss          3.1.2  output logits
warmup          3.2.1  warm-up's length
weight_decay    3.2.2  two decays
depth_width     3.2.3  depth and width
mu_param        3.2.4  muParam by width
coord_check     3.2.4  muParam's test
predict_logits  3.3    predicts logits
kappa           3.3    size of a logit
predict_eps     3.4    predicts epsilon
block_rms       C.1    block by block
recipe          1      all together
scale           E.6    attention 1/d_h
steps           E.7    number of steps
qk_norm_over    E.8    of head or model
batch           E.9    batch, same data
pointwise       E.11   without softmax
rms_lr          E.14   LR times RMS
beta2           ours   AdamW's beta2
clip            ours   gradient's limit
league          later  cures since then
grid            -      any flags, above
"
LR=3e-4,1e-3,3e-3,1e-2,3e-2,1e-1,3e-1    # the paper's seven (section 2.2)

experiment() {
    local what
    case $1 in
    qk_norm) grid d="${of[ladder]}" lr=$LR,1 qk_norm=0,1 ;;
    logit_growth) grid d="${of[two_sizes]}" lr=1e-2,1e-1 qk_norm=0,1 ;;
    z_loss)
        grid d="${of[z_sizes]}" lr=$LR z_loss=0,1e-4 wd=0,1e-4 -data bigram -bf16_logits 1 \
            -T "${of[z_T]}" -batch "${of[z_batch]}" -steps "${of[z_steps]}" -log_every 100 \
            -eval_every 5000 ;;
    warmup) grid d="${of[three_sizes]}" lr=$LR warmup="${of[warmups]}" qk_norm=0,1 ;;
    weight_decay)
        grid d="${of[three_sizes]}" lr=$LR,1 wd_independent=1 wd="${of[wd_independent]}" \
            -steps "${of[long_steps]}"
        grid d="${of[three_sizes]}" lr=1e-4,$LR wd_independent=0 wd="${of[wd_standard]}" \
            -steps "${of[long_steps]}" ;;
    depth_width)
        grid d="${of[depth_and_width]}" lr=$LR qk_norm=0,1 -steps "${of[depth_steps]}" \
            -batch "${of[small_batch]}" ;;
    mu_param)
        grid d="${of[mu_widths]}" lr=1e-4,$LR,1 mu_param=off,simple,intermediate,full \
            qk_norm=0,1 -base_d "${of[mu_base]}" -steps "${of[short_steps]}" \
            -batch "${of[small_batch]}" ;;
    scale)
        grid d="${of[mu_widths]}" lr=$LR scale=sqrt,d_h qk_norm=0,1 \
            -steps "${of[short_steps]}" -batch "${of[small_batch]}" ;;
    rms_lr)
        grid d="${of[mu_widths]}" lr=1e-4,$LR rms_lr=0 -steps "${of[short_steps]}" \
            -batch "${of[small_batch]}"
        grid d="${of[mu_widths]}" lr=3e-3,1e-2,3e-2,1e-1,3e-1,1,3,10 rms_lr=1 \
            -steps "${of[short_steps]}" -batch "${of[small_batch]}" ;;
    coord_check)
        grid d="${of[coord_widths]}" lr=1e-2 mu_param=off,simple,intermediate,full \
            seed="$(seeds 3)" -base_d "${of[mu_base]}" -steps 10 -warmup 0 -log_every 1 \
            -eval_every 0 -eval_tokens 1024 ;;
    predict_logits)
        grid d="${of[logits_fit]}" lr=3e-3,1e-2,3e-2,1e-1 -qk_norm 0
        stage 2
        grid d="${of[logits_held_out]}" lr=3e-3,1e-2,3e-2,1e-1 -qk_norm 0 ;;
    predict_eps)
        grid d="${of[eps_fit]}" lr=1e-3,3e-3,1e-2,3e-2,1e-1,3e-1 eps=1e-8
        stage 2
        grid d="${of[eps_held_out]}" lr=1e-3,3e-3,1e-2,3e-2,1e-1,3e-1 eps=1e-8
        grid d="${of[eps_largest]}" lr=1e-1,3e-1 eps=1e-15,1e-6,1e-5,1e-4,1e-3 ;;
    kappa)
        grid d="${of[one_size]}" lr=3e-3,1e-2,3e-2 kappa=1,10,30,100,300,1e3,3e3,1e4 -qk_norm 0
        grid d="${of[one_size]%x*}x0" lr=3e-3,1e-2,3e-2 kappa=0 -qk_norm 0 ;;
    block_rms) grid d="${of[blocks]}" lr=1e-3,1e-2,1e-1 ;;
    recipe)
        for what in "qk_norm=0 z_loss=0 wd=0 warmup=1%" "qk_norm=1 z_loss=1e-4 wd=1e-4 warmup=25%" \
            "qk_norm=1 z_loss=1e-4 wd=1e-4 warmup=25% mu_param=simple"; do
            # shellcheck disable=SC2086    # several
            grid d="${of[three_sizes]}" lr=$LR,1 $what -base_d "${of[recipe_base]}" \
                -steps "${of[long_steps]}"
        done ;;
    steps) grid d="${of[small_size]}" lr=$LR steps="${of[step_counts]}" qk_norm=0,1 ;;
    batch)
        for what in ${of[batch_and_steps]//,/ }; do
            grid d="${of[small_size]}" lr=$LR batch="${what%x*}" steps="${what#*x}" qk_norm=0,1
        done ;;
    qk_norm_over) grid d="${of[three_sizes]}" lr=$LR,1 qk_norm=1,model ;;
    pointwise) grid d="${of[three_sizes]}" lr=$LR attention=softmax,relu2 qk_norm=0,1 ;;
    beta2) grid d="${of[small_size]}" lr=$LR beta2=0.9,0.95,0.99,0.999 qk_norm=0,1 ;;
    clip) grid d="${of[small_size]}" lr=$LR clip=0,0.1,1,10 qk_norm=0,1 ;;
    league)
        for what in qk_norm=1 "qk_norm=1 warmup=25%" "qk_norm=1 optimizer=muon" qk_norm=0 \
            "qk_norm=0 "{attn_cap=30,qk_clip=30,gate=1,peri_ln=1,"wd=1e-2 cautious=1"} \
            "qk_norm=0 optimizer=muon"{," qk_clip=30"}; do
            # shellcheck disable=SC2086    # several
            grid d="${of[league_sizes]}" lr=$LR,1 $what
        done ;;
    grid) grid -d "${of[small_size]}" ;;
    *) return 1 ;;
    esac
}

# ---------------------------------------------------------------------------
# The plan, one line per run:
# "cost <tab> stage <tab> name <tab> flags <tab> the flags that every run of its grid has"

declare -A user=()    # the trainer's flags after --, by name
user_order=() STAGE=1 seed_count=

stage() { STAGE=$1; }
seeds() { seq -s , 1 "${seed_count:-$1}"; }

# Prints "stage <tab> flags of every run <tab> flags of this run" for each combination. A flag given
# after -- takes the place of the grid's values for it. Any other goes to every run, or is varied
# too if it has several values.
grid() {
    local what value fixed='' added='' varied=''
    for what in checkpoint_every eval_every log_every vocab layers steps batch T; do
        set -- "-$what" "${of[$what]}" "$@"
    done
    for what in "${user_order[@]}"; do
        [[ " $* " != *" $what="* ]] || continue
        case $what,${user[$what]} in
            data,* | val,*) ;;    # a file's name is one value
            d,* | *,*,*) set -- "$@" "$what="; continue ;;
        esac
        printf -v added '%s -%s %q' "$added" "$what" "${user[$what]}"
    done
    [[ " $* " == *" seed="* ]] || set -- "$@" "seed=$(seeds 1)"
    while [ $# -gt 0 ]; do
        case $1 in
            -*) [ -n "${user[${1#-}]-}" ] || fixed+=" $1 $2"; shift ;;
            *)
                what=${1%%=*} value=${user[${1%%=*}]-${1#*=}}
                [[ $value != *,* ]] || value="{$value}"
                varied+="\ -$what\ $value" ;;
        esac
        shift
    done
    # \ -d\ {16,32}\ -lr\ {1e-2,1e-1} becomes the four combinations
    eval "printf '%s\n' $varied" | while IFS= read -r value; do
        printf '%s\t%s\t%s\n' "$STAGE" "${fixed# }$added" "$value"
    done
}

# Each run once, stage by stage, the most expensive first. The heads follow the width, unless a flag
# sets them. The cost is in millions of FLOPs (test/README.md), times 1 + 16/C: narrow models
# run less efficiently.
plan() {    # EXPERIMENT
    experiment "$1" | awk -F '\t' -v head_size="${of[head_size]}" -v layers="${user[layers]-}" '
        function fail(text) { print "sweep.sh: " text >"/dev/stderr"; exit 2 }
        {
            name = substr($3, 3)
            flags = $2 $3
            split("", v)
            n = split(flags, word, " ")
            for (i = 1; i < n; i++) v[word[i]] = word[i + 1]
            if (v["-d"] !~ /^[0-9]+(x[0-9]+)?$/)
                fail("-d: \047" v["-d"] "\047 is not a width, nor width x layers")
            size = "-d " v["-d"]
            if (split(v["-d"], part, "x") == 2) {
                if (layers) fail("-layers: this experiment chooses it itself")
                v["-layers"] = part[2]
                size = "-d " part[1] " -layers " part[2]
                sub("d " v["-d"], substr(size, 2), name)
            }
            heads = int(part[1] / head_size)
            sub("-d " v["-d"], size ("-heads" in v ? "" : " -heads " (heads ? heads : 1)), flags)
            gsub(/ -/, "_", name)
            gsub(/ /, "", name)
            gsub(/%/, "pct", name)
            if (seen[name]++) next
            C = part[1]; L = v["-layers"]; T = v["-T"]
            V = v["-vocab"] > 0 ? v["-vocab"] : v["-data"] == "bigram" ? 4096 : 256
            flops = 6 * (12 * L * C * C + V * C + L * T * C) * T * v["-batch"] * v["-steps"]
            printf "%.0f\t%s\t%s\t%s\t%s\n", flops * 1e-6 * (1 + 16 / C), $1, name, flags, $2
        }' | sort -t $'\t' -k 2,2n -k 1,1nr -k 3,3
}

# STAGES: prints "name <tab> flags" of their runs, all or only the unfinished ones
planned() { awk -F '\t' -v OFS='\t' -v s="$1" 'index(s, $2) { print $3, $4 }' <<<"$plan"; }
unfinished() {
    local name flags
    planned "$1" | while IFS=$'\t' read -r name flags; do
        [ -e "$dir/$name/summary.csv" ] || printf '%s\t%s\n' "$name" "$flags"
    done
}

# ---------------------------------------------------------------------------
# One run, a process that GNU parallel starts

# COLUMN, FOLDER of a finished run; counted from the end of the row, as texts before it may hold
# commas
result() {
    awk -F , -v name="$1" 'NR == 1 { for (i = 1; i <= NF; i++) if ($i == name) k = NF - i }
        NR == 2 { print $(NF - k) }' "$2/summary.csv"
}

join_summaries() {    # DIR/summary.csv, from the runs that are finished; one process at a time
    (
        flock 8
        awk 'NR == 1 || FNR > 1' "$1"/*/summary.csv >"$1/summary.csv.tmp" &&
            mv "$1/summary.csv.tmp" "$1/summary.csv"
    ) 8>>"$1/experiment"
}

run() {    # SCRIPT DIR THREADS TRAINER NAME FLAGS; by SCRIPT, a process number, end finds this one
    shift
    local folder=$1/$4 flags status states=(finished diverged)
    # GNU parallel signals the trainer too, which saves its checkpoint; this waits for it
    trap : INT TERM HUP
    exec 9>>"$1/lock"
    flock -s 9
    [ ! -e "$folder/summary.csv" ] || return 0
    eval "flags=($5)"
    mkdir -p "$folder"
    [ ! -e "$folder/model.safetensors" ] || flags+=(-resume)
    {
        OMP_NUM_THREADS=$2 "$3" "${flags[@]}" -out "$folder"
        status=$?
    } >>"$folder/output.txt" 2>&1 </dev/null
    case $status in
        0)
            join_summaries "$1"
            echo "$4 ${states[$(result diverged "$folder")]}" ;;
        129 | 130 | 141 | 143) echo "$4 stopped" ;;    # by a signal, with a checkpoint
        *)
            echo "$4 failed, exit status $status; the end of $folder/output.txt:" >&2
            tail -n 5 "$folder/output.txt" | sed 's/^/    /' >&2 ;;
    esac
    return "$status"
}

# ---------------------------------------------------------------------------
# Many runs, by GNU parallel

# repeated, as a process that is just starting loses the first signal
TERMSEQ=TERM,500,TERM,1500,TERM,8000,TERM,590000,KILL,25
running='' stopped=''    # GNU parallel's number; the status of a script that was told to stop

stop() {
    stopped=$1
    [ -n "$running" ] || exit "$1"
}

# Runs the lines "name <tab> flags" of stdin. A finished run is known by its summary.csv, not by
# --resume, which goes by line numbers: they shift as seeds are added, and do not tell that somebody
# has deleted a run's folder.
run_all() {    # OPTIONS of GNU parallel; status 0 if every run is finished
    local status
    # With -m it is a process group, as each of its runs is: a terminal's Ctrl-C stops this script,
    # and this script the rest.
    set -m
    parallel --plain --will-cite --quote --colsep '\t' --termseq "$TERMSEQ" "$@" \
        --joblog "+$dir/joblog" bash "$SELF" _run "$$" "$dir" "$threads" "$trainer" '{1}' '{2}' &
    running=$!
    set +m
    while
        wait "$running"    # returns at its end, or at a signal
        status=$?
        [ -z "$stopped" ] || end
        kill -0 "$running" 2>/dev/null
    do :; done
    end    # the runs of a GNU parallel that was killed
    running=
    return "$status"
}

# Ends what run_all started. GNU parallel itself ignores a signal while it starts, and forgets a run
# that it has just started.
end() {
    local groups
    while groups=$(ps -eww -o pgid=,args= | awk -v s="$$" 'index($0, " _run " s " ") { print -$1 }')
        [ -n "$groups" ]; do
        # shellcheck disable=SC2086    # several
        kill -TERM -- $groups 2>/dev/null
        sleep 0.5
    done
}

predict() {    # DIR: from stage 1, before any run of stage 2, once
    local python=$HERE/build/venv/bin/python
    [ -x "$python" ] || python=python3
    [ -e "$1/prediction.csv" ] || "$python" "$HERE/predict.py" "$1" ||
        die 1 "predict.py $1 failed; the held-out runs wait for it"
}

# ---------------------------------------------------------------------------
# Many runs, by Slurm: an array of jobs for each stage, -pack runs per task, and the prediction
# between them

submit() {    # WHAT COMMAND OPTIONS...; the next job waits for this one
    job=$(sbatch --parsable --job-name "$job_name" --output "$dir/slurm.txt" --open-mode append \
        --requeue ${job:+--dependency "afterok:$job" --kill-on-invalid-dep yes} \
        ${option[partition]:+--partition "${option[partition]}"} \
        ${option[time]:+--time "${option[time]}"} "${@:3}" --wrap "exec bash $2") ||
        die 1 "sbatch did not take the job"
    job=${job%%;*}
    echo "job $job: $1"
}

submit_all() {
    local stage count words job='' pack=${option[pack]}
    for stage in 1 2; do
        unfinished "$stage" >"$dir/slurm$stage"
        count=$(wc -l <"$dir/slurm$stage")
        [ "$count" -gt 0 ] || continue
        printf -v words '%q ' "$SELF" _predict "$dir"
        [ "$stage" = 1 ] || submit 'the prediction' "$words"
        printf -v words '%q ' "$SELF" _task "$dir" "$threads" "$trainer" "$dir/slurm$stage" "$pack"
        submit "$count runs" "$words" --array "0-$(((count - 1) / pack))${jobs:+%$jobs}" \
            --cpus-per-task "$threads" --signal B:USR1@60
    done
    [ -z "$job" ] || echo "squeue shows the jobs; $dir/summary.csv grows as runs finish;" \
        "what fails goes again with: $command"
}

task() {    # DIR THREADS TRAINER LIST PACK
    local dir=$1 threads=$2 trainer=$3 first=$((SLURM_ARRAY_TASK_ID * $5 + 1)) status
    trap 'stop 138' USR1
    trap 'stop 143' TERM
    run_all --jobs 1 < <(sed -n "$first,$((first + $5 - 1))p" "$4")
    status=$?
    # a minute before the end of its time: the rest goes into another job
    [ "$stopped" != 138 ] || exec scontrol requeue "$SLURM_JOB_ID"
    return "$status"
}

# ---------------------------------------------------------------------------
# The command line

usage() {
    cat <<END
usage: ./sweep.sh EXPERIMENT [-option value ...] [-- trainer flags]
  -scale laptop, workstation (a night on 16 cores) or paper (GPUs, -data FILE)
  -seeds N               -out runs/EXPERIMENT-SCALE    -dry_run: print commands
  -threads N: per run    -j N: runs at a time          -trainer ./train_gpt
  -on slurm (-partition, -time, -pack N: runs per task) or a file of hosts (ssh)
Flags after -- replace the experiment's values (-d 32,64x4: width x layers), or
go to every run; several values of one are varied:
  ./sweep.sh grid -- -wd 1e-4,1e-2 -beta2 0.9,0.99 -lr 1e-3,1e-2
The experiments; ./sweep.sh -list shows what each is, and its time here:
END
    awk 'NF { print $1 }' <<<"$EXPERIMENTS" | fmt -w 78 | sed 's/^/  /'
}

list() {    # 80 columns, 24 rows with the prompt
    local name section text scale cost flags folder cores rate=0
    cores=$(nproc)
    # a run of about a second, which gives FLOPs a second
    folder=$(mktemp -d) || exit 1
    set_scale laptop
    IFS=$'\t' read -r cost _ _ flags _ < <(plan grid)
    # shellcheck disable=SC2086    # words
    if OMP_NUM_THREADS=1 "${option[trainer]}" $flags -out "$folder" >/dev/null 2>&1 </dev/null; then
        rate=$(awk -v c="$cost" -v s="$(result seconds "$folder")" 'BEGIN { print c / s }')
    fi
    rm -r "$folder"
    printf '%-15s%-6s%-12s%-12s%-16s%s\n' experiment '' laptop workstation paper '(runs, time here)'
    while read -r name section text; do
        printf '%-15s%-6s' "$name" "$section"
        for scale in laptop workstation paper; do
            set_scale "$scale"
            plan "$name" | awk -v rate="$rate" -v cores="$cores" -v scale="$scale" '
                { s += $1 / cores; if ($1 > longest) longest = $1 }
                END {
                    if (rate) s = (s > longest ? s : longest) / rate
                    time = int(s / 31536000) " years"
                    if (s < 63072000) time = int(s / 86400) " days"
                    if (s < 172800) time = int(s / 3600) " h"
                    if (s < 3600) time = sprintf("%d:%02d", s / 60, s % 60)
                    if (!rate) time = "?"
                    printf "%-" (scale == "paper" ? 15 : 11) "s ", NR ", " time
                }'
        done
        echo "$text"
    done < <(grep -v '^grid\|^$' <<<"$EXPERIMENTS")    # grid's runs are the user's
}

main() {
    local experiment='' dry_run='' word stage flags todo total left job_name plan
    local -A option=([scale]=laptop [seeds]='' [j]='' [on]=local [out]='' [trainer]=./train_gpt
        [threads]=1 [partition]='' [time]='' [pack]=1)
    printf -v command '%q ' "$0" "$@"
    while [ $# -gt 0 ]; do
        word=${1#-}
        case $1 in
            -h | -help | --help) usage; exit 0 ;;
            -list) list; exit 0 ;;
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
        case $word in
            out | resume | eval | sample | prompt | tokenizer | temperature)
                die 2 "-$word is not for a sweep" ;;
        esac
        [ -n "${2-}" ] || die 2 "-$word needs a value"
        case $word in
            data | val) ;;
            *) [[ $2 =~ ^[A-Za-z0-9.,%+-]+$ ]] ||
                die 2 "-$word: '$2' is not a value, nor several: X,Y,Z" ;;
        esac
        [ -n "${user[$word]+given}" ] || user_order+=("$word")
        user[$word]=$2
        shift 2
    done
    set_scale "$scale"
    if [ -z "$experiment" ] || ! grep -q "^$experiment " <<<"$EXPERIMENTS"; then
        word=$(awk 'NF { printf "%s%s", sep, $1; sep = " " }' <<<"$EXPERIMENTS")
        die 2 "'$experiment' is none of: $word (-list says what they are)"
    fi
    : "${dir:=runs/$experiment-$scale}"
    plan=$(plan "$experiment") || exit 2

    if [ -n "$dry_run" ]; then
        for stage in 1 2; do
            [ "$stage" = 1 ] || [ -z "$(planned 2)" ] || printf 'python3 predict.py %q\n' "$dir"
            while IFS=$'\t' read -r word flags; do
                printf 'OMP_NUM_THREADS=%s %q %s -out %q\n' \
                    "$threads" "$trainer" "$flags" "$dir/$word"
            done < <(planned "$stage")
        done
        exit 0
    fi
    trap 'stop 130' INT
    trap 'stop 143' TERM HUP
    trap 'stop 141' PIPE    # nobody reads any more
    trap '[ -z "$stopped" ] || echo "stopped; go on with: $command" >&2' EXIT
    check
    begin
    total=$(wc -l <<<"$plan")
    left=$(unfinished 12 | wc -l)
    [ "$left" = "$total" ] || echo "$((total - left)) of $total runs are already there"
    if [ "$on" = slurm ]; then submit_all; exit; fi

    local options=(--jobs "$jobs")
    [ "$on" = local ] || options+=(--sshloginfile "$on" --workdir "$PWD")
    exec 5>&1
    if [ -t 2 ]; then
        options+=(--bar)
        exec 5>/dev/null
    fi
    for stage in 1 2; do
        todo=$(unfinished "$stage")
        [ -n "$todo" ] || continue
        [ "$stage" = 1 ] || predict "$dir"
        run_all "${options[@]}" <<<"$todo" >&5
        [ -z "$stopped" ] || exit "$stopped"
        [ -z "$(unfinished "$stage")" ] || break
    done
    left=$(unfinished 12 | wc -l)
    [ "$left" = "$total" ] || join_summaries "$dir"
    echo "$((total - left)) of $total runs are in $dir; python3 plot.py $(printf %q "$dir")"
    [ "$left" = 0 ] || die 1 "try the others again with: $command"
}

# What can be wrong before a run starts
check() {
    local word words flags
    { [ -f "$trainer" ] && [ -x "$trainer" ]; } ||
        die 2 "there is no trainer $trainer; make builds it"
    [ "$scale" != paper ] || [ -n "${user[data]-}" ] ||
        die 2 "-scale paper needs tokens: -- -data 'c4_*.bin' -val FILE, with T5's vocabulary of\
 32101"
    { type flock ps && [[ $(parallel --version </dev/null) == "GNU parallel"* ]]; } \
        >/dev/null 2>&1 || die 2 "GNU parallel, flock or ps is missing; on Debian and Ubuntu:\
 apt install parallel util-linux procps"
    [ "$on" = slurm ] || [[ $trainer != *_cu ]] || : "${jobs:=1}"
    case $on in
        local) : "${jobs:=$(($(nproc) > threads ? $(nproc) / threads : 1))}" ;;
        slurm)
            command -v sbatch >/dev/null ||
                die 2 "-on slurm: sbatch is missing; run this where jobs are submitted" ;;
        *)
            [ -r "$on" ] || die 2 "-on: '$on' is neither local, slurm, nor a file of hosts"
            : "${jobs:=$(((99 + threads) / threads))%}" ;;
    esac
    # The trainer's word on each value: its status is 2 if a flag is wrong, and it resumes nothing
    # there. Then on the data of the cheapest run, if it runs here: its last obstacle is the folder.
    while IFS=$'\t' read -r _ flags; do
        eval "words=($flags)"
        word=$("$trainer" "${words[@]}" -resume -out /dev/null/none 2>&1 </dev/null)
        [ $? -ne 2 ] || die 2 "$(tail -n 1 <<<"$word")"    # after notes
    done < <(planned 12 | awk '{ for (i = 3; i <= NF; i++) new += !seen[$(i - 1), $i]++ }
        new { print; new = 0 }'; planned 1 | tail -n 1)
    if [ "$on" = local ]; then
        word=$("$trainer" "${words[@]}" -steps 0 -warmup 0 -out /dev/null/none 2>&1 </dev/null)
        [[ $word == *"/dev/null/none"* ]] || die 1 "$(tail -n 1 <<<"$word")"
    fi
}

# The folder, whose lock this script and each of its runs hold
begin() {
    local word flags file error
    [ ! -e "$dir/log.csv" ] || die 2 "$dir holds a single run; choose another -out"
    error=$({ mkdir -p "$dir" && : >>"$dir/lock"; } 2>&1) ||
        die 2 "cannot write to $dir: ${error##*: }"
    exec 9>>"$dir/lock"
    job_name="$experiment in $(cd "$dir" && pwd -P)"
    job_name=${job_name//,/_}
    word="$dir: another sweep, or what it started, is running there; wait until it has ended"
    flock -n 9 || die 1 "$word"
    # in a folder that no sweep.sh has begun, the names that it writes to
    [ -e "$dir/experiment" ] ||
        for word in flags joblog prediction.csv slurm1 slurm2 slurm.txt summary.csv \
            {experiment,flags,summary.csv}.tmp; do
            [ ! -e "$dir/$word" ] || die 2 "sweep.sh did not write $dir/$word; choose another -out"
        done
    [ ! -e "$dir/slurm1" ] || [ -z "$(squeue -h -n "$job_name")" ] || die 1 "$word"
    flags=$(cut -f 5 <<<"$plan" | sort -u)
    for word in experiment flags; do    # whole or not at all
        file=$dir/$word
        [ -e "$file" ] ||
            error=$({ echo "${!word}" >"$file.tmp" && mv "$file.tmp" "$file"; } 2>&1) ||
            die 1 "cannot write $file: ${error##*: }"
    done
    word=$(cat "$dir/experiment")
    [ "$word" = "$experiment" ] || die 2 "$dir holds the experiment $word; choose another -out"
    [ "$flags" = "$(cat "$dir/flags")" ] ||
        die 2 "$dir was begun with other flags, see $dir/flags; choose another -out"
    [ -e "$dir/prediction.csv" ] || while IFS=$'\t' read -r word _; do
        [ ! -e "$dir/$word" ] || die 2 "$dir has the held-out run $word but no prediction.csv made\
 before it; choose another -out"
    done < <(planned 2)
    flock -s 9    # shared with the runs
}

case ${1-} in
    _run) shift; run "$@" ;;
    _task) shift; task "$@" ;;
    _predict) shift; predict "$@" ;;
    *) main "$@" ;;
esac
