"""Where help is: the helpline directory, the choice of a country, and the resource card."""
