"""ResNets and HRNets: ``image [B,H,W,3] -> Stages``."""
