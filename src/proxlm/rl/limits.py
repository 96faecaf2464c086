"""Numbers of the mathematics that settings are checked against, too; imports nothing, for settings need no torch."""

KL_ERROR_LIMIT = 0.2
"""The adaptive controller takes no larger relative error into account (Ziegler et al. 2019, section 2.2)."""
