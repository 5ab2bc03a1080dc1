"""Costs: of a network by stage, of a compiled program from its HLO, of a train step on each device."""
