"""Files of weights, whose network is recognized from names and shapes.

``weight_files`` finds the file or files, and ``checkpoint_file`` reads one as data (``opcodes``, ``foreign_files``). In
it ``state_dict`` and ``state_names`` find the weights. ``recognize`` compares them with ``layouts``, ``shapes``,
``architectures`` and ``classifier``. ``trained_file`` is for what ``sresnet train`` wrote.
"""
