"""`python -m warmline`, also the entry point for `accelerate launch -m warmline`."""

from warmline.cli import main

main()
