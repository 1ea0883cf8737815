"""Every knob of every run: strict, frozen settings from one YAML or JSON file plus `--set a.b=c`."""
