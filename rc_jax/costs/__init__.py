"""What a network and a train step cost: by stage, from compiled HLO, and on each device."""
