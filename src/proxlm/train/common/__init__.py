"""What every kind of training shares: optimiser, schedules, memory, non-finite updates."""
