"""Tools that the policy may call in a conversation: a calculator, Python, search, and functions of the user's."""
