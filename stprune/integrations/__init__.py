"""The sampler in the field's frameworks, one file a framework.

Nothing is imported here: `from stprune.integrations.lightning import Pruning` needs Lightning and nothing else.
"""
