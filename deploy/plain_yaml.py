"""YAML as plain data: no tags, and no aliases, with which a few lines can stand for millions."""

from typing import Any

import yaml


class _PlainLoader(yaml.SafeLoader):
    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases are not allowed", None)
        return super().compose_node(parent, index)


def parse_yaml(text: str) -> Any:
    """Return what `text` says as plain data; raises `yaml.YAMLError`."""
    loader = _PlainLoader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()
