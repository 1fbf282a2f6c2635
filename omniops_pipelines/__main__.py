"""`python -m omniops_pipelines` is `omniops`."""

from omniops_pipelines.cli import main

if __name__ == "__main__":
    main()
