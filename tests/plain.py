"""A process that has the plain libraries loaded, and never finesmith: programs run there as on its users' machines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import traceback
from typing import Any


class Plain:
    """Runs programs in forks of one process, so that the libraries are loaded once."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[str] | None = None

    def __call__(self, code: str, *given: str) -> str:
        """Run a program with these arguments; return what it printed."""
        if self._server is None:
            environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
            self._server = subprocess.Popen(
                [sys.executable, "-W", "ignore", __file__],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True,
            )  # fmt: skip
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps([code, *given]) + "\n")
        self._server.stdin.flush()
        answer: dict[str, Any] = json.loads(self._server.stdout.readline())
        assert answer["status"] == 0, answer["said"][-3000:]
        return str(answer["printed"])

    def close(self) -> None:
        if self._server is not None:
            self._server.communicate(timeout=30)


def run(code: str, given: list[str], out: int, err: int) -> None:
    """Run a program with the two files as its standard output and error."""
    os.dup2(out, 1)
    os.dup2(err, 2)
    sys.argv = ["-c", *given]
    try:
        exec(compile(code, "<program>", "exec"), {"__name__": "__main__"})
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    if any(name.split(".")[0] == "finesmith" for name in sys.modules):
        os._exit(3)
    os._exit(0)


def answer(code: str, *given: str) -> dict[str, Any]:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            run(code, list(given), out.fileno(), err.fileno())
        _, status = os.waitpid(child, 0)
        printed, said = (file.seek(0) or file.read().decode() for file in (out, err))
        return {"status": status, "printed": printed, "said": said}


if __name__ == "__main__":
    import peft  # noqa: F401
    import torch  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401
    from transformers.models.bert import modeling_bert  # noqa: F401
    from transformers.models.llama import modeling_llama  # noqa: F401

    for line in sys.stdin:
        print(json.dumps(answer(*json.loads(line))), flush=True)
