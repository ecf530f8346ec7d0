"""Run folders: recorder, checkpoints, client states, and reading runs back."""
