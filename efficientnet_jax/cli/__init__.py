"""The command line: flags, the config of a run, and which function a mode is."""
