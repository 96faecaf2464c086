"""Checkpoints: folders that exist either complete or not at all, with a record of their contents.

    checkpoints/step-00000050/
        state.safetensors   weights, optimiser.NAME.… (the optimisers' moments), extra.… (other tensors of a trainer)
        state.json          the trainer's state (`read_state`), the step's metrics, the settings of the run, how many
                            rows of metrics and samples there are, a hash for each input
        policy/             the model in Hugging Face format
        manifest.json       size and SHA-256 of every other file

A checkpoint is written under a temporary name and renamed when it is complete and on disk, so a crash leaves only a
folder named .writing-…, which the next save removes. Later damage is detected by the manifest.
"""

from proxlm.checkpoint.background import BackgroundSave
from proxlm.checkpoint.best import best_folder, damage_of, keep_model, remove_other_models
from proxlm.checkpoint.changes import ROWS_SHA256, accept_changes, changed_rows
from proxlm.checkpoint.manifest import damage, is_published, read_manifest
from proxlm.checkpoint.read import (
    check_fit,
    checkpoint_problem,
    checkpoints,
    folder_name,
    load_checkpoint,
    newest_checkpoint,
    set_aside_newer,
    with_prefix,
)
from proxlm.checkpoint.settings import check_settings, settings_of
from proxlm.checkpoint.state import read_state
from proxlm.checkpoint.write import (
    begin_checkpoint,
    clear_leftovers,
    complete_checkpoint,
    leftovers,
    publish_folder,
    remove_old,
    save_checkpoint,
)

__all__ = [
    "ROWS_SHA256",
    "BackgroundSave",
    "accept_changes",
    "begin_checkpoint",
    "best_folder",
    "changed_rows",
    "check_fit",
    "check_settings",
    "checkpoint_problem",
    "checkpoints",
    "clear_leftovers",
    "complete_checkpoint",
    "damage",
    "damage_of",
    "folder_name",
    "is_published",
    "keep_model",
    "leftovers",
    "load_checkpoint",
    "newest_checkpoint",
    "publish_folder",
    "read_manifest",
    "read_state",
    "remove_old",
    "remove_other_models",
    "save_checkpoint",
    "set_aside_newer",
    "settings_of",
    "with_prefix",
]
