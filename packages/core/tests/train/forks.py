"""Runs the real command line in forked processes: torch and diffusers are imported once, not for each of them.

Reads a JSON list of orders from each line of stdin, ``{"argv": [...], "env": {...}, "cwd": ..., "out": ...}``, forks a
process for each, and answers with their ids and then with their exit codes.

``"kill": [event, part, n]``: at its n-th audit event of that name whose first argument contains that part, the process
sends itself SIGKILL (or a fourth item). ``"limit"``: no file may have more bytes, which looks like a full disk.
``"code"``: this is run instead of the command line.
"""

import json
import os
import resource
import signal
import sys
import traceback

import diffusers.pipelines.wan.pipeline_wan  # noqa: F401
import peft  # noqa: F401
import torch  # noqa: F401
import transformers.models.umt5.modeling_umt5  # noqa: F401
from diffusers import AutoencoderKLWan, WanTransformer3DModel  # noqa: F401
from fewstep.cli import main


def child(order: dict) -> None:
    os.setpgid(0, 0)
    os.chdir(order["cwd"])
    os.environ.update(order["env"])
    out = os.open(order["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    if order.get("limit"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["limit"], order["limit"]))
    if order.get("kill"):
        stop_at(*order["kill"])
    code = 1
    try:
        code = exec(order["code"], {}) or 0 if "code" in order else main(order["argv"])
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(code)


def stop_at(event: str, part: str, number: int, signal: int = signal.SIGKILL) -> None:
    left = [number]

    def hook(name: str, args: tuple) -> None:
        if name == event and args and part in str(args[0]):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal)

    sys.addaudithook(hook)


for line in sys.stdin:
    orders = json.loads(line)
    running = {}
    for number, order in enumerate(orders):
        pid = os.fork()
        if not pid:
            child(order)
        running[pid] = number
    print(json.dumps(list(running)), flush=True)
    codes = [0] * len(orders)
    while running:
        pid, status = os.wait()
        codes[running.pop(pid)] = os.waitstatus_to_exitcode(status)
    print(json.dumps(codes), flush=True)
