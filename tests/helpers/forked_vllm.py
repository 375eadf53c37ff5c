"""Serve several models with vLLM, whose modules are imported once: every server is a fork of this program.

Started by its command, a server is three processes, each of which imports vLLM for 8 to 17 seconds of CPU time. Here
`python -m tests.helpers.forked_vllm`, run by the server's Python, reads orders from its input, a line of JSON each, and
answers each by a line: `["start", log, *arguments]` by a process id, `["stop", id]` when that process is gone. At the
end of its input it stops those that are left.
"""

import json
import multiprocessing
import os
import signal
import sys
import traceback
from importlib import import_module
from multiprocessing import resource_tracker

PRELOADED = ("vllm.v1.engine.async_llm", "vllm.v1.worker.cpu_worker", "vllm.v1.worker.cpu_model_runner")
PROGRAM = "vllm.entrypoints.launchers.api_server.entry"


def main() -> None:
    """Carry out the orders of the standard input."""
    context = multiprocessing.get_context("fork")
    multiprocessing.get_context = lambda method=None: context  # where vLLM asks for "spawn"
    resource_tracker.ensure_running()  # one for all: what they leave in shared memory goes when we end
    for name in PRELOADED:
        import_module(name)
    running = []
    for line in sys.stdin:
        order, *arguments = json.loads(line)
        if order == "start":
            running.append(start(*arguments))
            print(running[-1], flush=True)
        else:
            running.remove(arguments[0])
            stop(arguments[0])
            print("gone", flush=True)
    for pid in running:
        stop(pid)


def start(log: str, *arguments: str) -> int:
    """Fork a server that leads a process group of its own, and return its process id."""
    if pid := os.fork():
        return pid
    try:
        os.setsid()
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.argv = ["vllm", *arguments]
        import_module(PROGRAM).main()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)  # what our caller would do next is the parent's


def stop(pid: int) -> None:
    """Kill a server with all its processes, which is faster than to ask them."""
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
