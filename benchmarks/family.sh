#!/usr/bin/env bash
# Measures networks of benchmarks/family beside the bundled ones into docs/results, in some five minutes on two cores.
# PAIRS holds scenes in HPatches' layout, PHOTOGRAPHS those trained on, by which the int8 activations are scaled.
set -euo pipefail
if (($# != 2)); then
    echo "usage: $0 PAIRS PHOTOGRAPHS" >&2
    exit 2
fi
pairs=$(realpath "$1") photographs=$(realpath "$2")
here=$(realpath "$(dirname "$0")")
results=$here/../docs/results
models=$(mktemp -d)
trap 'rm -r "$models"' EXIT
cd "$models" # so that the models go by their names

rows=detector,polar,polar-large
for name in rings-48 rings-64 rings-64-taught rings-192; do
    cv-patchpose export "$here/family/$name.pt" -o "$name.onnx" --quantize-on "$photographs"
    rows+=,$name.onnx
done

measure() { # output benchmark option...
    echo "== family-$1"
    cv-patchpose evaluate "$2" "$pairs" --methods "$rows" --no-cache --jobs 2 -o "$results/family-$1.json" "${@:3}"
}

measure matching homography-matching
measure matching-turned homography-matching --rotate 60
measure pose-repeated homography-pose --points repeated --rotate 60
measure pose-gradients homography-pose --points repeated --rotate 60 --ground-truth gradients
measure pose-fixed homography-pose
rows=${rows#detector,}
corners=(--detector harris --min-zoom-change 1.3333)
measure corners homography-matching "${corners[@]}"
measure corners-turned homography-matching "${corners[@]}" --rotate 60
