"""The figures of a training run. One that has no data is not there.

Attention, feed-forward and the two together keep their colours and letters through all figures.
"""
