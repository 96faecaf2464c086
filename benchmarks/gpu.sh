#!/usr/bin/env bash
# The whole table of one GPU in at most ten minutes: steps in float32 and bf16 with the plan's figures beside them,
# writing in tokens a second, peak memory, TRL on the same work if its Python is given, and a short run on stories.
#
#   bash benchmarks/gpu.sh [--device cuda|cpu] [--trl TRL/bin/python] [--stories MODEL_FOLDER]
#
# With --device cpu the shapes are tiny: it shows that the script works, and nothing else. Each part has a limit of its
# own on a GPU, and ten times that on a CPU; one that fails does not end the others; the exit status is then 1.
set -u
device=cuda trl="" stories=""
while [ $# -gt 0 ]; do
    case "$1" in
        --device) device=$2; shift 2 ;;
        --trl) trl=$2; shift 2 ;;
        --stories) stories=$2; shift 2 ;;
        *) echo "gpu.sh: unknown argument $1" >&2; exit 2 ;;
    esac
done
case "$device" in cuda | cpu) ;; *) echo "gpu.sh: --device is cuda or cpu" >&2; exit 2 ;; esac
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python}
PYTHONPATH="$here/../src${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONPATH
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
failed=0

part() { # title, seconds, command …
    local title=$1 limit=$2 began=$SECONDS
    shift 2
    [ "$device" = cpu ] && limit=$((10 * limit))
    printf '\n## %s\n\n' "$title"
    timeout "$limit" "$@" || { failed=1; echo "(failed, or took more than $limit s)"; }
    echo "($((SECONDS - began)) s)"
}

if [ "$device" = cuda ]; then
    nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader || true
    tiny=()
else
    tiny=(--tiny)
fi
"$python" -c 'import torch; print("torch", torch.__version__)'

part "Steps, and the plan's figures" 270 "$python" "$here/gpu_table.py" --device "$device" "${tiny[@]}"
if [ -n "$trl" ] && [ "$device" = cuda ]; then
    part "TRL on the same work" 180 "$python" "$here/against_trl.py" "$trl" --device cuda \
        --workloads gpu-0.5b-short --rounds 1 --steps 2 --add
else
    echo "(without TRL: give --trl and a GPU)"
fi
if [ -n "$stories" ]; then
    steps=20
    [ "$device" = cpu ] && steps=2
    part "Stories, $steps steps" 150 "$python" -m proxlm ppo "$here/../recipes/stories-sentiment.toml" \
        --model.policy "$stories" --model.device "$device" --ppo.steps "$steps" --run.folder "$scratch/stories"
else
    echo "(without the run on stories: give --stories and the folder of stories260K)"
fi
exit "$failed"
