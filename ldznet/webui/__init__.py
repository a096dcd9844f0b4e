"""What the section in A1111 and the Forges does, without their interface and without their modules.

`settings` alone is read while the section is switched off; it imports nothing of the library. `scripts/ldznet_webui.py`
wires these to the host.
"""
