"""The module of an operation, from the scopes in which it was traced.

JAX joins these by ``/``, and the path of a Flax module follows the name of the network's class:
``jit(train_step)/transpose(jvp(Segmenter))/backbone/layer3/5/conv2/conv_general_dilated``.
"""

import re

# Levels of a module's path: backbone/layer3, head/aspp.
LEVELS = 2

_NETWORK = re.compile(r"(?:\w+\()*[A-Z]\w*\)*")  # jvp(Segmenter), transpose(jvp(Segmenter)), Segmenter
# What JAX adds to the path of a module: control flow, nested functions and recomputation.
_NO_MODULE = re.compile(r"cond|while|body|branch_\d+_fun|checkpoint|rematted_computation|remat\d*|.*[()].*")


def module_of(scope: str) -> str:
  """Returns the module of a scope: its path in the network, ``losses``, ``update`` (of the parameters) or ``other``.

  >>> module_of("jit(train_step)/transpose(jvp(Segmenter))/backbone/layer3/5/conv2/conv_general_dilated")
  'backbone/layer3'
  >>> module_of("state.params['head']['aspp']['rate0']['conv']['kernel']")
  'head/aspp'
  >>> module_of("jit(train_step)/jvp()/reduce_max")
  'losses'
  """
  if scope.startswith("state."):
    # HLO escapes the quotation marks.
    return "/".join(re.findall(r"\['(\w+)'\]", scope.replace("\\", ""))[:LEVELS]) or "update"
  parts = re.split(r"/(?![^()]*\))", scope)
  for position, part in enumerate(parts):
    if _NETWORK.fullmatch(part):
      path = [name for name in parts[position + 1 : -1] if not _NO_MODULE.fullmatch(name)]
      return "/".join(path[:LEVELS]) or "network"
  if "jvp(" in scope:
    return "losses"
  return "update" if scope.startswith("jit(") else "other"
