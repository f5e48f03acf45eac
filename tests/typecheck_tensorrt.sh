#!/usr/bin/env bash
# Type-check the TensorRT modules against what each library really offers:
#   - tensorrt-stubs, the stubs on PyPI (of TensorRT 10.13),
#   - the bindings of several TensorRT releases, looked at by mypy's stubgen,
#   - TensorRT-RTX as installed, likewise.
# Needs a C compiler, pip's index, and the dev and rtx extras; writes below build/ and installs
# nothing. Ordinary `mypy` takes these libraries for untyped, since neither ships stubs.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-$PWD/.venv/bin/python}
out=$PWD/build/tensorrt-stubs
versions=${TENSORRT_VERSIONS:-10.3.0 10.9.0.34 10.16.1.11 11.4.0.106}
modules=(glora_deploy/tensorrt_runtime/plan_json.py glora_deploy/tensorrt_runtime/library.py export/tensorrt_plan/network.py
         export/tensorrt_plan/build.py glora_deploy/tensorrt_runtime/engine.py)

fetch() { # fetch REQUIREMENT FOLDER: unpack a wheel without installing it
    rm -rf "$2"
    "$python" -m pip download --quiet --no-deps --dest "$2/wheel" "$1"
    "$python" -m zipfile -e "$2"/wheel/*.whl "$2"
}

stubgen() { # stubgen MODULE NAME: stubs of an importable module, under the name `tensorrt`
    "$python" -c "from mypy.stubgen import main; main()" --quiet --module "$1" --output "$out/$2-raw"
    mkdir -p "$out/$2/tensorrt"
    cp "$out/$2-raw/${1//.//}.pyi" "$out/$2/tensorrt/__init__.pyi"
}

check() { # check NAME
    # Both kinds of stubs hold some lines that are no Python: a keyword as a parameter, a parameter
    # without a default after one with. Beyond syntax, errors inside them are not ours.
    find "$out/$1" -name '*.pyi' -exec sed -i -E '1i # mypy: ignore-errors
        s/(def add_scale_nd.*channel_axis: [A-Za-z.]+)\)/\1 = ...)/; s/\bin: /in_: /g' {} +
    printf '%-24s' "$1"
    # Where a stub leaves a call untyped, or always has what we feature-detect, is no error either.
    MYPYPATH=$out/$1 "$python" -m mypy --cache-dir="$out/cache-$1" --follow-imports=silent \
        --allow-untyped-calls --no-warn-unreachable --no-warn-unused-ignores "${modules[@]}"
}

fetch tensorrt-stubs "$out/published"
check published

# The bindings link to libraries of gigabytes. To be imported, not used, these names are enough.
for name in createInferBuilder_INTERNAL createInferRefitter_INTERNAL createInferRuntime_INTERNAL \
    createNvOnnxParserRefitter_INTERNAL createNvOnnxParser_INTERNAL getNvOnnxParserVersion \
    getBuilderPluginRegistry getPluginRegistry initLibNvInferPlugins; do
    echo "void *$name(void) { return 0; }"
done > "$out/hollow.c"
for version in $versions; do
    fetch "tensorrt-cu12-bindings==$version" "$out/bindings-$version"
    for library in libnvinfer libnvinfer_plugin libnvonnxparser; do
        cc -shared -fPIC -o "$out/bindings-$version/$library.so.${version%%.*}" "$out/hollow.c"
    done
    PYTHONPATH=$out/bindings-$version LD_LIBRARY_PATH=$out/bindings-$version \
        stubgen tensorrt_bindings.tensorrt "tensorrt-$version"
    check "tensorrt-$version"
done

stubgen tensorrt_rtx_bindings.tensorrt_rtx tensorrt-rtx
check tensorrt-rtx
