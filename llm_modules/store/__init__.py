"""What the source says about a training set, kept on a disk: read once, used in every epoch of every run.

key.py says whose states they are; encoding.py how a state becomes bytes; shards.py and manifest.py what lies in the
folder; plan.py and extraction.py fill it; reader.py opens it, here or on an object store; training.py lends it to
training. docs/features.md tells the whole.
"""
