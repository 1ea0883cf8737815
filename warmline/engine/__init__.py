"""One protocol for whatever generates and scores text: scripted, local, remote."""
