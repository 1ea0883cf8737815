"""The one training loop and the stages that assemble it."""
