"""Load one checkpoint in this process and print, as JSON, how far its memory rose meanwhile."""

import json
import sys
import threading
import time

import torch

from ldm_patched.modules import sd
from ldm_patched.modules.model_management import DevicePolicy


def memory() -> dict[str, int]:
    """Bytes in physical memory: all of them, and those not backed by a file."""
    with open("/proc/self/status", encoding="ascii") as lines:
        found = {k: int(v.split()[0]) * 1024 for k, v in (line.split(":") for line in lines
                 if line.startswith(("VmRSS", "RssAnon")))}  # fmt: skip
    return {"all": found["VmRSS"], "anonymous": found["RssAnon"]}


def main(path: str) -> None:
    policy = DevicePolicy.detect()
    torch.ones(8, 8) @ torch.ones(8, 8)  # whatever the first call sets up is not the model's
    before, peak, done = memory(), {"all": 0, "anonymous": 0}, threading.Event()

    def watch() -> None:
        while not done.is_set():
            for kind, value in memory().items():
                peak[kind] = max(peak[kind], value - before[kind])
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    unet, clip, vae, _ = sd.load_checkpoint_guess_config(path, policy=policy)
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    parts = (unet.model, clip.cond_stage_model, vae.first_stage_model)
    tensors = {t.data_ptr(): t.nbytes for part in parts for t in part.state_dict().values()}
    report = {
        "seconds": seconds,
        "peak": peak["all"],
        "peak_anonymous": peak["anonymous"],
        "model_bytes": sum(tensors.values()),
        "policy": policy.describe(),
    }
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
