"""What can go wrong, by name. Every message says what was expected, what came, and what to do. Imports nothing."""


class LDZNetError(Exception):
    """Base of every error that this library raises on purpose."""


class InputError(LDZNetError, ValueError):
    """An image, a latent, a phrase or a setting that cannot be used."""


class HostError(LDZNetError):
    """A diffusion model that does not offer what was asked of it."""


class CheckpointError(LDZNetError):
    """A file that is not what it should be."""


class TapError(HostError):
    """A block that was asked for and does not exist, or never fired."""
