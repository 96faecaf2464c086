"""Checkpoints: a folder that is there whole or not at all, and that knows what it holds.

    checkpoints/step-00000050/
        state.safetensors   what learns and the optimisers' moments
        state.json          counters, the KL coefficient, the step's metrics, the settings of the run
        policy/             the model in Hugging Face format
        manifest.json       size and SHA-256 of every other file

A checkpoint is written beside its place and renamed when it is complete and on disk, so a crash leaves only a
folder named .writing-…, which the next save removes. What happened to it since is seen by its manifest.
"""

from proxlm.checkpoint.manifest import damage, read_manifest
from proxlm.checkpoint.read import (
    check_fit,
    checkpoints,
    list_of_numbers,
    load_checkpoint,
    newest_checkpoint,
    numbers_of,
    set_aside_newer,
    with_prefix,
)
from proxlm.checkpoint.settings import check_settings, settings_of
from proxlm.checkpoint.write import Keep, clear_leftovers, publish_folder, save_checkpoint

__all__ = [
    "Keep",
    "check_fit",
    "check_settings",
    "checkpoints",
    "clear_leftovers",
    "damage",
    "list_of_numbers",
    "load_checkpoint",
    "newest_checkpoint",
    "numbers_of",
    "publish_folder",
    "read_manifest",
    "save_checkpoint",
    "set_aside_newer",
    "settings_of",
    "with_prefix",
]
