"""Entry point of `python -m exfuse`, also for torchrun."""

from exfuse.cli.start import main

if __name__ == "__main__":
    main()
