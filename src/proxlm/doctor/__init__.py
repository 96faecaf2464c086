"""A doctor for PPO runs: reads the metrics, during a run or after it, and reports what is wrong and what to try.

Rules are pure functions of the metric rows so far and a few of the run's settings. Imports no torch.
"""

from proxlm.doctor.doctor import RULES, Doctor, cannot_judge, diagnose
from proxlm.doctor.facts import Facts, facts_of
from proxlm.doctor.finding import Finding
from proxlm.doctor.window import Table

__all__ = ["RULES", "Doctor", "Facts", "Finding", "Table", "cannot_judge", "diagnose", "facts_of"]
