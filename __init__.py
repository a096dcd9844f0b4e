"""ComfyUI finds the pack here. Nothing is imported at module level: the nodes come in a later release."""
