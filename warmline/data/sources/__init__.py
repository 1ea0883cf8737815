"""One file per corpus; `registry.SOURCES` names them."""
