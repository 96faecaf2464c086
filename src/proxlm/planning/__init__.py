"""What a run needs of memory and time, worked out from its settings and a model's configuration alone."""
