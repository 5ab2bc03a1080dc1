"""Studies: one recipe trained under several settings and seeds, and the table with intervals that comes out."""

from rc_jax.study.grid import Claim, Row, Study, recipe_of_variant

__all__ = ["Claim", "Row", "Study", "recipe_of_variant"]
