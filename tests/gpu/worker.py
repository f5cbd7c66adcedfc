# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""One rank of a list of jobs: imports the engine once, then runs each job in its own layout.

python -m tests.gpu.worker FOLDER, as each rank under RANK, WORLD_SIZE, ...; FOLDER/jobs.json lists
[{"name", "function", "kwargs"}], a function of tests/distributed/jobs.py or, by a dotted path, of
another module, and each rank leaves FOLDER/NAME.rank_N.pt or NAME.rank_N.error.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import time
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from k2_megatron.platform.select import current_platform


def main() -> None:
    """Run all jobs; a failed job does not keep the next ones from running where ranks agree."""
    folder = Path(sys.argv[1])
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    platform = current_platform()
    platform.prepare(int(os.environ["LOCAL_RANK"]))
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    dist.init_process_group(
        platform.backend,
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=120),
        **platform.process_group_options(),
    )
    from k2_megatron.parallel import megatron_state

    for job in json.loads((folder / "jobs.json").read_text()):
        path = folder / f"{job['name']}.rank_{rank}"
        began = time.monotonic()
        try:
            module, _, function = job["function"].rpartition(".")
            jobs = importlib.import_module(module or "tests.distributed.jobs")
            result = getattr(jobs, function)(**job["kwargs"])
            torch.save(result, path.with_name(path.name + ".pt"))
        except Exception:
            path.with_name(path.name + ".error").write_text(traceback.format_exc())
        finally:
            megatron_state.destroy()
            gc.collect()
            torch.cuda.empty_cache() if platform.name == "cuda" else None
        failed = torch.tensor(
            int(path.with_name(path.name + ".error").exists()), device=platform.device
        )
        dist.all_reduce(failed)
        print(f"{job['name']}: {time.monotonic() - began:.1f} s", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
