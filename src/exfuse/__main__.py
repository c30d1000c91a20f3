"""`python -m exfuse`, which is also what torchrun starts."""

from exfuse.cli.start import main

if __name__ == "__main__":
    main()
