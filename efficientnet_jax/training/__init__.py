"""The training program: optimizer, state, update and loop."""
