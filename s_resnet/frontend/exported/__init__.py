"""Programs of ``torch.export``, read as steps of a :class:`s_resnet.frontend.Program`.

``file`` reads a file from end to end: ``archive`` has its parts and tensors, ``graph`` its nodes, ``aten`` the known
operators, and ``steps`` puts them together.
"""
