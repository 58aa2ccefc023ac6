#!/usr/bin/env bash
# Measures every accuracy figure of the README into docs/results, in about ten minutes on two cores.
# PAIRS holds scenes in HPatches' layout, HELD_OUT photographs not trained on (here COCO128),
# WEIGHTS the published weights of OriNet.
set -euo pipefail
if (($# != 3)); then
    echo "usage: $0 PAIRS HELD_OUT WEIGHTS" >&2
    exit 2
fi
pairs=$1 held_out=$2 weights=$3
results=$(cd "$(dirname "$0")/.." && pwd)/docs/results

measure() { # output benchmark folder option...
    echo "== $1"
    cv-patchpose evaluate "$2" "$3" --no-cache --peer-weights "$weights" --jobs 2 -o "$results/$1.json" "${@:4}"
}

rows=detector,detector-all,upright,polar,polar:2,polar-large
measure matching homography-matching "$pairs" --methods $rows
measure matching-turned homography-matching "$pairs" --methods $rows --rotate 60
fine=(--methods detector,detector-all,upright,polar,polar:2 --descriptor sift-fine)
measure matching-fine homography-matching "$pairs" "${fine[@]}"
measure matching-fine-turned homography-matching "$pairs" "${fine[@]}" --rotate 60
corners=(--methods upright,polar@angle,polar@1passes,polar,polar:2,polar-large,polar-large@4passes --detector harris --min-zoom-change 1.3333)
measure corners homography-matching "$pairs" "${corners[@]}"
measure corners-turned homography-matching "$pairs" "${corners[@]}" --rotate 60
measure pose-fixed homography-pose "$pairs" --methods identity,detector,orinet,polar,polar@2passes,polar-large
measure pose-repeated homography-pose "$pairs" --points repeated --rotate 60 \
    --methods identity,detector,gradient-histogram,orinet,polar,polar-large
echo "== limits"
python "$(dirname "$0")/limits.py" "$pairs" --jobs 2
# Last: it ends in failure where a photograph is too small for its windows.
measure clean patchpose "$held_out" --images 100 \
    --methods identity,gradient-histogram,orinet,polar,polar@2passes,polar-large
