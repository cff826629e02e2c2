#!/bin/sh
# Builds the plugin library into exporter/ctx_export/lib. Called by the Makefile, which sets BIN,
# PIP, CUDA_MAJOR and LIBRARY. nvcc comes from the system if it is new enough, else from PyPI.
set -eu

# cuda_fp16.h includes a header of cccl.
CUDA_PACKAGES='nvidia-cuda-nvcc nvidia-cuda-runtime nvidia-cuda-crt nvidia-cuda-cccl nvidia-nvvm'

nvcc_major() { "$1" --version 2>/dev/null | sed -n 's/.*release \([0-9]*\)\..*/\1/p'; }

system_nvcc() {
    for candidate in "$(command -v nvcc || true)" "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc"; do
        [ -n "$candidate" ] && [ -x "$candidate" ] || continue
        [ "$(nvcc_major "$candidate")" -ge "$CUDA_MAJOR" ] 2>/dev/null || continue
        echo "$candidate"
        return
    done
}

pypi_nvcc() {
    "$BIN/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' |
        sed "s|\$|/nvidia/cu$CUDA_MAJOR/bin/nvcc|"
}

nvcc=$(system_nvcc)
if [ -z "$nvcc" ]; then
    nvcc=$(pypi_nvcc)
    if [ ! -x "$nvcc" ]; then
        echo "No CUDA compiler $CUDA_MAJOR or newer on this system: installing one from PyPI into the environment"
        $PIP install -c constraints.txt $CUDA_PACKAGES
    fi
fi

echo "Building the plugin library with $nvcc"
PATH=$(cd "$BIN" && pwd):$PATH
export PATH
mkdir -p build
cmake -S . -B build -G Ninja -DCMAKE_BUILD_TYPE=Release -DCTX_BUILD_CUDA=ON \
    -DCMAKE_CUDA_COMPILER="$nvcc" \
    >build/configure.log 2>&1 || {
    cat build/configure.log >&2
    exit 1
}
cmake --build build
cmake --install build --prefix exporter >/dev/null
test -f "$LIBRARY" || { echo "the build did not install $LIBRARY: see CMakeLists.txt's install rule" >&2; exit 1; }
touch "$LIBRARY"
