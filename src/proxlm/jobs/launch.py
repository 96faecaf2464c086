"""`proxlm launch`: several processes of this machine that train together, under torchrun's elastic agent."""

from __future__ import annotations

import logging
import math
import os
import sys
import uuid
from typing import Any

from proxlm.config import LaunchConfig
from proxlm.config.arguments import as_options
from proxlm.runlog.folder import free_name


def main(config: LaunchConfig, job: Any) -> int:
    """Start the processes and wait for them.

    Args:
        config: How.
        job: The settings of the recipe.

    Returns:
        The exit status of the process that failed first; 0: all have done their work.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig as AgentConfig
    from torch.distributed.launcher.api import elastic_launch

    options = as_options(config.set)
    if not job.run.folder:  # one for all processes, and for those after a restart
        options.append(f"--run.folder={free_name(config.command)}")
    if not job.run.threads:
        options.append(f"--run.threads={max(1, (os.cpu_count() or 1) // config.workers)}")
    for name in [n for n in logging.root.manager.loggerDict if n.startswith("torch.distributed.elastic")]:
        logging.getLogger(name).setLevel(logging.ERROR)  # each has a level of its own
    agent = AgentConfig(
        run_id=uuid.uuid4().hex,
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=config.workers,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=config.max_restarts,
        monitor_interval=1,
        shutdown_timeout=math.ceil(config.grace),
    )
    try:
        elastic_launch(agent, sys.executable)("-m", "proxlm", config.command, config.recipe, *options)
    except ChildFailedError as error:
        _, first = error.get_first_failure()
        return first.exitcode if first.exitcode > 0 else 128 - first.exitcode
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0
