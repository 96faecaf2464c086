"""A run's folder, what is written to it while it goes on, and what the terminal shows. Imports no torch."""
