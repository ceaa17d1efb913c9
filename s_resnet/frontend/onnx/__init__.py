"""ONNX files, read as steps of a :class:`s_resnet.frontend.Program`.

``file`` reads a file from end to end: ``wire`` bounds what its bytes unfold to, ``tensors`` reads constants,
``network`` orders the nodes and looks up each operator in ``layers``, ``arithmetic`` or ``shapes``. ``node`` is what an
operator sees.
"""
