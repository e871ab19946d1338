"""``compactor predict``: answers for every row of a file that is larger than memory."""
