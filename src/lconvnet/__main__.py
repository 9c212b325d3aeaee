"""`python -m lconvnet` is the command `lconvnet`."""

from lconvnet.cli import main

if __name__ == "__main__":
    main()
