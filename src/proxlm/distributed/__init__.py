"""Several processes that train one model: what they must agree on, and how."""
