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


SHOWN = 120  # characters of a name that a message repeats


def shown(text: object, most: int = SHOWN) -> str:
    """Text from a file or of another library, fit for a message: cut to `most` characters, and what a terminal or a
    page would obey instead of showing (control characters, line ends, changes of direction) escaped."""
    text = str(text)
    cut = text if len(text) <= most else text[: most - 1] + "…"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in cut)


def cause(error: BaseException, most: int = 300) -> str:
    """What another library's error says, for a message of ours; its kind where it says nothing."""
    return shown(str(error).strip() or type(error).__name__, most)
