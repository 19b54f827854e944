"""Everything that train/train.py and its benchmark share."""
