"""What people deploy, made from a run: one module a target; heads, labels and safety settings travel with each."""
