"""An extension for tests: `__pet__` in a prompt becomes "cat", when and where wildcards of other extensions do."""

from modules import scripts


class Wildcards(scripts.Script):
    """Always on."""

    def title(self):
        """What the host calls it."""
        return "wildcards of a test"

    def show(self, is_img2img):
        """In both tabs."""
        return scripts.AlwaysVisible

    def process(self, p, *arguments):
        """Before the host begins with a picture."""
        p.all_prompts = [prompt.replace("__pet__", "cat") for prompt in p.all_prompts]
