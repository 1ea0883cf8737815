"""The grammar of supportive replies that guided decoding stays inside."""
