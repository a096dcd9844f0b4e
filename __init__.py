"""ComfyUI finds the pack here. Nothing is imported at module level: nodes are in `nodes/`, the library in `ldznet/`."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> object:
    """The extension that ComfyUI asks for its nodes."""
    from .nodes import extension

    return extension()
