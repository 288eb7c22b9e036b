"""Messages between server and clients: how arrays are stacked, sent, received and checked."""
