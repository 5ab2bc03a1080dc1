"""The configuration of a run as a recipe would write it."""

import html
from typing import Any

from rc_jax.config import FIELDS, Config
from rc_jax.drawing.report.page import Section


def recipe_lines(config: Config) -> tuple[list[str], list[str]]:
  """Returns the assignments of a recipe that makes this config from ``defaults()``, in the order of the fields.

  Returns:
    The lines of fields that differ from their defaults, and the lines of all others. Each is a Python statement.

  >>> from rc_jax.config import defaults
  >>> config = defaults()
  >>> config.model.backbone = "resnet_tiny"
  >>> recipe_lines(config)[0]
  ['config.model.backbone = "resnet_tiny"']
  """
  changed: list[str] = []
  others: list[str] = []
  for field in FIELDS:
    value: Any = config
    for name in field.path.split("."):
      value = value[name]
    differs = value != field.default or type(value) is not type(field.default)
    (changed if differs else others).append(f"config.{field.path} = {_literal(value)}")
  return changed, others


def _literal(value: Any) -> str:
  """Returns a Python literal, with strings in double quotes where they need no escapes for that."""
  text = repr(value)
  if isinstance(value, str) and '"' not in value and text.startswith("'"):
    return f'"{text[1:-1]}"'
  if isinstance(value, tuple) and all(isinstance(entry, str) for entry in value):
    return f"({', '.join(map(_literal, value))}{',' if len(value) == 1 else ''})"
  return text


def configuration_section(config: Config) -> Section:
  """Returns the fields that differ from the defaults, and all others behind a fold."""
  changed, others = recipe_lines(config)
  first = "".join(f'<span class="changed">{html.escape(line)}</span>\n' for line in changed)
  rest = "".join(f'<span class="default">{html.escape(line)}</span>\n' for line in others)
  body = (
    '<p class="lead">These lines make this configuration in a recipe that starts from '
    "<code>rc_jax.config.defaults()</code>. The marked fields differ from their defaults.</p>"
    f"<pre>{first or 'All fields have their defaults.'}</pre>"
    f"<details><summary>{len(others)} fields at their defaults</summary><pre>{rest}</pre></details>"
  )
  return Section("configuration", "Configuration", body)
