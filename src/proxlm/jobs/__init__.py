"""The jobs of the command line."""
