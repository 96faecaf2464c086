"""`proxlm check`: a recipe, everything but the training. Nothing is left behind but what is printed."""

from __future__ import annotations

from proxlm.config import CheckConfig
from proxlm.config.recipe import settings_of_recipe
from proxlm.errors import ConfigError
from proxlm.jobs.check_report import Report
from proxlm.text import counted


def main(config: CheckConfig) -> int:
    """Print what is found, part by part; 1 if the run would fail, else 0."""
    found = Report()
    try:
        settings = settings_of_recipe(config)
    except ConfigError as error:
        for line in (str(error), *error.more):
            found.error("settings", line)
    else:
        from proxlm.jobs.check_parts import check_parts  # and torch with it

        check_parts(config, settings, found)
    if found.errors:
        print(f"\n{counted(found.errors, 'error')}: the run would not begin, or would end early", flush=True)
    else:
        warned = f", {counted(found.warnings, 'warning')}" if found.warnings else ""
        print(f"\nno error{warned}", flush=True)
    return 1 if found.errors else 0
