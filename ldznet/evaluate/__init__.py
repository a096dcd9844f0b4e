"""How good a mask is: the paper's metrics, presence, and intervals. For evaluation and the command line."""
