"""The library's messages for the command line: the library names arguments, the program names options."""

from __future__ import annotations

import re

# Arguments that messages give a value, such as recipe="phased", timesteps=8 or download=True.
NAMED = ("amp", "arch", "device", "download", "recipe", "tie_shortcuts", "timesteps", "warmup")
# Other phrases of the library, and what the program says instead.
PHRASES = (
    (r"calibration_batches", "--calibration DATA"),
    (r"batch_size", "--batch-size"),
    (r"split_maxpool(=True)?", "--pool host"),
    (r"pass the names of the network's outputs in order", r"\g<0>, one per line (--classes FILE)"),
    (r"match_classes\(data, natural_order\(data\.classes\)\)", "--classes natural"),
    (r"Match them: s_resnet\.data\.match_classes\(data, names\)", "Give it with --classes FILE"),
    (r"Number them as the network does: s_resnet\.data\.match_classes.*\)", "Give the network's with --classes FILE"),
    (r"Evaluate on held-out images", "Name held-out images (--data)"),
    (r"size, mean, std and range(?=\. What)", r"\g<0> (--input-size, --mean, --std)"),
    (r"memory_limit\(\"([^\"]+)\"\)", r"--memory \1"),
    (r"were taken from the architecture", r"\g<0> (--arch)"),
    (r"; s_resnet\.conversion\.alternatives says which other would fit", ""),
    (r"(?<=what would help: )more calibration images", r"\g<0> (convert --calibration-images)"),
    (r"a larger percentile in convert", "a larger convert --percentile"),
    (r"recipe\.reconstructed\(\)", "--reconstruct"),
    (r'recipe\.with_weights\("(\w+)"\)', r"--weights \1"),
    (r"s_resnet\.fine_tune", "train --from this network"),
    (r"training with more levels", "training with more --levels"),
    (r"\b([Ll]eave out|[Ll]ower) (arch|ema|lr|validation)\b", r"\1 --\2"),
    (r"with another arch, as in", "with --arch, as in"),
    (r"latency and target_drop", "--latency and --target-drop"),
    (r"Auto\(latency=\.\.\.\)", "--latency E"),
    (r"Leave the confidence out", "Leave out --exit-confidence"),
)
_VALUES = rf"\b(?P<name>{'|'.join(NAMED)})=(?P<quote>[\"']?)(?P<value>[\w.-]*\w)(?P=quote)"


def spoken(message: str) -> str:
    """A message of the library with options in place of arguments."""
    for pattern, option in PHRASES:
        message = re.sub(pattern, option, message)
    return re.sub(_VALUES, _option, message)


def _option(found: re.Match[str]) -> str:
    option = f"--{found['name'].replace('_', '-')}"
    return {"True": option, "False": f"no {option}"}.get(found["value"], f"{option} {found['value']}")
