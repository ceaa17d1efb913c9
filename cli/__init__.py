"""The command line of S-ResNet, installed as ``sresnet``; ``python -m sresnet_cli`` is the same program."""
