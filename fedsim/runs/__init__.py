"""The run folder: recording, checkpoints, client states, reading runs back."""
