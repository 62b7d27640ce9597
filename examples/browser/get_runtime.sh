#!/bin/sh
# Puts ONNX Runtime for browsers (npm package onnxruntime-web) beside the page: three files, 14 MB. Needs npm and, this
# once, a network.
set -eu
to=${1:-$(dirname "$0")}
mkdir -p "$to"
cd "$to"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
npm pack --silent --pack-destination "$work" onnxruntime-web@1.30.0 > /dev/null
tar -xzf "$work"/onnxruntime-web-*.tgz -C "$work"
for file in ort.wasm.min.js ort-wasm-simd-threaded.mjs ort-wasm-simd-threaded.wasm; do
    cp "$work/package/dist/$file" .
done
