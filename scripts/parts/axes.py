"""Axes for the host's X/Y/Z plot: phrases, head, threshold, grow; in the page and through the API.

None has choices: through the API the host takes those from an argument of their own, and makes no picture without it.
"""

from modules import scripts

CHANGES = "_ldznet_axes"  # the attribute of `p` that holds what the axes of its picture say
PREFIX = "[LD-ZNet] "
AXES = {"phrases": str, "head": str, "threshold": float, "grow": int}
NEWLINE = r"\n"  # as it is typed between two phrases


def add(settings, head_names):
    """The axes, once, in the plot's own list, if the plot is loaded by now: the hosts load their own scripts first."""
    plots = [data.module for data in scripts.scripts_data if data.script_class.__module__ == "xyz_grid.py"]
    for plot in plots[:1]:
        if not any(option.label.startswith(PREFIX) for option in plot.axis_options):
            plot.axis_options.extend(axis(plot, settings, name, head_names) for name in AXES)


def axis(plot, settings, name, head_names):
    """One of AXES. Phrases are of img2img, the rest of both tabs."""

    def apply(p, value, values):
        value = value.replace(NEWLINE, "\n") if name == "phrases" else value
        setattr(p, CHANGES, {**getattr(p, CHANGES, {}), name: value})

    def confirm(p, values):
        for value in values:
            settings.Settings.of([{name: value}])
            if name == "head" and value not in head_names():
                raise ValueError(f"Expected a head among {', '.join(head_names())}, got {value}.")

    kinds = {type(option).__name__: type(option) for option in plot.axis_options}  # the hosts import them, or do not
    kind = kinds["AxisOptionImg2Img" if name == "phrases" else "AxisOption"]
    return kind(PREFIX + name, AXES[name], apply, confirm=confirm)


def changed(settings, arguments, p):
    """The section's arguments for `p`, with what its axes say."""
    return settings.changed(arguments, getattr(p, CHANGES, {}))
