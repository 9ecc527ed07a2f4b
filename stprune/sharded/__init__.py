"""A table of scores spread over ranks: each owns a range of the samples, and plans and results go between owners.

A plan has the same samples, weights and order as that of a table on every rank, bit for bit: sums are added up in the same
order, blocks of 4,096 samples and the tree above them, whoever owns them.
"""
