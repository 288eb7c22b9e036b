"""The record of what the server saw: its layout, its writer, its reader."""
