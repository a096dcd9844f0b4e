"""`python -m ldznet` is the command `ldznet`."""

from .cli import main

if __name__ == "__main__":
    main()
